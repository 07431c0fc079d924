"""Model files: what is written is read, in every format; what is no model is named."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from diml.errors import Misuse
from diml.jobs.mf_files import factor_files, read_factors, write_factors

CHANCE = np.random.default_rng(1)
LEFT, RIGHT = CHANCE.normal(size=(7, 3)), CHANCE.normal(size=(9000, 3))


@pytest.mark.parametrize("name", ["model", "model.npz", "model.h5", "model.hdf5", "a.b"])
def test_a_model_comes_back(tmp_path: Path, name: str) -> None:
    where = str(tmp_path / name)
    write_factors(where, [LEFT[:3], LEFT[3:]], [RIGHT[:5000], RIGHT[5000:]])
    read = read_factors(where)
    assert read.left.dtype == read.right.dtype == np.float32
    np.testing.assert_allclose(read.left, LEFT, rtol=1e-5)
    np.testing.assert_allclose(read.right, RIGHT, rtol=1e-5)
    assert sorted(tmp_path.iterdir()) == factor_files(where)


def test_text_has_six_digits(tmp_path: Path) -> None:
    left = [np.array([[1 / 3, 2e-7]], np.float32), np.array([[5, -1e6]], np.float32)]
    write_factors(str(tmp_path / "out"), left, left)
    assert (tmp_path / "out.L").read_text() == "0.333333 2e-07\n5 -1e+06\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n3\n", r"m\.L, line 2: 1 numbers, 2 before"),
        ("1 2\n\n3 x\n", r"m\.L, line 3: not numbers"),
        ("1 2\n3 ٣\n", r"m\.L, line 2: not numbers"),
        ("1 2\n3 nan\n", "row 1 of L has a number that is not finite"),
        ("1\n2\n", "L has 1 columns, R has 2"),
    ],
)
def test_text_that_is_no_factor_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.L").write_text(text)
    (tmp_path / "m.R").write_text("1 2\n")
    with pytest.raises(Misuse, match=message) as caught:
        read_factors(str(tmp_path / "m"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model", "model.npz", "model.h5"])
def test_files_that_are_no_model_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Misuse, match="cannot read it"):
        read_factors(str(tmp_path / name))
    write_factors(str(tmp_path / name), [LEFT], [RIGHT])
    path = factor_files(str(tmp_path / name))[0]
    whole = path.read_bytes()
    for cut in (10, 5 * len(whole) // 9):
        path.write_bytes(whole[:cut] + b"x")
        with pytest.raises(Misuse, match=str(tmp_path)):
            read_factors(str(tmp_path / name))


@pytest.mark.parametrize("name", ["model", "model.npz", "model.h5"])
def test_a_text_that_was_cut_and_changed_bytes_are_noticed(tmp_path: Path, name: str) -> None:
    write_factors(str(tmp_path / name), [np.full((5, 2), 1.5e-7)], [RIGHT[:, :2]])
    path = factor_files(str(tmp_path / name))[0]
    whole = path.read_bytes()
    if name == "model":
        path.write_bytes(whole[:-2])  # the last number is 1.5e-0 now
    else:
        at = whole.index(np.full(10, 1.5e-7, np.float32).tobytes())
        path.write_bytes(whole[: at + 9] + b"?" + whole[at + 10 :])
    with pytest.raises(Misuse, match="cut off" if name == "model" else "damaged"):
        read_factors(str(tmp_path / name))


def test_other_contents_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", L=LEFT)
    np.savez(tmp_path / "b.npz", L=LEFT, R=np.array([object()]))
    np.savez(tmp_path / "c.npz", L=LEFT, R=np.array(["x"]))
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["L"] = LEFT
        file.create_group("R")
    for name in ("a.npz", "b.npz", "c.npz", "d.h5"):
        with pytest.raises(Misuse, match=name):
            read_factors(str(tmp_path / name))


def test_numbers_beyond_float32_and_empty_files_are_refused(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    np.savez(tmp_path / "m.npz", L=np.full((2, 2), [[1.0, 2.0], [1.0, -1e300]]), R=np.ones((3, 2)))
    with pytest.raises(Misuse, match="row 1 of L has a number that is not finite in float32"):
        read_factors(str(tmp_path / "m.npz"))
    for side in "LR":
        (tmp_path / f"m.{side}").touch()
    with pytest.raises(Misuse, match="L is not a matrix"):
        read_factors(str(tmp_path / "m"))
    assert not recwarn.list
