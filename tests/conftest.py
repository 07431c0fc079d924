"""For all tests: one thread a library, no timing assertions from hypothesis, who runs beside whom.

`make test` runs several tests at a time (pytest-xdist). The tests of a file, which may share what
a first run has made, stay together, and so do those that must not run beside each other.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before NumPy and numba are imported: the machine is shared with the ranks that tests start.
for _library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

settings.register_profile("diml", deadline=None)
settings.load_profile("diml")

# First what compiles the kernels, each in one process: in a fresh checkout all ranks of a job would
# do it at once. Then the longest, so that what is left for the end is short.
_ORDER = ("unit", "sim", "batch", "drills", "mpi")
# Ten ranks and eight spares each, and such as measure out kills by the clock: one at a time.
_MANY_RANKS = ("test_rabit_matrix.py", "test_soak.py", "test_ps_kills.py")
# One Slurm for the machine, and hosts that are made of it.
_CLUSTER = ("test_slurm.py", "test_namespaces.py", "test_mpich.py")


def _group(path: Path) -> str:
    if path.name in _CLUSTER:
        return "cluster"
    return "many ranks" if path.name in _MANY_RANKS else path.stem


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name each test's group, and put them in order."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    place = {name: number for number, name in enumerate(_ORDER)}
    items.sort(key=lambda item: (place[item.path.parent.name], _group(item.path) != "cluster"))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item.path)))
