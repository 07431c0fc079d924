"""Ratings on disk: the entries of the text, the same work whatever the memory, damage named."""

from __future__ import annotations

import os
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


def test_a_pass_that_is_given_up_leaves_the_next_ones_alone(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 50)
    one, other = opened(stored, 1).share(0, 2, Layout(2, True), 0).blocks
    expected = [other.train, one.train]
    next(one.pieces())
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


def read_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes the entry at which each piece that is read from the file begins."""
    read: list[int] = []
    fill = stream._Reading.fill

    def noted(
        self: stream._Reading, buffer: stream._Buffer, runs: list[stream._Run]
    ) -> stream.Piece:
        read.append(runs[0].first)
        return fill(self, buffer, runs)

    monkeypatch.setattr(stream._Reading, "fill", noted)
    return read


@pytest.mark.parametrize(("fitting", "expected"), [(None, 0), (0, 14), (5, 9), (7, 7), (100, 0)])
def test_the_first_pieces_that_fit_stay_in_memory(
    stored: Path, fitting: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 400)
    read = read_pieces(monkeypatch)
    whole = [b.train for b in opened(stored).share(0, 1, Layout(2, True), 0).blocks]
    room = None if fitting is None else fitting * 400 * 12 + 100
    monkeypatch.setattr(Stored, "_room", lambda self: room)
    blocks = opened(stored).share(0, 1, Layout(2, True), 0).blocks
    for _ in range(2):
        read.clear()
        for block, entries in zip(blocks, whole, strict=True):
            for found, wanted in zip(block.train, entries, strict=True):
                assert np.array_equal(found, wanted)
        assert len(read) == expected


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
    for name, width in (("places", file.facts.place_bytes), ("values", 4)):
        for place in chance.integers(0, width * file.facts.entries, 12).tolist():
            bad = bytearray(whole)
            bad[file.offsets[name] + place] ^= 1 << int(chance.integers(8))
            stored.write_bytes(bad)
            with pytest.raises(Misuse, match=r"data.h5: damaged .the entries of row group"):
                opened(stored).share(0, 1, Layout(1, True), 0)


@pytest.mark.parametrize("piece", [7, 1 << 16])
def test_what_comes_from_the_disk_is_checked_each_time(
    stored: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", piece)
    block = opened(stored, 1).share(1, 2, Layout(1, True), 0).blocks[0]
    expected = block.train
    file = BlockFile(stored)
    cell = 3 * 12 + 8  # row group 8 is worker 1's
    place = (int(file.cell_ends[cell]) + int(file.cell_ends[cell + 1])) // 2
    with open(stored, "r+b") as damaged:
        damaged.seek(file.offsets["values"] + 4 * place)
        damaged.write(b"\x12")
    assert len(block.train.values) == len(expected.values)
    monkeypatch.setattr(stream, "read_cached", lambda *_: False)
    with pytest.raises(Misuse, match="the entries of row group 8, column group 3 differ"):
        block.train  # noqa: B018


def test_an_id_that_is_none_is_refused_in_every_pass(stored: Path) -> None:
    block = opened(stored, 1).share(0, 2, Layout(1, True), 0).blocks[0]
    file = BlockFile(stored)
    with open(stored, "r+b") as damaged:
        width = file.facts.place_bytes
        damaged.seek(file.offsets["places"] + width * int(file.cell_ends[2 * 12 + 1]))
        damaged.write(b"\xff" * width)
    with pytest.raises(Misuse, match="the entries of row group 1, column group 2 differ"):
        block.train  # noqa: B018


def test_a_file_that_has_become_shorter_is_named(stored: Path) -> None:
    block = opened(stored, 1).share(0, 2, Layout(1, True), 0).blocks[0]
    os.truncate(stored, BlockFile(stored).offsets["values"])
    with pytest.raises(Misuse, match=r"data\.h5: cannot read it: it ends at byte"):
        block.train  # noqa: B018


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
