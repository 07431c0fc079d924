"""Ratings on disk: the entries of the text, the same work whatever the memory, damage named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from diml.data import stream
from diml.data.blockfile import BlockFile
from diml.data.convert import Order, convert
from diml.data.planted import Planted
from diml.errors import Misuse
from diml.jobs.mf_blocks import SUFFIX
from diml.jobs.mf_data import Entries, Layout, Ratings, choose_layout
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Rule
from diml.jobs.mf_stored import Stored
from tests.unit.mf_cases import run
from tests.unit.test_data_convert import listed, text

PLAN = Planted(300, 200, 6000, skew=0.7, seed=2)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A small file with held-out entries, cut into 12 x 6 groups."""
    path = tmp_path / "data.h5"
    source = str(text(tmp_path, PLAN))
    convert(Order(source, path, test_fraction=0.1, seed=3, row_groups=12, col_groups=6))
    return path


def opened(path: Path, memory_bytes: int | None = None) -> Stored:
    return Stored(BlockFile(path), memory_bytes=memory_bytes)


def in_users_ids(data: Stored, part: Entries) -> Entries:
    facts = data.facts()
    assert facts.row_ids is not None
    assert facts.col_ids is not None
    return Entries(
        facts.row_ids[part.rows].astype(np.int32),
        facts.col_ids[part.cols].astype(np.int32),
        part.values,
    )


@pytest.mark.parametrize("workers", [1, 2, 5, 12])
@pytest.mark.parametrize("blocks", [1, 4, 6])
@pytest.mark.parametrize("memory_bytes", [None, 1])
def test_shares_have_each_entry_once(
    stored: Path, workers: int, blocks: int, memory_bytes: int | None
) -> None:
    data = opened(stored, memory_bytes)
    plain = load(Source(str(stored.with_name("data.txt")), None, test_fraction=0.1, seed=3))
    assert isinstance(plain, Ratings)
    train, test = [], []
    for worker in range(workers):
        share = data.share(worker, workers, Layout(blocks, shuffled=True), seed=0)
        for block in share.blocks:
            for part, found in ((block.train, train), (block.test, test), (block.cold, test)):
                ids = part._replace(
                    rows=share.row_ids[part.rows].astype(np.int32),
                    cols=block.cols[part.cols].astype(np.int32),
                )
                found += listed(in_users_ids(data, ids))
            assert np.array_equal(
                np.bincount(block.train.cols, minlength=len(block.cols)), block.col_entries
            )
        assert share.row_entries.sum() == sum(map(len, share.blocks))
    assert sorted(train) == listed(plain.train)
    assert sorted(test) == listed(plain.test)
    assert data.facts().mean == pytest.approx(plain.facts().mean)


