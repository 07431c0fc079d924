"""The first promise of `make run`: whichever of its six processes dies, the answer is as good."""

from __future__ import annotations

import random
import re
import statistics
from pathlib import Path

import pytest

from diml.events import read_events
from tests.helpers.mpi import Finished, run_mpi

# As `make run`: 4 workers, 1 server, 1 spare on the generated matrix; fewer iterations, so that
# the undisturbed runs still differ (by nothing: staleness 0) and 25 of them fit into the suite.
ITERATIONS = 12
CLOCKS_EACH = 4
MF = ["-m", "diml.jobs.mf", "--generate", "--K", "8", "--update", "adagrad", "--lambda", "0.02"]
MF += ["--num_iterations", str(ITERATIONS), "--servers", "1", "--spares", "1", "--quiet"]
RMSE = re.compile(r"^held-out RMSE +([0-9.]+)", re.MULTILINE)
KILLS = 20


def _rmse(finished: Finished) -> float:
    found = RMSE.search(finished.expect(0).stdout)
    assert found, finished.report()
    return float(found.group(1))


@pytest.fixture(scope="module")
def undisturbed() -> float:
    runs = [_rmse(run_mpi(6, MF, timeout_s=120)) for _ in range(5)]
    return statistics.median(runs)


@pytest.mark.parametrize("kill", range(KILLS))
def test_any_process_may_die_at_any_clock(undisturbed: float, tmp_path: Path, kill: int) -> None:
    chance = random.Random(kill)
    clocks = ITERATIONS * CLOCKS_EACH
    process = kill % 6  # workers 0-3, the server 4, the spare 5: each several times
    clock = chance.randint(clocks // 20 + 1, clocks * 95 // 100)
    log = tmp_path / "events"
    drill = ["--drill", f"{process},{clock},0,0", "--events", str(log)]
    finished = run_mpi(6, [*MF, *drill], timeout_s=120)
    deaths = [e for e in read_events(log) if e["what"] == "drill"]
    print(f"process {process} killed at clock {clock} of {clocks}")
    assert [(e["uid"], e["version"]) for e in deaths] == [(process, clock)], finished.report()
    assert _rmse(finished) == pytest.approx(undisturbed, rel=0.01)
