"""The file of `diml convert`: every entry once, in its cell, whatever the memory."""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from diml.cli import main
from diml.data import convert as module
from diml.data.blockfile import BlockFile, is_block_file
from diml.data.convert import Order, convert
from diml.data.planted import Planted, planted
from diml.errors import Misuse
from diml.jobs.flags import size
from diml.jobs.mf_data import Layout
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_stored import Stored


def text(folder: Path, plan: Planted) -> Path:
    """A planted matrix as text."""
    path = folder / "data.txt"
    t = planted(plan)
    lines = zip(t.rows.tolist(), t.cols.tolist(), t.values.tolist(), strict=True)
    path.write_text("".join(f"{i} {j} {v!r}\n" for i, j, v in lines))
    return path


def ids_of(file: BlockFile) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the entries to train on, by the ids of the file."""
    cells = np.repeat(np.arange(len(file.cell_ends) - 1), np.diff(file.cell_ends))
    places, bits = file.read("places").astype(np.int64), file.facts.col_bits
    col_group, row_group = np.divmod(cells, file.facts.row_groups)
    return file.row_ends[row_group] + (places >> bits), file.col_ends[col_group] + places % 2**bits


def entries_of(file: BlockFile, held_out: bool = False) -> list[tuple[int, int, float]]:
    """Entries with the ids of the text."""
    rows, cols = (file.read("test_rows"), file.read("test_cols")) if held_out else ids_of(file)
    rows, cols = file.read("row_ids")[rows], file.read("col_ids")[cols]
    values = file.read("test_values" if held_out else "values")
    return sorted(zip(rows.tolist(), cols.tolist(), values.tolist(), strict=True))


def listed(entries: tuple[npt.NDArray[np.generic], ...]) -> list[tuple[int, int, float]]:
    return sorted(zip(*(array.tolist() for array in entries), strict=True))


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_every_entry_is_in_its_cell_and_held_out_as_the_job_does(
    tmp_path: Path, fraction: float
) -> None:
    source = text(tmp_path, Planted(300, 150, 4000, skew=0.7))
    order = Order(str(source), tmp_path / "out.h5", test_fraction=fraction, seed=5)
    file = convert(replace(order, row_groups=7, col_groups=5))
    plain = load(Source(str(source), None, test_fraction=fraction, seed=5))
    assert entries_of(file) == listed(plain.train)
    assert entries_of(file, held_out=True) == listed(plain.test)
    assert file.facts.mean == pytest.approx(plain.facts().mean)
    ends = file.cell_ends
    rows, cols = ids_of(file)
    row_group = np.searchsorted(file.row_ends, rows, side="right") - 1
    col_group = np.searchsorted(file.col_ends, cols, side="right") - 1
    assert np.array_equal(np.repeat(np.arange(35), np.diff(ends)), col_group * 7 + row_group)
    ids = file.read("row_ids")
    assert np.array_equal(file.read("row_entries"), np.bincount(rows, minlength=len(ids)))
    assert np.array_equal(np.sort(ids), np.arange(len(ids)))
    sizes = np.bincount(row_group)
    assert sizes.max() <= 1.02 * sizes.mean()
    with h5py.File(order.target) as seen:
        assert np.array_equal(seen["places"][:], file.read("places"))


def test_the_memory_does_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = text(tmp_path, Planted(200, 100, 3000))
    order = Order(str(source), tmp_path / "much.h5", row_groups=6, col_groups=4, seed=1)
    convert(order)
    monkeypatch.setattr(module, "_CHUNK", 77)
    time.sleep(1.0)  # HDF5 keeps times, in seconds, unless it is told not to
    convert(replace(order, target=tmp_path / "little.h5", memory_bytes=4000))
    assert (tmp_path / "little.h5").read_bytes() == (tmp_path / "much.h5").read_bytes()
    other = convert(replace(order, target=tmp_path / "other.h5", seed=2))
    assert other.fingerprint != BlockFile(order.target).fingerprint
    assert sorted(found.name for found in tmp_path.iterdir()) == [
        *("data.txt", "little.h5", "much.h5", "other.h5")
    ]


@pytest.mark.parametrize(("ids", "width"), [(250, 2), (40_000, 4), (70_000, 8)])
def test_a_place_is_as_wide_as_it_must_be(tmp_path: Path, ids: int, width: int) -> None:
    """One group of rows and one of columns: a place holds both ids."""
    chance = np.random.default_rng(1)
    rows, cols = chance.integers(0, ids, (2, 500))
    rows[0] = cols[0] = ids - 1
    pairs = sorted(set(zip(rows.tolist(), cols.tolist(), strict=True)))
    source = tmp_path / "in"
    source.write_text("".join(f"{i} {j} {n}\n" for n, (i, j) in enumerate(pairs)))
    file = convert(Order(str(source), tmp_path / "out.h5", row_groups=1, col_groups=1))
    assert file.facts.place_bytes == width
    expected = [(i, j, float(n)) for n, (i, j) in enumerate(pairs)]
    assert entries_of(file) == expected
    block = Stored(file).share(0, 1, Layout(1, True), 0).blocks[0].train
    found = (file.read("row_ids")[block.rows], file.read("col_ids")[block.cols], block.values)
    assert listed(found) == expected


def test_a_matrix_smaller_than_its_groups(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("3 1 2.5\n")
    file = convert(Order(str(tmp_path / "in"), tmp_path / "out.h5"))
    assert (file.facts.n_rows, file.facts.n_cols, file.facts.row_groups) == (4, 2, 4)
    assert entries_of(file) == [(3, 1, 2.5)]


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("0 0 1\n0 1\n")
    with pytest.raises(Misuse, match="bad, line 2: fewer"):
        convert(Order(str(tmp_path / "bad"), tmp_path / "out.h5"))
    (tmp_path / "huge").write_text("0 0 1\n0 2 1\n2147483647 0 1\n")
    with pytest.raises(Misuse, match="huge, line 3: the row id is too large"):
        convert(Order(str(tmp_path / "huge"), tmp_path / "out.h5"))
    with pytest.raises(Misuse, match="cannot write it"):
        convert(Order(str(tmp_path / "bad"), tmp_path / "no" / "out.h5"))
    with pytest.raises(Misuse, match="cannot write it"):
        convert(Order(str(tmp_path / "bad"), tmp_path / "bad" / "out.h5"))
    assert sorted(found.name for found in tmp_path.iterdir()) == ["bad", "huge"]


def test_too_many_cells_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("".join(f"{n} {n} 1\n" for n in range(0, 3000, 7)))
    order = Order(str(tmp_path / "in"), tmp_path / "out.h5", row_groups=3000, col_groups=3000)
    with pytest.raises(Misuse, match="2997 x 2997 cells are more than"):
        convert(order)
    assert [found.name for found in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("step", [1, -4, 8])
@pytest.mark.parametrize("name", ["test_values", "row_ids", "places", "cell_ends"])
def test_a_dataset_that_the_head_has_elsewhere_is_refused(
    name: str, step: int, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("".join(f"{n % 40} {n % 31} {n}\n" for n in range(1240)))
    order = Order(str(tmp_path / "in"), tmp_path / "out.h5", test_fraction=0.2)
    at = convert(order).offsets[name]
    text = order.target.read_bytes()
    there, moved = (f'"{name}": {place}'.encode() for place in (at, at + step))
    assert there in text and len(there) == len(moved)
    order.target.write_bytes(text.replace(there, moved, 1))
    with pytest.raises(Misuse, match="damaged"):
        BlockFile(order.target)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    assert is_block_file(path)
    with pytest.raises(Misuse, match="not a file of `diml convert`"):
        BlockFile(path)
    path.write_bytes(b'{"diml-blocks": 1, "facts": {}}')
    assert is_block_file(path)
    with pytest.raises(Misuse, match=r"blocks in the format of another version: make it again"):
        BlockFile(path)
    path.write_text("0 0 1\n")
    assert not is_block_file(path)
    with pytest.raises(Misuse, match="absent: cannot read it"):
        BlockFile(tmp_path / "absent")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = text(tmp_path, Planted(50, 40, 600))
    out = tmp_path / "out.h5"
    words = ["convert", str(source), str(out), "--row-groups", "5", "--col_groups", "4"]
    assert main([*words, "--test-fraction", "0.1", "--memory-limit", "1MB", "--seed", "2"]) == 0
    said = capsys.readouterr().out
    facts = BlockFile(out).facts
    assert f"{facts.entries} entries, {facts.test_entries} held out; 5 x 4 cells" in said
    offsets = tmp_path / "offsets"
    offsets.write_text("50 40 600\n0\n")
    assert main([*words, "--offsetsfile", str(offsets)]) == 0
    assert main([*words, "--test", str(source)]) == 0
    assert BlockFile(out).facts.test_entries == 600
    assert main(["convert", str(out), str(tmp_path / "again.h5")]) == 2
    assert "this is HDF5 already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{in} {out} --test {in} --test_fraction 0.1", "without --test_fraction"),
        ("{in} {out} --memory-limit much", "is not a size"),
        ("{in} {out} --row_groups 0", "from 1 on"),
        ("{in}", "OUT.h5"),
        ("{in}.absent {out}", "cannot read it"),
        ("{in} {out} --offsetsfile {in}", "in, line 1: not a line `rows columns entries`"),
    ],
)
def test_a_bad_command_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    (tmp_path / "in").write_text("0 0 1\n")
    places = {"in": str(tmp_path / "in"), "out": str(tmp_path / "out.h5")}
    assert main(["convert", *(word.format(**places) for word in line.split())]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [found.name for found in tmp_path.iterdir()] == ["in"]


def test_sizes() -> None:
    found = [size(text) for text in ("1000", "200MB", "1.5GB", "64MiB", "2k", "3 kB")]
    assert found == [1000, 200 * 10**6, 15 * 10**8, 64 << 20, 2000, 3000]
    for bad in ("", "MB", "-1", "1e9", "1 XB", "２MB"):
        with pytest.raises(ArgumentTypeError, match="is not a size"):
            size(bad)