def test_parts_are_balanced(stored: Path) -> None:
    data = opened(stored)
    sizes = [sum(map(len, data.share(worker, 4, Layout(4, True), 0).blocks)) for worker in range(4)]
    assert max(sizes) <= 1.03 * np.mean(sizes)


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 17])
def test_pieces_do_not_change_the_order(
    stored: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = opened(stored).share(1, 3, Layout(2, True), 0).blocks[1].train
    monkeypatch.setattr(stream, "PIECE", piece)
    block = opened(stored, 1).share(1, 3, Layout(2, True), 0).blocks[1]
    for _ in range(2):
        found = block.train
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    lengths = [len(entries.values) for entries in block.pieces()]
    assert all(length == piece for length, _ in pairwise(lengths))


def test_a_pass_that_is_given_up_leaves_the_buffers_alone(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 50)
    one, other = opened(stored, 1).share(0, 2, Layout(2, True), 0).blocks
    expected = [other.train, one.train]
    pieces = one.pieces()
    next(pieces)
    pieces.close()
    assert np.array_equal(other.train.values, expected[0].values)
    assert np.array_equal(one.train.values, expected[1].values)


@pytest.mark.parametrize("update", ["petuum", "adagrad"])
def test_training_has_the_same_bits_in_memory_and_from_disk(stored: Path, update: str) -> None:
    rule = Rule(k=4, update=update, decay=0.01, init_step_size=0.1, biased=True, seed=1)
    ends = [
        run(opened(stored, limit), rule, workers=3, iterations=4, staleness=1)
        for limit in (None, 1)
    ]
    assert np.array_equal(ends[0].left, ends[1].left)
    assert np.array_equal(ends[0].right, ends[1].right)
    assert [e.train_rmse for e in ends[0].evaluations] == [
        e.train_rmse for e in ends[1].evaluations
    ]
    assert ends[0].evaluations[-1].train_rmse < ends[0].evaluations[0].train_rmse


def test_a_block_that_fits_stays_in_memory(stored: Path) -> None:
    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    data = opened(stored, resident + (64 << 20))
    kept = data.share(0, 1, Layout(2, True), 0).blocks[0]
    assert kept.source().__class__.__name__ == "list_iterator"
    streamed = opened(stored, 1).share(0, 1, Layout(2, True), 0).blocks[0]
    assert streamed.source().__class__.__name__ == "generator"


def test_a_test_file_may_have_rows_and_columns_of_its_own(stored: Path) -> None:
    test = stored.with_name("test")
    test.write_text("0 0 1\n0 205 2\n307 1 3\n")
    data = load(Source(str(stored), None, str(test)))
    facts = data.facts()
    assert (facts.n_rows, facts.n_cols, facts.test_entries) == (308, 206, 3)
    blocks = [b for w in range(2) for b in data.share(w, 2, Layout(3, True), 0).blocks]
    assert sum(len(block.test.values) for block in blocks) == 1
    assert sum(len(block.cold.values) for block in blocks) == 2


def test_what_cannot_be_dealt_out_is_refused(stored: Path) -> None:
    data = opened(stored)
    with pytest.raises(Misuse, match=r"12 row groups cannot be dealt out in 13.*--row_groups 13"):
        data.share(0, 13, Layout(1, True), 0)
    with pytest.raises(Misuse, match=r"6 column groups cannot be dealt out in 7.*--col_groups 7"):
        data.share(0, 1, Layout(7, True), 0)
    assert choose_layout(4, 5, data.col_entries, 1.0, None, data.most_blocks).blocks == 6
    with pytest.raises(Misuse, match="hold out with `diml convert"):
        load(Source(str(stored), None, test_fraction=0.5))


def test_damage_in_the_entries_is_named_when_they_are_read(stored: Path) -> None:
    file = BlockFile(stored)
    whole = stored.read_bytes()
    chance = np.random.default_rng(1)
    for name in ("rows", "cols", "values"):
        for place in chance.integers(0, 4 * file.facts.entries, 8).tolist():
            bad = bytearray(whole)
            bad[file.offsets[name] + place] ^= 1 << int(chance.integers(8))
            stored.write_bytes(bad)
            with pytest.raises(Misuse, match=r"data.h5: damaged .the entries of row group"):
                opened(stored).share(0, 1, Layout(1, True), 0)


def test_a_text_with_a_limit_is_converted_beside_it_once(tmp_path: Path) -> None:
    path = text(tmp_path, PLAN)
    source = Source(str(path), None, test_fraction=0.1, seed=3, memory_bytes=1 << 20)
    data = load(source)
    assert isinstance(data, Stored)
    made = Path(str(path) + SUFFIX)
    first = made.stat().st_ino
    assert load(source).fingerprint == data.fingerprint
    assert made.stat().st_ino == first
    other = load(Source(str(path), None, test_fraction=0.1, seed=4, memory_bytes=1 << 20))
    assert other.fingerprint != data.fingerprint
    indexed = load(Source(str(path), None, offsetsfile=str(made)))
    assert indexed.fingerprint == other.fingerprint
    path.write_text("0 0 1\n")
    with pytest.raises(Misuse, match="convert it again"):
        load(Source(str(path), None, offsetsfile=str(made)))
