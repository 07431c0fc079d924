"""What a process imports before its first kernel runs."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import numba
import numpy as np
from diml.kernels import mf

mf.warm_up()
import diml.ps.client
assert "scipy.linalg" not in sys.modules and "scipy.sparse" not in sys.modules
# A function of the user's own that needs BLAS has it.
product = numba.njit(lambda a, b: a @ b)
a = np.arange(6.0).reshape(2, 3)
assert np.array_equal(product(a, a.T.copy()), a @ a.T)
assert "scipy.linalg" in sys.modules
"""


def test_scipy_is_imported_only_where_it_is_used() -> None:
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True, timeout=120)
