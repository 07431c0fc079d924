"""Any input: an answer or one clear line that names the file and the place; never a silent skip.

What is right is said by a slow reader of the same grammar, written here in plain Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diml.data.blockfile import BlockFile
from diml.data.convert import Order, convert
from diml.data.offsets import read_offsets
from diml.data.triplets import read_triplets
from diml.errors import Misuse
from diml.jobs.mf_data import Layout, Ratings
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_stored import Stored
from tests.unit.test_data_convert import entries_of

Read = list[tuple[int, int, float]]
FUZZ = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MOST = 2**31 - 1
BANNER = "%%MatrixMarket matrix coordinate real general"

good_lines = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(["", " ", "\t"]),
    st.integers(0, 12),
    st.sampled_from([" ", "\t", "  "]),
    st.integers(0, 12),
    st.sampled_from([" ", " \t"]),
    st.sampled_from(["1", "-2.5", "3e2", "+.5", "0", "7.", "1e-3", "2 ", "4\r"]),
)
odd_lines = st.sampled_from(
    [
        *("", "# remark", "% 1 2 3", "\r", "   ", "#", "0 1", "1", "1 2 3 4", "x y z"),
        *("-1 0 1", "0 -1 1", "1 1 nan", "1 1 inf", "1 1 1e39", "١ 1 2", "1 ２ 3", "1\u00a01 2"),
        *("9999999999 1 1", "1 99999999999999999999 1", "2147483649 1 1", "1,1,1", "1 1 1_0"),
        *("0 0 1", "0 1 1", "1 0 1", "\x00", "1 1 \x00", "\ufeff1 1 1", "1 1 0x10", "1.0 1 1"),
    ]
)
texts = st.builds(
    lambda lines, end, cut: ("\n".join(lines) + end)[: len("\n".join(lines)) + 1 - cut],
    st.lists(st.one_of(good_lines, good_lines, good_lines, odd_lines), max_size=12),
    st.sampled_from(["\n", "", "\r\n"]),
    st.integers(0, 4),
)


def slowly(text: str, first: int, shape: tuple[int, int] | None, start: int = 0) -> Read | None:
    """The entries of `row col value` lines, or None where any line is bad."""
    found: Read = []
    for line in text.encode()[start:].split(b"\n"):
        bare = line.strip(b" \t\r")
        if not bare or bare[:1] in b"#%":
            continue
        fields = re.split(rb"[ \t\r]+", bare)
        numbers = len(fields) == 3 and re.fullmatch(
            rb"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", fields[2]
        )
        if not numbers or not all(re.fullmatch(rb"[0-9]+", field) for field in fields[:2]):
            return None
        row, col = (int(field) - first for field in fields[:2])
        sizes = shape or (MOST, MOST)
        with np.errstate(over="ignore"):
            value = np.float32(float(fields[2]))
        if not (0 <= row < sizes[0] and 0 <= col < sizes[1] and np.isfinite(value)):
            return None
        found.append((row, col, float(value)))
    return found


def judged(path: Path, expected: Read | None, read: Callable[[], Read]) -> None:
    """What was read is what is expected, or both refuse, in one line with file and line number."""
    try:
        found = read()
    except Misuse as error:
        said = str(error)
        assert not expected, said
        assert said.startswith(str(path)), said
        assert "\n" not in said
        if expected is None:
            assert re.match(rf"{re.escape(str(path))}(, line \d+)?: .", said), said
    else:
        assert expected, found
        assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
        np.testing.assert_allclose([e[2] for e in found], [e[2] for e in expected], rtol=1e-6)


def loaded(path: Path, **how: Any) -> Read:
    data = load(Source(str(path), None, **how))
    assert isinstance(data, Ratings)
    return list(zip(*(array.tolist() for array in data.train), strict=True))


@FUZZ
@given(text=texts, one_based=st.booleans())
def test_text(tmp_path: Path, text: str, one_based: bool) -> None:
    path = tmp_path / "data"
    path.write_bytes(text.encode())
    bom = text.startswith("\ufeff")
    expected = None if bom else slowly(text, int(one_based), None)
    judged(path, expected, lambda: loaded(path, one_based=one_based))
    if expected:
        file = convert(Order(str(path), tmp_path / "out.h5", one_based=one_based))
        assert entries_of(file) == sorted(expected)
    else:
        with pytest.raises(Misuse, match=re.escape(str(path))):
            convert(Order(str(path), tmp_path / "out.h5", one_based=one_based))


@FUZZ
@given(
    text=texts,
    banner=st.sampled_from([BANNER] * 4 + [BANNER.upper(), BANNER[:-3], BANNER + "x", "%%Matrix"]),
    size=st.sampled_from(
        ["13 13 {}"] * 4 + ["3 3 {}", "13 13 99", "13 13", "a b c", "", "1e3 1 1"]
    ),
)
def test_matrix_market(tmp_path: Path, text: str, banner: str, size: str) -> None:
    path = tmp_path / "data"
    whole = slowly(text, 1, (13, 13))
    head = f"{banner}\n% remark\n{size.format(len(whole or ()))}\n"
    path.write_bytes((head + text).encode())
    shape = {"13": (13, 13), "3 ": (3, 3)}.get(size[:2])
    good = banner in (BANNER, BANNER.upper()) and "{}" in size
    expected = slowly(text, 1, shape) if good and shape else None
    if expected is not None and len(expected) != len(whole or ()):
        expected = None
    if banner == "%%Matrix":
        expected = slowly(head + text, 0, None)
    judged(path, expected, lambda: loaded(path))


@FUZZ
@given(
    cuts=st.lists(st.integers(-2, 60), max_size=6),
    head=st.sampled_from(["13 13 {}"] * 4 + ["4 4 {}", "13 13 99", "13 13", "x 1 1", "١ 1 1", ""]),
    separator=st.sampled_from(["\n", " ", "\r\n", "\t"]),
    honest=st.booleans(),
)
def test_offsets(tmp_path: Path, cuts: list[int], head: str, separator: str, honest: bool) -> None:
    data, path = tmp_path / "data", tmp_path / "data.offsets"
    text = "".join(f"{n % 13} {(5 * n) % 13} {n}.5\n" for n in range(9))
    data.write_text(text)
    starts = [0] + [n + 1 for n, letter in enumerate(text[:-1]) if letter == "\n"]
    given_starts = sorted({starts[abs(c) % 9] for c in cuts} | {0}) if honest else cuts
    path.write_text(head.format(9) + "\n" + separator.join(map(str, given_starts)))
    rises = all(a < b for a, b in pairwise(given_starts))
    right = given_starts[:1] == [0] and rises and set(given_starts) <= set(starts)
    expected = slowly(text, 0, None) if right and head == "13 13 {}" else None
    try:
        found = loaded(data, offsetsfile=str(path))
    except Misuse as error:
        assert expected is None, error
        assert str(data) in str(error)
        assert "\n" not in str(error)
    else:
        assert expected == found


@FUZZ
@given(raw=st.binary(max_size=200), data=st.data())
def test_any_bytes(tmp_path: Path, raw: bytes, data: st.DataObject) -> None:
    path = tmp_path / "data"
    path.write_bytes(raw)
    for read in (read_offsets, read_triplets, BlockFile, lambda p: load(Source(str(p), None))):
        try:
            read(path)
        except Misuse as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def block_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file of blocks, and its bytes while they are whole."""
    folder = tmp_path_factory.mktemp("blocks")
    chance = np.random.default_rng(0)
    lines = (f"{i} {j} {n}\n" for n, (i, j) in enumerate(chance.integers(0, 20, (300, 2)).tolist()))
    (folder / "in").write_text("".join(lines))
    order = Order(str(folder / "in"), folder / "out.h5", test_fraction=0.1)
    convert(order)
    return order.target, order.target.read_bytes()


def everything(path: Path) -> list[Any]:
    """All that training reads of a file."""
    data = load(Source(str(path), None))
    assert isinstance(data, Stored)
    blocks = [b for w in range(2) for b in data.share(w, 2, Layout(3, True), 0).blocks]
    kept = [array.tolist() for b in blocks for part in (b.train, b.test, b.cold) for array in part]
    facts = data.facts()
    assert facts.row_ids is not None
    assert facts.col_ids is not None
    return [*kept, facts.row_ids.tolist(), facts.col_ids.tolist(), facts.mean]


@FUZZ
@given(data=st.data())
def test_a_damaged_block_file(block_file: tuple[Path, bytes], data: st.DataObject) -> None:
    path, whole = block_file
    path.write_bytes(whole)
    expected = everything(path)
    bad = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        # The head and the index are small: they get as many hits as the entries.
        top = data.draw(st.sampled_from([64, 1024, len(whole)]))
        at = data.draw(st.integers(0, top - 1))
        bad[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 100, 5000]))
    path.write_bytes(bad[: len(bad) - cut])
    changed = bytes(bad) != whole or cut
    try:
        found = everything(path)
    except Misuse as error:
        assert changed
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
    else:
        assert found == expected
    finally:
        path.write_bytes(whole)
