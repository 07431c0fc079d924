"""Ratings that the tests of matrix factorization share, and a whole run on the fake server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diml.jobs.account import Account, SharedPace
from diml.jobs.mf_careful import CarefulTraining
from diml.jobs.mf_course import Course
from diml.jobs.mf_data import Layout, Ratings, choose_layout
from diml.jobs.mf_evaluation import Evaluation, Goal
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Rule
from diml.jobs.mf_stored import Stored
from diml.jobs.mf_train import Tables, Training
from tests.unit.mf_fake import Death, FakeClient, FakeServers

CHECKOUT = Path(__file__).parents[2]
SAMPLE = CHECKOUT / "diml" / "data" / "samples" / "9x9_3blocks"
REAL = CHECKOUT.parent / "shared" / "data" / "mf"


def sample() -> Ratings:
    """The three-block sample."""
    return load(Source(str(SAMPLE), None))


def sample_matrix() -> npt.NDArray[np.float64]:
    """The three-block sample as a full matrix."""
    blocks = np.arange(9) // 3
    return np.where(blocks[:, None] == blocks, blocks + 1.0, 0.0)


class Silent:
    """What has no event log."""

    def event(self, what: str, **fields: object) -> None:
        """Say nothing."""


@dataclass
class Run:
    """What a run ended with: the factors by global id, and the evaluations that worker 0 read."""

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]
    side: npt.NDArray[np.float32] | None
    evaluations: list[Evaluation]
    layout: Layout


def _die_at(ps: FakeClient, due: set[tuple[int, int]]) -> None:
    """Have a worker die, once for each (worker, clock) that is due, as that clock ends."""
    clock_of = ps.clock

    def clock_or_die(local: object = None) -> None:
        if (ps.worker, ps.clock_now) in due:
            due.remove((ps.worker, ps.clock_now))
            raise Death
        clock_of(local)

    ps.clock = clock_or_die  # type: ignore[method-assign]


def run(
    ratings: Ratings | Stored,
    rule: Rule,
    *,
    workers: int = 1,
    iterations: int = 100,
    staleness: int = 0,
    eval_every: int = 1,
    blocks: int | None = None,
    deaths: tuple[tuple[int, int], ...] = (),
    reporter: Callable[[], Callable[[Sequence[Evaluation]], None]] | None = None,
    goal: Goal | None = None,
    servers: FakeServers | None = None,
    rows_max: int = 0,
    threads: int = 1,
    auto_step: bool = False,
) -> Run:
    """Train on the fake server. `deaths` are (worker, clock): it dies once as that clock ends.

    `reporter` makes what each incarnation of worker 0 reports to; `rows_max` puts L on the servers.
    """
    layout = choose_layout(
        workers, staleness, ratings.col_entries, rule.eta(0), blocks, ratings.most_blocks
    )
    groups = ratings.row_groups(workers, rows_max) if rows_max else 1
    layout = replace(layout, row_groups=groups, rows_max=rows_max, threads=threads)
    course = Course(iterations, layout.clocks, staleness, eval_every)
    servers = servers if servers is not None else FakeServers(workers, staleness, rule.seed)
    due = set(deaths)
    facts = ratings.facts()
    found: list[Evaluation] = []
    nth: list[str] = []

    def work(ps: FakeClient) -> None:
        share = ratings.share(ps.worker, ps.workers, layout, rule.seed)

        def tables_of(halvings: int) -> Tables:
            return Tables.of(ps.table, rule, facts, course, True, rows_max > 0, halvings)

        goal_of = goal if goal is not None else Goal()
        pace = SharedPace(ps, ps.table, Account(Silent(), "updates"))  # type: ignore[arg-type]
        about = ps, tables_of, course, facts, share, rule, 0.0, goal_of, pace, threads
        training = CarefulTraining(*about) if auto_step else Training(*about)
        report = reporter() if reporter is not None and ps.worker == 0 else None

        def tell(evaluations: Sequence[Evaluation]) -> None:
            if report is not None:
                report(evaluations)

        _die_at(ps, due)
        training.run(tell if ps.worker == 0 else None)
        nth.append(f".{training.tables.halvings}" if training.tables.halvings else "")
        if ps.worker == 0:
            found.extend(training.evaluations)

    servers.run(work)
    assert not due, f"deaths that never came: {due}"
    tables = {name: table.read(-1, 2**40, staleness) for name, table in servers.tables.items()}
    left = tables["L"]
    if rows_max and rule.biased:
        left = np.column_stack([left, tables["L_side"][:, :1]])
    end = nth[0] if nth else ""
    right, side = tables[f"R{end}"], tables.get(f"R_side{end}")
    return Run(left, right, side, found, layout)
