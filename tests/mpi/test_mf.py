"""Matrix factorization as a user runs it: results, determinism, and what it says to bad input."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers.mpi import Finished, run_mpi
from tests.unit.mf_cases import REAL, SAMPLE, sample_matrix

TIMEOUT_S = 120.0


def mf(n: int | None, *args: object) -> Finished:
    return run_mpi(n, ["-m", "diml.jobs.mf"], args=args, timeout_s=TIMEOUT_S)


def factors(prefix: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.loadtxt(f"{prefix}.L"), np.loadtxt(f"{prefix}.R")


def losses(prefix: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(f"{prefix}.loss").read_text().splitlines()))


def held_out(finished: Finished) -> float:
    found = re.search(r"^held-out RMSE +([0-9.]+)$", finished.stdout, re.MULTILINE)
    assert found, finished.report()
    return float(found[1])


@pytest.mark.parametrize("n", [None, 4])
@pytest.mark.parametrize("k", [3, 4])
def test_the_sample(tmp_path: Path, n: int | None, k: int) -> None:
    prefix = tmp_path / "out"
    args = ("--datafile", SAMPLE, "--K", k, "--num_iterations", 100, "--output_prefix", prefix)
    mf(n, *args).expect()
    left, right = factors(prefix)
    assert left.shape == right.shape == (9, k)
    assert np.abs(left @ right.T - sample_matrix()).max() < 1e-3
    if k == 3:
        for factor in (left, right):
            assert max(np.ptp(factor[b : b + 3], axis=0).max() for b in (0, 3, 6)) < 1e-3
    assert [int(line["iteration"]) for line in losses(prefix)] == list(range(1, 101))


def test_the_founding_command(tmp_path: Path) -> None:
    prefix = tmp_path / "mf_output"
    args = ("--datafile", SAMPLE, "--K", 3, "--num_iterations", 100, "--output_prefix", prefix)
    mf(5, *args, "--staleness", 5, "--lambda", 0.1).expect()
    objective = [float(line["objective"]) for line in losses(prefix)]
    assert objective[-1] < objective[19] < objective[0]
    assert objective[-1] < 0.3 * objective[0]


def test_staleness_0_gives_identical_files(tmp_path: Path) -> None:
    args = ("--generate", "400x300x20000", "--K", 5, "--num_iterations", 6, "--seed", 3, "--bias")
    for name in ("one", "two"):
        mf(4, *args, "--output_prefix", tmp_path / name).expect()
    for suffix in "LR":
        one, two = (Path(f"{tmp_path / name}.{suffix}").read_bytes() for name in ("one", "two"))
        assert one == two
    left, right = factors(tmp_path / "one")
    assert left.shape == (400, 7)
    assert right.shape == (300, 7)


@pytest.mark.skipif(not REAL.exists(), reason="the shared data are not here")
@pytest.mark.parametrize(
    ("args", "bound"),
    [
        ("--update adagrad --lambda 0.1 --init_step_size 0.02 --num_iterations 75", 1.02),
        ("--bias --update nnz --lambda 6 --init_step_size 0.05 --num_iterations 30", 0.92),
    ],
    ids=["plain", "bias"],
)
def test_real_ratings(args: str, bound: float) -> None:
    files = ("--datafile", REAL / "real_matrix.tr.txt", "--test", REAL / "real_matrix.te.txt")
    assert held_out(mf(4, *files, "--K", 8, *args.split()).expect()) <= bound


def test_a_file_in_matrix_market_and_one_based_ids_give_the_same(tmp_path: Path) -> None:
    entries = [line.split() for line in SAMPLE.read_text().splitlines()]
    body = "".join(f"{int(i) + 1} {int(j) + 1} {v}\r\n" for i, j, v in entries)
    (tmp_path / "one").write_text(body)
    header = "%%MatrixMarket matrix coordinate integer general\n% made by hand\n9 9 81\n"
    (tmp_path / "market").write_text(header + body)
    args = ("--K", 3, "--num_iterations", 5, "--output_prefix")
    mf(None, "--datafile", SAMPLE, *args, tmp_path / "plain").expect()
    mf(None, "--datafile", tmp_path / "one", "--one-based", *args, tmp_path / "ones").expect()
    mf(None, "--datafile", tmp_path / "market", *args, tmp_path / "marked").expect()
    expected = Path(f"{tmp_path}/plain.L").read_bytes()
    assert Path(f"{tmp_path}/ones.L").read_bytes() == expected
    assert Path(f"{tmp_path}/marked.L").read_bytes() == expected


def test_a_step_that_is_too_large_ends_with_advice() -> None:
    args = ("--generate", "100x100x5000", "--K", 4, "--num_iterations", 20, "--quiet")
    done = mf(3, *args, "--init_step_size", 100).expect(1)
    assert "divide --init_step_size by 10" in done.stderr


BAD = {
    "missing file": ("--datafile {}/absent", "absent: cannot read it: No such file"),
    "empty file": ("--datafile {}/empty", "empty: no entries"),
    "two fields": ("--datafile {}/two", "two, line 2: fewer than the three fields"),
    "negative id": ("--datafile {}/negative", "negative, line 2: the row id"),
    "NaN": ("--datafile {}/nan", "nan, line 2: the value is not a finite number"),
    "K = 0": ("--datafile {}/good --K 0", "--K: '0' is not a whole number from 1 on"),
    "servers": ("--datafile {}/good --servers 9", "servers"),
    "unknown flag": ("--datafile {}/good --no-such-flag", "--no-such-flag"),
    "unwritable": ("--datafile {}/good --output_prefix {}/no/where", "cannot write it"),
    "no data": ("--K 3", "give either --datafile FILE or --generate"),
    "huge id": ("--datafile {}/huge", "is too large"),
    "gaps": ("--datafile {}/gaps --K 9000", "large gaps"),
}


# On two processes, a worker and a server, one case of each place where it is found: by the flags,
# by the reader of the data, by what there is of processes.
@pytest.mark.parametrize(
    ("bad", "n"),
    [
        *((bad, n) for bad in BAD for n in (None, 4) if bad != "servers" or n),
        *(("K = 0", 2), ("two fields", 2), ("servers", 2)),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, bad: str, n: int | None) -> None:
    for name, line in (
        ("two", "0 1"),
        ("negative", "-1 0 1"),
        ("nan", "0 0 nan"),
        ("good", "0 1 1"),
        ("huge", "9999999999 0 1"),
        ("gaps", "0 2000000000 1"),
    ):
        (tmp_path / name).write_text(f"0 0 1\n{line}\n0 0 1\n")
    (tmp_path / "empty").touch()
    flags, message = BAD[bad]
    done = mf(n, *flags.replace("{}", str(tmp_path)).split()).expect(2)
    assert message in done.stderr, done.report()
    assert done.stderr.count("\n") == 1, done.report()
