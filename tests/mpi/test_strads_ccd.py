"""The second STRADS program under real mpirun, with a death."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diml.jobs.mf_files import read_factors
from tests.helpers.mpi import CHECKOUT, run_mpi

SAMPLE = CHECKOUT / "diml" / "data" / "samples" / "9x9_3blocks"


def test_ccd_survives_a_death_with_the_same_bits(tmp_path: Path) -> None:
    factors = []
    for name, flags in (("whole", []), ("killed", ["--spares", "1", "--drill", "1,2,3,0"])):
        program = ["-m", "diml.jobs.ccd", "--datafile", str(SAMPLE), "--K", "3", *flags]
        program += ["--num_iterations", "30", "--lambda", "1e-4", "--checkpoint_work", "300"]
        ranks = 3 if name == "killed" else 2
        done = run_mpi(ranks, [*program, "--output_prefix", str(tmp_path / name)], timeout_s=100)
        assert done.returncode == 0, done
        factors.append(read_factors(str(tmp_path / name)))
    np.testing.assert_array_equal(factors[0].left, factors[1].left)
    np.testing.assert_array_equal(factors[0].right, factors[1].right)
    product = factors[0].left @ factors[0].right.T
    target = np.loadtxt(SAMPLE)[:, 2].reshape(9, 9)
    assert np.abs(product - target).max() < 0.02
