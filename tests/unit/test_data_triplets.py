"""The readers: what they accept, what they refuse and how, and that no line is lost or doubled."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.data import triplets
from diml.data.design_text import read_libsvm_rows
from diml.data.triplets import Triplets, read_triplets
from diml.errors import Misuse


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def entries(read: Triplets) -> list[tuple[int, int, float]]:
    return list(zip(read.rows.tolist(), read.cols.tolist(), map(float, read.values), strict=True))


def test_plain_lines(tmp_path: Path) -> None:
    read = read_triplets(write(tmp_path, "0 1 2.5\n3 0 -1e-2\n"))
    assert entries(read) == [(0, 1, 2.5), (3, 0, float(np.float32(-0.01)))]
    assert (read.n_rows, read.n_cols) == (4, 2)
    assert read.rows.dtype == np.int64
    assert read.values.dtype == np.float32


def test_blanks_comments_line_ends_and_no_last_newline(tmp_path: Path) -> None:
    text = "# made by hand\r\n\r\n  0\t1   2\r\n% another remark\n\n \t\n1 1 3 \t\n2 2 .5"
    assert entries(read_triplets(write(tmp_path, text))) == [(0, 1, 2.0), (1, 1, 3.0), (2, 2, 0.5)]


def test_an_entry_that_stands_twice_is_kept_twice(tmp_path: Path) -> None:
    assert len(read_triplets(write(tmp_path, "0 0 1\n0 0 2\n"))) == 2


@pytest.mark.parametrize(
    "number",
    [
        *("0", "-0", "7", "+7", "1.", ".5", "-.5", "1e3", "1E+3", "1e-3", "00012", "1e-45"),
        *("123456789012345678901234567890", "0.1234567890123456789012345", "1e-400", "0e999"),
        *("3.4e38", "3.4028234663852886e+38", "1e22", "1e23", "9007199254740993", "16777217"),
    ],
)
def test_numbers_are_as_numpy_reads_them(tmp_path: Path, number: str) -> None:
    value = read_triplets(write(tmp_path, f"0 0 {number}\n")).values[0]
    assert value == np.float32(float(number))


def test_one_based_ids(tmp_path: Path) -> None:
    read = read_triplets(write(tmp_path, "1 1 5\n2 3 6\n"), one_based=True)
    assert entries(read) == [(0, 0, 5.0), (1, 2, 6.0)]
    assert (read.n_rows, read.n_cols) == (2, 3)


BAD = {
    "two fields": "0 1",
    "one field": "0",
    "four fields": "0 1 2 3",
    "negative row": "-1 1 2",
    "negative column": "1 -1 2",
    "signed id": "+1 1 2",
    "NaN": "0 1 nan",
    "infinity": "0 1 inf",
    "too large for float32": "0 1 1e39",
    "far too large": "0 1 1e99999999999999999999",
    "fraction as id": "1.0 1 2",
    "exponent as id": "1 1e2 2",
    "id beyond int64": "9223372036854775808 1 2",
    "column id beyond int64": "1 99999999999999999999999999 2",
    "Unicode digits": "١ 1 2",
    "Unicode digits as value": "1 1 ٢",
    "Unicode blank": "1\u00a01 2",
    "comma": "1,1,2",
    "hexadecimal": "0x1 1 2",
    "cut exponent": "0 1 1e",
    "two points": "0 1 1.2.3",
    "lone sign": "0 1 -",
    "NUL": "0 1 \0",
    "word": "row col value",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("parts", [1, 3])
def test_a_bad_line_is_named(tmp_path: Path, line: str, parts: int) -> None:
    path = write(tmp_path, "# remark\n" + "0 0 1\n" * 5 + f"\n{line}\n" + "0 0 1\n" * 5)
    with pytest.raises(Misuse) as caught:
        for part in range(parts):
            read_triplets(path, part, parts)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 8: ")
    assert "\n" not in message


def test_an_id_0_in_one_based_data_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "# remark\n1 1 5\n\n0 1 6\n")
    with pytest.raises(Misuse, match=r"line 4: an id 0 in data whose ids begin at 1: '0 1 6'"):
        read_triplets(path, one_based=True)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_file_without_entries(tmp_path: Path, text: str) -> None:
    with pytest.raises(Misuse, match="no entries"):
        read_triplets(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="No such file"):
        read_triplets(tmp_path / "absent")
    with pytest.raises(Misuse, match="directory"):
        read_triplets(tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_is_called_that(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "packed"
    path.write_bytes(pack(b"0 0 1\n"))
    for read in (read_triplets, read_libsvm_rows):
        with pytest.raises(Misuse, match=r"packed: compressed by \w+: unpack it first"):
            read(path)


def test_matrix_market(tmp_path: Path) -> None:
    text = "%%MatrixMarket matrix coordinate real general\n% by us\n\n4 5 2\n1 1 2.5\n4 2 3\n"
    read = read_triplets(write(tmp_path, text))
    assert entries(read) == [(0, 0, 2.5), (3, 1, 3.0)]
    assert (read.n_rows, read.n_cols) == (4, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%%MatrixMarket matrix array real general\n2 2\n1\n", "line 1: not a header"),
        ("%%MatrixMarket matrix coordinate pattern general\n2 2 1\n1 1\n", "line 1: of Matrix"),
        ("%%MatrixMarket matrix coordinate real symmetric\n2 2 1\n1 1 1\n", "line 1: of Matrix"),
        ("%%MatrixMarket matrix coordinate real general\n2 2\n1 1 1\n", "line 2: not a size line"),
        ("%%MatrixMarket matrix coordinate real general\n%\n", "size is missing"),
        (
            "%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 1\n",
            "2 entries are promised for it",
        ),
        ("%%MatrixMarket matrix coordinate real general\n2 2 1\n3 1 1\n", "line 3: an id outside"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 1\n0 1 1\n", "line 3: an id outside"),
    ],
)
def test_bad_matrix_market(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        read_triplets(write(tmp_path, text))


def test_format_is_obeyed(tmp_path: Path) -> None:
    plain = write(tmp_path, "0 0 1\n")
    with pytest.raises(Misuse, match="not a header"):
        read_triplets(plain, format="matrixmarket")
    with pytest.raises(Misuse, match="none of"):
        read_triplets(plain, format="csv")


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("chunk", [40, 64, 1 << 24])
def test_parts_have_each_line_once(
    tmp_path: Path, parts: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triplets, "_CHUNK_BYTES", chunk)
    lines = [f"{i} {i * i} {i}.5" + "\r" * (i % 2) for i in range(100)]
    path = write(tmp_path, "%  a remark at the top\n" + "\n".join(lines))
    read = [entry for part in range(parts) for entry in entries(read_triplets(path, part, parts))]
    assert read == [(i, i * i, i + 0.5) for i in range(100)]


def test_matrix_market_in_parts(tmp_path: Path) -> None:
    head = "%%MatrixMarket matrix coordinate integer general\n" + "% remark\n" * 20 + "9 9 30\n"
    path = write(tmp_path, head + "".join(f"{i % 9 + 1} 1 {i}\n" for i in range(30)))
    read = [entry for part in range(4) for entry in entries(read_triplets(path, part, 4))]
    assert [value for _, _, value in read] == list(range(30))


def test_a_line_longer_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triplets, "_CHUNK_BYTES", 64)
    with pytest.raises(Misuse, match="line 2: a line of more than 64 bytes"):
        read_triplets(write(tmp_path, "0 0 1\n" + "7" * 200 + "\n0 0 1\n"))


def reference(text: bytes) -> list[tuple[int, int, float]] | None:
    """The grammar again, in slow plain Python; None for a bad text."""
    read = []
    for line in text.split(b"\n"):
        bare = line.strip(b" \t\r")
        if not bare or bare[:1] in b"#%":
            continue
        fields = [field for field in re.split(b"[ \t\r]+", bare) if field]
        if len(fields) != 3 or not all(f.isdigit() and int(f) < 2**63 - 1 for f in fields[:2]):
            return None
        try:
            value = float(fields[2])
        except ValueError:
            return None
        with np.errstate(over="ignore"):
            if b"_" in fields[2] or not np.isfinite(np.float32(value)):
                return None
        read.append((int(fields[0]), int(fields[1]), value))
    return read or None


tokens = st.one_of(
    st.sampled_from(
        ["0", "1", "7", "-1", "2.5", "1e3", "nan", "inf", " ", "\t", "\n", "\r\n", "#", "%", "x"]
    ),
    st.text(alphabet="0123456789.eE+- \n\t#%naif_\u0661", max_size=6),
    st.builds("{} {} {}\n".format, st.integers(0, 2**64), st.integers(0, 99), st.floats()),
)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(tokens, max_size=12), raw=st.binary(max_size=4), parts=st.integers(1, 3))
def test_any_text_is_read_right_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], raw: bytes, parts: int
) -> None:
    text = "".join(pieces).encode() + raw
    path = write(tmp_path_factory.mktemp("fuzz"), text)
    expected = reference(text)
    try:
        read = [e for part in range(parts) for e in entries(read_triplets(path, part, parts))]
    except Misuse as error:
        assert expected is None
        assert "\n" not in str(error)
    else:
        expected = expected or []  # only a caller of one part can tell that there are no entries
        assert [entry[:2] for entry in read] == [entry[:2] for entry in expected]
        with np.errstate(under="ignore"):
            rounded = np.array([e[2] for e in expected]).astype(np.float32)
        np.testing.assert_allclose([e[2] for e in read], rounded, rtol=1e-6, atol=1e-44)


def test_a_banner_in_capitals_is_one(tmp_path: Path) -> None:
    text = "%%MATRIXMARKET MATRIX COORDINATE REAL GENERAL\n4 5 1\n2 1 2.5\n"
    assert entries(read_triplets(write(tmp_path, text))) == [(1, 0, 2.5)]
