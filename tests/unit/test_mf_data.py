"""Loading, holding out, sharing: every entry in one place, every block at one worker."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from diml.data.cells import CELL_COLS
from diml.data.planted import Planted
from diml.errors import Misuse
from diml.jobs.mf_data import Layout, Ratings, choose_layout, share_of
from diml.jobs.mf_load import Source, load
from tests.unit.mf_cases import SAMPLE, sample

PLAN = Planted(300, 200, 5000, skew=0.7, seed=2)


def ratings() -> Ratings:
    return load(Source(None, PLAN, test_fraction=0.1, seed=2))


def test_the_sample_is_here_with_all_its_entries() -> None:
    assert len(SAMPLE.read_text().splitlines()) == 81
    assert (sample().n_rows, sample().n_cols, len(sample().train.values)) == (9, 9, 81)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("blocks", [1, 3, 7])
@pytest.mark.parametrize("shuffled", [False, True])
def test_shares_have_each_entry_once(workers: int, blocks: int, shuffled: bool) -> None:
    data = ratings()
    train, test = [], []
    owners = np.zeros(data.n_rows, int)
    for worker in range(workers):
        share = share_of(data, worker, workers, Layout(blocks, shuffled), seed=0)
        owners[share.row_ids] += 1
        assert len(share.blocks) == blocks
        for block in share.blocks:
            for part, found in ((block.train, train), (block.test, test), (block.cold, test)):
                rows, cols = share.row_ids[part.rows], block.cols[part.cols]
                found += list(zip(rows.tolist(), cols.tolist(), part.values.tolist(), strict=True))
            counts = np.bincount(block.train.cols, minlength=len(block.cols))
            assert np.array_equal(counts, block.col_entries)
        own = sum(len(block.train.values) for block in share.blocks)
        assert own == share.row_entries.sum()
    assert (owners == 1).all()
    for entries, found in ((data.train, train), (data.test, test)):
        expected = zip(*(array.tolist() for array in entries), strict=True)
        assert sorted(expected) == sorted(found)


@pytest.mark.parametrize("workers", [2, 3, 4, 7])
@pytest.mark.parametrize("staleness", [0, 1, 5])
def test_no_two_workers_change_a_column_within_the_bound(workers: int, staleness: int) -> None:
    data = ratings()
    entries = np.bincount(data.train.cols, minlength=data.n_cols)
    layout = choose_layout(workers, staleness, entries, eta=1.0)
    assert layout.blocks == workers * (staleness + 1)
    shares = [share_of(data, worker, workers, layout, seed=0) for worker in range(workers)]
    touched: dict[int, list[tuple[int, int]]] = {}
    for clock in range(2 * layout.blocks):
        for share in shares:
            for col in share.block_at(clock).cols.tolist():
                touched.setdefault(col, []).append((clock, share.worker))
    for uses in touched.values():
        for (one, first), (two, second) in pairwise(uses):
            # A reader in clock c sees what is stamped up to c - staleness - 1.
            assert first == second or one <= two - staleness - 1
    for share in shares:
        seen = {id(share.block_at(clock)) for clock in range(layout.blocks)}
        assert len(seen) == layout.blocks


def test_layouts() -> None:
    few, many = np.array([9] * 9), np.array([1000] * 50)
    assert choose_layout(4, 0, few, 0.05) == Layout(1, shuffled=False)
    assert choose_layout(4, 5, few, 0.05) == Layout(9, shuffled=True)
    assert choose_layout(1, 5, few, 0.05) == Layout(1, shuffled=False)
    assert choose_layout(4, 0, many, 0.05) == Layout(4, shuffled=True)
    assert choose_layout(1, 0, many, 0.05) == Layout(1, shuffled=True)
    assert choose_layout(4, 0, many, 0.05, blocks=9) == Layout(9, shuffled=True)


def test_entries_stand_cell_by_cell_and_shares_repeat() -> None:
    data = load(Source(None, Planted(50, 3000, 20_000)))
    share = share_of(data, 0, 1, Layout(1, shuffled=True), seed=1)
    cells = share.blocks[0].train.cols // CELL_COLS
    assert np.array_equal(cells, np.sort(cells))
    again = share_of(data, 0, 1, Layout(1, shuffled=True), seed=1)
    other = share_of(data, 0, 1, Layout(1, shuffled=True), seed=2)
    assert np.array_equal(share.blocks[0].train.rows, again.blocks[0].train.rows)
    assert not np.array_equal(share.blocks[0].train.rows, other.blocks[0].train.rows)


def test_entries_of_workers_are_balanced_under_skew() -> None:
    data = load(Source(None, Planted(5000, 2000, 100_000, skew=0.9)))
    layout = Layout(4, shuffled=True)
    shares = [share_of(data, worker, 4, layout, seed=0) for worker in range(4)]
    sizes = [sum(len(block.train.values) for block in share.blocks) for share in shares]
    assert max(sizes) <= 1.01 * np.mean(sizes)
    in_clock = np.array(
        [[len(share.block_at(c).train.values) for share in shares] for c in range(4)]
    )
    assert in_clock.max(axis=1).sum() <= 1.15 * in_clock.mean(axis=1).sum()


def test_holding_out_is_seeded_and_of_the_size_asked() -> None:
    first, again = ratings(), ratings()
    assert np.array_equal(first.test.rows, again.test.rows)
    assert len(first.train.values) + len(first.test.values) == 5000
    assert 400 < len(first.test.values) < 600
    assert first.noise == 0.5


def test_a_test_file_may_have_rows_and_columns_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("0 0 1\n1 1 2\n")
    (tmp_path / "test").write_text("0 0 1\n0 5 2\n7 1 3\n")
    data = load(Source(str(tmp_path / "train"), None, str(tmp_path / "test")))
    assert (data.n_rows, data.n_cols) == (8, 6)
    blocks = [share_of(data, w, 2, Layout(1, False), seed=0).blocks[0] for w in range(2)]
    assert sum(len(block.test.values) for block in blocks) == 1
    assert sum(len(block.cold.values) for block in blocks) == 2


def test_ids_beyond_what_a_matrix_can_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("0 0 1\n1 9223372036854775807 2\n")
    with pytest.raises(Misuse, match="line 2: the column id is too large: below 2147483647"):
        load(Source(str(path), None))


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("0 0 1\n")
    with pytest.raises(Misuse, match="no entry is left"):
        for seed in range(20):
            load(Source(str(path), None, test_fraction=0.9, seed=seed))
