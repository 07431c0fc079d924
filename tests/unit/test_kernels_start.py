"""What a process loads before its first kernel runs."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import numba
import numpy as np
from diml.jobs import mf

mf.warm_up()
import diml.ps.client
assert "scipy.linalg" not in sys.modules and "scipy.sparse" not in sys.modules
assert "numba.typed.dictimpl" not in sys.modules
# A function of the user's own that needs BLAS has it.
product = numba.njit(lambda a, b: a @ b)
a = np.arange(6.0).reshape(2, 3)
assert np.array_equal(product(a, a.T.copy()), a @ a.T)
assert "scipy.linalg" in sys.modules
"""


def test_a_kernel_of_the_cache_loads_neither_scipy_nor_what_numba_compiles_with() -> None:
    for program in (
        "from diml.jobs import mf; mf.warm_up()",
        _PROGRAM,
    ):  # the first fills the cache
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
