"""For all tests: one thread a library, no timing assertions from hypothesis, who runs beside whom.

`make test` runs several tests at a time (pytest-xdist). Tests that share what a first run has made
stay together, and so do those that must not run beside each other; of the others those of real MPI
are dealt out one by one, so that all workers come to the end at the same time.
"""

from __future__ import annotations

import os

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
# Longer than half a minute.
_LONG = ("test_its_commands_give_what_it_says", "test_scikit_learn_s_checks_pass_on_two_ranks")
_LONG += ("test_the_table_is_that_of_its_logs",)


def _shares(item: pytest.Item) -> bool:
    """Whether the test uses something that is made once for its module."""
    definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    return any(one.scope == "module" for those in definitions for one in those)


def _group(item: pytest.Item) -> str | None:
    """Tests of one group stay together, in one process; None: it can go anywhere."""
    path = item.path
    if path.name in _CLUSTER:
        return "cluster"
    if path.name in _MANY_RANKS:
        return "many ranks"
    alone = path.parent.name in ("drills", "mpi") and not _shares(item)
    return None if alone else path.stem


def _place(item: pytest.Item) -> tuple[int, int]:
    """What comes first: the folder, and within it what takes long."""
    folder = item.path.parent.name
    group, name = _group(item), item.name.partition("[")[0]
    if name in _LONG:
        return _ORDER.index("batch"), 1
    first = ("cluster", "many ranks")
    return _ORDER.index(folder), first.index(group) if group in first else len(first)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name each test's group, and put them in order."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    items.sort(key=_place)
    for item in items:
        if (group := _group(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))
