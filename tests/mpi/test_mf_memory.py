"""Data larger than memory: the same result as in memory, within the limit that was given."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from diml.data.convert import Order, convert
from diml.data.planted import Planted, planted
from diml.jobs.mf_files import read_factors
from tests.helpers.mpi import run_mpi
from tests.unit.mf_cases import SAMPLE, sample_matrix

ENTRIES = 8_000_000
LIMIT_MB = 170
K = 8
# Runs the job and says the most that each worker had resident while it trained.
PROGRAM = """
    import re, sys
    from pathlib import Path
    from diml.jobs.mf import main

    status = main(sys.argv[1:])
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    print(f"peak {int(peak[1]) / 1000:.0f} MB", flush=True)
"""


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 million entries, 96 MB of them."""
    path = tmp_path_factory.mktemp("blocks") / "data.h5"
    entries = planted(Planted(20_000, 5_000, ENTRIES, skew=0.5))
    convert(Order("planted", path, test_fraction=0.01, seed=1), [entries])
    return path


def trained(
    n: int | None, engine: str, blocks: Path, prefix: Path, limit: str | None
) -> tuple[float, list[bytes]]:
    """The highest peak of a worker in MB, and the result: factors and losses."""
    args: list[object] = ["--datafile", blocks, "--engine", engine, "--K", K, "--quiet"]
    args += ["--num_iterations", 2, "--init_step_size", 0.1, "--output_prefix", prefix]
    args += [] if limit is None else ["--memory-limit", limit]
    done = run_mpi(n, PROGRAM, args=args, timeout_s=120).expect()
    peaks = [float(found) for found in re.findall(r"peak (\d+) MB", done.stdout)]
    losses = list(csv.DictReader(Path(f"{prefix}.loss").read_text().splitlines()))
    kept = [f"{line['train_rmse']} {line['test_rmse']}".encode() for line in losses]
    assert len(kept) == 2, done.report()
    return max(peaks), [*kept, *(Path(f"{prefix}.{side}").read_bytes() for side in "LR")]


@pytest.mark.parametrize(("n", "engine"), [(None, "ps"), (3, "ps"), (2, "rotate")])
def test_a_limit_changes_memory_but_not_the_result(
    blocks: Path, tmp_path: Path, n: int | None, engine: str
) -> None:
    held, expected = trained(n, engine, blocks, tmp_path / "held", None)
    peak, found = trained(n, engine, blocks, tmp_path / "streamed", f"{LIMIT_MB}MB")
    assert found == expected
    model_mb = 4 * (K + 1) * 25_000 / 1e6
    assert peak <= 1.5 * LIMIT_MB + model_mb
    if n is None:
        assert held > 1.5 * LIMIT_MB + model_mb


@pytest.mark.parametrize(("n", "engine"), [(3, "ps"), (2, "rotate")])
def test_files_have_the_ids_of_the_users_data(tmp_path: Path, n: int, engine: str) -> None:
    convert(Order(str(SAMPLE), tmp_path / "data.h5", seed=3))
    args = ["--datafile", tmp_path / "data.h5", "--engine", engine, "--K", 3, "--quiet"]
    args += ["--num_iterations", 60, "--update", "adagrad", "--init_step_size", 0.2]
    args += ["--output_prefix", tmp_path / "out.npz"]
    run_mpi(n, ["-m", "diml.jobs.mf"], args=args, timeout_s=60).expect()
    factors = read_factors(str(tmp_path / "out.npz"))
    assert np.abs(factors.left @ factors.right.T - sample_matrix()).max() < 0.01
