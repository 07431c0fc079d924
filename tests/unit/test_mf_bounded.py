"""A worker that holds few rows at a time, and one that computes with several threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from diml.data.blockfile import BlockFile
from diml.data.convert import Order, convert
from diml.data.planted import Planted
from diml.errors import Misuse
from diml.jobs.mf_course import blocks_within
from diml.jobs.mf_data import Layout, Ratings
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Columns, Model, Rule
from diml.jobs.mf_stored import Stored
from diml.jobs.mf_team import Team
from diml.kernels.mf_grid import TURNS, dealt, ranges
from tests.unit.mf_cases import Run, run
from tests.unit.mf_fake import FakeHandle, FakeServers
from tests.unit.test_data_convert import text

RULE = Rule(k=4, update="adagrad", decay=0.02, init_step_size=0.05, biased=True, seed=2)


def small() -> Ratings:
    """300 x 80 with some rows and columns that have no entry, of rank 2."""
    plan = Planted(300, 80, 12_000, rank=2, skew=0.5, seed=1)
    found = load(Source(None, plan, test_fraction=0.1, seed=1))
    assert isinstance(found, Ratings)
    return Ratings(found.train, found.test, 310, 85)


def bounded(ratings: Ratings | Stored, rows_max: int, workers: int = 2, **more: object) -> Run:
    blocks = blocks_within(rows_max, ratings.col_entries, workers if workers > 1 else 1)
    settings = {"workers": workers, "iterations": 15, "eval_every": 15, **more}
    return run(ratings, RULE, blocks=blocks, rows_max=rows_max, **settings)  # type: ignore[arg-type]


def same(one: Run, two: Run) -> bool:
    return np.array_equal(one.left, two.left) and np.array_equal(one.right, two.right)


@pytest.mark.parametrize("rows_max", [20, 1000])
def test_no_more_rows_are_held_and_the_error_is_the_same(
    rows_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    get = FakeHandle.get

    def watched(table: FakeHandle, ids: np.ndarray) -> np.ndarray:
        asked.append(len(ids))
        return get(table, ids)

    free = run(small(), RULE, workers=2, iterations=15, eval_every=15)
    monkeypatch.setattr(FakeHandle, "get", watched)
    tight = bounded(small(), rows_max)
    assert max(asked) <= rows_max
    found, expected = tight.evaluations[-1], free.evaluations[-1]
    assert found.test_rmse == pytest.approx(expected.test_rmse, rel=0.01)
    assert found.objective == pytest.approx(expected.objective, rel=0.05)
    empty = np.bincount(small().train.rows, minlength=310) == 0
    assert empty.any()
    assert not tight.left[empty].any()


@pytest.mark.parametrize("staleness", [0, 1])
def test_replacements_of_bounded_workers_end_with_the_same_bits(staleness: int) -> None:
    settings = {"staleness": staleness, "iterations": 3, "eval_every": 1, "threads": 2}
    calm = bounded(small(), 30, **settings)
    deaths = ((1, 0), (0, 3), (1, 7), (1, 20), (0, 31))
    assert same(calm, bounded(small(), 30, deaths=deaths, **settings))


def test_a_bounded_run_goes_on_from_a_checkpoint_on_other_workers() -> None:
    calm = bounded(small(), 30, iterations=6)
    blocks = blocks_within(30, small().col_entries, 2)
    first = FakeServers(2, 0, RULE.seed)
    first.stop_at = 3 * blocks * small().row_groups(2, 30)
    bounded(small(), 30, iterations=6, servers=first)
    assert same(calm, bounded(small(), 30, iterations=6, servers=first.again(2, 0)))
    on = bounded(small(), 30, workers=3, iterations=6, servers=first.again(3, 0))
    assert on.evaluations[-1].test_rmse == pytest.approx(calm.evaluations[-1].test_rmse, rel=0.02)


@pytest.mark.parametrize("groups", [1, 4])
def test_cells_of_a_turn_share_no_row_and_no_column(groups: int) -> None:
    train = small().train
    counts = (np.bincount(ids) for ids in (train.rows, train.cols))
    cells = dealt(*train, *ranges(*counts, 3, groups), 3, groups)
    assert len(cells) == 3 * 3 * TURNS * groups
    assert sorted(np.concatenate([values for _, _, values in cells])) == sorted(train.values)
    for turn in range(3 * TURNS * groups):
        for side in (0, 1):
            ids = [np.unique(cell[side]) for cell in cells[3 * turn : 3 * turn + 3]]
            together = np.concatenate(ids)
            assert len(np.unique(together)) == len(together)
    for thread in range(3):
        rows = np.concatenate([cell[0] for cell in cells[thread::3]])
        assert 0.9 < 3 * len(rows) / len(train.values) < 1.1
        parts = np.split(np.arange(len(cells)), groups)
        seen = [np.concatenate([cells[n][0] for n in part[thread::3]]) for part in parts]
        together = np.concatenate([np.unique(rows) for rows in seen])
        assert len(np.unique(together)) == len(together)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("update", ["petuum", "nnz", "adagrad"])
def test_threads_do_what_one_does_in_the_same_order(update: str, threads: int) -> None:
    rule = Rule(k=4, update=update, init_step_size=0.05, decay=0.01, biased=True)
    share = small().share(0, 1, Layout(1, True, threads=threads), 0)
    block = share.blocks[0]
    found = []
    for team in (1, threads):
        model = Model(rule, share, 3.0, 310, team)
        side = np.zeros((len(block.cols), rule.side_cols), np.float32)
        columns = Columns(np.zeros((len(block.cols), 4), np.float32), side)
        for iteration in range(3):
            model.descend(block, columns, iteration)
        found.append((model.left, model.row_side, *columns))
    for one, two in zip(*found, strict=True):
        assert np.array_equal(one, two)


def test_a_team_works_at_the_same_time_and_tells_what_went_wrong() -> None:
    meeting = threading.Barrier(3, timeout=10)
    cells = 3 * 3 * TURNS
    assert Team(3).work(lambda n: (meeting.wait(), n)[1], [(n,) for n in range(2 * cells)]) == list(
        range(2 * cells)
    )
    for bad in range(4 * TURNS):
        with pytest.raises(ZeroDivisionError):
            Team(2).work(lambda x: 1 / x, [(n != bad,) for n in range(4 * TURNS)])


def test_a_thread_takes_columns_after_the_next_one_has_had_them() -> None:
    done: list[int] = []

    def note(place: int) -> None:
        time.sleep(0.002 * (place % 3 == 1))
        done.append(place)

    Team(3).work(note, [(place,) for place in range(3 * 3 * TURNS)])
    for place in range(3 * TURNS, 3 * 3 * TURNS):
        turn, thread = divmod(place, 3)
        before = (turn - TURNS) * 3 + (thread + 1) % 3
        assert done.index(before) < done.index(place)


def test_a_file_is_cut_where_its_groups_are(tmp_path: Path) -> None:
    path, plan = tmp_path / "data.h5", Planted(300, 200, 6000, skew=0.7, seed=2)
    convert(Order(str(text(tmp_path, plan)), path, test_fraction=0.1, row_groups=12, col_groups=6))
    runs = [
        bounded(Stored(BlockFile(path), memory_bytes=limit), 60, iterations=3, threads=threads)
        for threads in (1, 2)
        for limit in (None, 1)
    ]
    assert same(runs[0], runs[1])
    assert same(runs[2], runs[3])
    assert runs[0].evaluations[-1].test_rmse == pytest.approx(
        runs[2].evaluations[-1].test_rmse, rel=0.05
    )
    with pytest.raises(Misuse, match="more --row_groups"):
        Stored(BlockFile(path)).row_groups(2, 5)
