"""For all tests: one thread a library, and no timing assertions from hypothesis."""

from __future__ import annotations

import os

from hypothesis import settings

# Before NumPy and numba are imported: the machine is shared with the ranks that tests start.
for _library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

settings.register_profile("diml", deadline=None)
settings.load_profile("diml")
