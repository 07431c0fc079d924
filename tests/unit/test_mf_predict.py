"""diml predict and diml recommend: what dense NumPy says, ties by id, bad input named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from diml.cli import main
from diml.data.convert import Order, convert
from diml.jobs.mf_files import Factors, write_factors
from diml.jobs.mf_predict import best

CHANCE = np.random.default_rng(4)


def model(folder: Path, left: npt.NDArray[np.generic], right: npt.NDArray[np.generic]) -> str:
    name = str(folder / "model.npz")
    write_factors(name, [left], [right])
    return name


def dense_best(
    left: npt.NDArray[np.generic],
    right: npt.NDArray[np.generic],
    row: int,
    top: int,
    known: set[int],
) -> list[int]:
    """The whole product, sorted by value, then by id."""
    scores = (left.astype(np.float64) @ right.astype(np.float64).T)[row]
    ids = [col for col in range(len(right)) if col not in known]
    return sorted(ids, key=lambda col: (-scores[col], col))[:top]


@pytest.mark.parametrize("whole", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("top", [1, 5, 40, 1000])
def test_the_best_are_those_of_the_dense_product(whole: bool, top: int) -> None:
    # Small whole numbers give many equal products, all of them exact.
    drawn = [CHANCE.integers(-2, 3, size=(n, 4)) for n in (30, 200)]
    left, right = (a.astype(np.float32) for a in drawn)
    if not whole:
        left, right = (a + CHANCE.normal(size=a.shape).astype(np.float32) for a in (left, right))
    for row in range(30):
        known = CHANCE.integers(0, 200, CHANCE.integers(0, 150))
        ids, scores = best(Factors(left, right), row, top, known)
        assert ids.tolist() == dense_best(left, right, row, top, set(known.tolist()))
        np.testing.assert_allclose(scores, (right @ left[row])[ids], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["text", "blocks"])
@pytest.mark.parametrize("one_based", [False, True])
def test_recommend_leaves_out_what_the_row_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, one_based: bool
) -> None:
    left = CHANCE.integers(-2, 3, size=(6, 3)).astype(np.float32)
    right = CHANCE.integers(-2, 3, size=(9, 3)).astype(np.float32)
    first = int(one_based)
    rows, cols = CHANCE.integers(0, 6, 20).tolist(), CHANCE.integers(0, 9, 20).tolist()
    data = tmp_path / "data"
    lines = (f"{i + first} {j + first} 1\n" for i, j in zip(rows, cols, strict=True))
    data.write_text("".join(lines))
    flags = ["--one-based"] if one_based else []
    if kind == "blocks":
        data = tmp_path / "data.h5"
        order = Order(str(tmp_path / "data"), data, one_based=one_based, test_fraction=0.3)
        convert(order)
    name = model(tmp_path, left, right)
    assert main(["recommend", name, "--datafile", str(data), "--top", "4", *flags]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in range(6):
        known = {j for i, j in zip(rows, cols, strict=True) if i == row}
        found = [int(j) - first for i, j, _ in said if int(i) == row + first]
        assert found == dense_best(left, right, row, 4, known)
    assert main(["recommend", name, "--row", str(2 + first), "--top", "2", *flags]) == 0
    found = [int(line.split()[1]) - first for line in capsys.readouterr().out.splitlines()]
    assert found == dense_best(left, right, 2, 2, set())


def test_predict_scores_pairs_and_tells_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = CHANCE.normal(size=(5, 3)), CHANCE.normal(size=(8, 3))
    name = model(tmp_path, left, right)
    pairs = tmp_path / "pairs"
    pairs.write_text("# some\n0 7\n4 0 1.5\r\n\n3 3 -1")
    assert main(["predict", name, str(pairs), "-o", str(tmp_path / "out")]) == 0
    lines = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    assert [(int(i), int(j)) for i, j, _ in lines] == [(0, 7), (4, 0), (3, 3)]
    expected = [left[0] @ right[7], left[4] @ right[0], left[3] @ right[3]]
    np.testing.assert_allclose([float(v) for _, _, v in lines], expected, rtol=1e-4)
    error = np.sqrt(((expected[1] - 1.5) ** 2 + (expected[2] + 1) ** 2) / 2)
    assert f"RMSE {error:.4g}"[:8] in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.npz", "out", "pairs"]


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("predict {model} {file}", "0 0\n5 0\n", "file, line 2: an id outside 0..4 x 0..7, the s"),
        ("predict {model} {file}", "0 0\n0\n", "file, line 2: fewer than"),
        ("predict {model} {file}", "0 0\n0 8 1\n", "file, line 2: an id outside"),
        ("predict {model} {file}", "0 0 x\n", "file, line 1: the value"),
        ("predict {model} {file}", "", "file: no entries"),
        ("predict {model} {file}.absent", "", "cannot read it"),
        ("predict {file} {file}", "0 0\n", "file.L: cannot read it"),
        ("predict {model}", "", "DATA"),
        ("recommend {model} --row 5", "", "--row 5: "),
        ("recommend {model} --row 0 --one_based", "", "has rows 1..5"),
        ("recommend {model} --row 0 --datafile {file}", "0 9 1\n", "file, line 1: an id outside"),
        ("recommend {model} --top 0", "", "--top"),
        ("recommend {model} -o {file}/x", "0 0\n", "cannot write it"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, message: str
) -> None:
    name = model(tmp_path, np.ones((5, 2)), np.ones((8, 2)))
    file = tmp_path / "file"
    file.write_text(text)
    words = [word.format(model=name, file=file) for word in command.split()]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
