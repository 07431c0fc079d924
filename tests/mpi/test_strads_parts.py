"""Several STRADS programs and a loop of the caller's own in one job: kills change no bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.mpi import run_mpi

PROGRAM = """
import numpy as np
import diml
from diml.data.design_planted import neighbour_correlated
from diml.strads import Lasso, run
from diml.strads.policy import Cyclic
from diml.strads.columns import columns_of
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_problem import Grid, Stop

planted = neighbour_correlated(120, 160, seed=1)
with diml.init() as job:
    top = job.parts.once("top", lambda: float(job.allreduce(np.array([job.rank + 1.0]), "max")[0]))
    mine = job.parts.part("mine")
    saved = mine.saved or {"step": 0, "w": 0.0}
    if not mine.finished:
        w = saved["w"]
        for step in range(saved["step"], 3):
            w += float(job.allreduce(np.array([w + job.rank]), "sum")[0])
            mine.checkpoint({"step": step + 1, "w": w})
        mine.finish(w)
    lines = [top, mine.outcome]
    for ratio in (0.3, 0.1):
        program = solve_lasso(columns_of(planted.X, job.rank, job.size), planted.y / top,
                              Grid(ratios=(0.5, ratio)), Stop(1e-8), job=job, checkpoint_work=20000)
        lines.append(program.solutions[-1].values.tolist())
    model = Lasso(alpha=program.solutions[-1].lam, job=job).fit(planted.X, planted.y)
    lines.append(model.intercept_)
    everything = solve_lasso(columns_of(planted.X, job.rank, job.size), planted.y,
                             Grid(ratios=(0.3,)), Stop(1e-4, 60), job=job, policy="random",
                             copy=columns_of(planted.X), checkpoint_work=20000)
    lines.append(everything.solutions[-1].values.tolist())
    last = job.allreduce(np.array([float(job.version)]), "max")
    if job.rank == 0:
        print("ANSWER", lines, last)
"""


def answer(folder: Path, *drills: str) -> str:
    events = folder / "events"
    spares = str(len(drills))
    env = {"DIML_DRILL": " ".join(drills), "DIML_SPARES": spares, "DIML_EVENTS": str(events)}
    done = run_mpi(3 + len(drills), PROGRAM, env=env, timeout_s=150).expect(0)
    assert events.read_text().count('"what":"drill"') == len(drills)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    return line


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return answer(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize(
    "drills",
    [
        ("0,0,0,0", "1,2,0,0,after", "0,3,0,1"),
        ("2,4,0,0,checkpoint", "0,5,1,0,inside", "1,6,3,0"),
        ("1,7,0,0", "0,9,2,0,after", "2,9,3,0,inside"),
        ("0,12,0,0,after", "1,12,1,0,after", "0,13,1,1,inside"),
    ],
)
def test_kills_in_every_part_change_no_bit(
    tmp_path: Path, drills: tuple[str, ...], reference: str
) -> None:
    assert answer(tmp_path, *drills) == reference
