"""The settings that make plain `mpirun -n N python ...` fault tolerant, and where they live.

Owns their names, values and reasons, and the block that this project writes into the two
parameter files of Open MPI below an environment's prefix. Must not import mpi4py. Invariants:
writing twice changes nothing, and what others wrote into these files stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from diml.errors import Misuse

MPI_SETTINGS: Mapping[str, str] = {
    # ULFM: a dead rank is an error to catch, not the end of all.
    "mpi_ft_enable": "1",
    # MPI_Finalize would wait for ranks that are dead.
    "async_mpi_finalize": "1",
    # These collectives do not return when a peer dies.
    "coll": "^han,cuda,hcoll,portals4",
    # Where it finds no fabric it sleeps a second in every MPI_Init, a replacement's too. It serves
    # one-sided communication, of which there is none here.
    "btl": "^ofi",
}
LAUNCHER_SETTINGS: Mapping[str, str] = {
    # The launcher keeps the job when a process, also a spawned one, dies.
    "state_base_recoverable": "1",
    "state_base_notify_errors": "1",
    # More ranks than cores, as on a laptop; servers and spares are idle most of the time. Dealt out
    # over the nodes: slot by slot, the first one would be filled with all of them.
    "rmaps_default_mapping_policy": "node:oversubscribe",
    # Ranks that share cores must not be tied to one.
    "hwloc_default_binding_policy": "none",
}
# These save time only: what a user has chosen in their place stays.
_PREFERENCES = frozenset(("btl",))
_FILES = (("openmpi-mca-params.conf", MPI_SETTINGS), ("prte-mca-params.conf", LAUNCHER_SETTINGS))
# Of Open MPI's transport through memory: it sends messages that fit into one fragment at once,
# where those above 4 KB would need their sender once more; and they count as sent once they are in
# the fragment, not only when the receiver has given that back. Both are time only: one of 13 KB
# was measured at 2.4 instead of 4.8 microseconds.
_EAGER = {"OMPI_MCA_btl_sm_eager_limit": "32768", "OMPI_MCA_btl_sm_flags": "send"}
# MPI_Init returns its errors: otherwise it ends the process with an error class for exit status,
# which mpirun takes for the job's, also from a new process whose leader died while it started.
_RETURNING = {"OMPI_MCA_mpi_initial_errhandler": "mpi_errors_return"}
_BEGIN = "# >>> DiML: fault tolerance (written by `diml doctor --fix`)"
_END = "# <<< DiML"


def as_environment() -> dict[str, str]:
    """The same settings as variables, for an MPI whose parameter files cannot be written."""
    mpi = {f"OMPI_MCA_{name}": value for name, value in MPI_SETTINGS.items()}
    launcher = {f"PRTE_MCA_{name}": value for name, value in LAUNCHER_SETTINGS.items()}
    return {**mpi, **launcher}


@contextlib.contextmanager
def alone(env: MutableMapping[str, str]) -> Iterator[None]:
    """While MPI starts in a process without a launcher, which talks to nobody: no transports.

    They cost time, and the one through memory leaves a file of 16 MB behind. A transport that the
    user has chosen stays; processes that this one starts later see nothing of it.
    """
    name = "OMPI_MCA_btl"
    # By PMIX_RANK a batch system's launcher says that there are others.
    if name in env or "PMIX_RANK" in env:
        yield
        return
    env[name] = "self"
    try:
        yield
    finally:
        del env[name]


@contextlib.contextmanager
def eager(env: MutableMapping[str, str]) -> Iterator[None]:
    """While MPI starts: messages within a node that fit into one fragment go at once, and an MPI
    that cannot start raises an error.

    What the user has chosen stays; processes that this one starts later see nothing of it.
    """
    wanted = {**_EAGER, **_RETURNING}
    ours = [name for name in wanted if name not in env]
    env.update({name: wanted[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            del env[name]


def missing(prefix: Path | None, env: Mapping[str, str]) -> list[str]:
    """Settings that neither the files below `prefix` nor the environment has, as `name=value`."""
    lacking = []
    for name, settings in _FILES:
        in_file = {} if prefix is None else _read(prefix / "etc" / name)
        scheme = "OMPI_MCA_" if settings is MPI_SETTINGS else "PRTE_MCA_"
        for key, value in settings.items():
            # A variable wins over the file.
            found = env.get(scheme + key, in_file.get(key))
            if found != value and not (found and key in _PREFERENCES):
                lacking.append(f"{scheme}{key}={value}")
    return lacking


def write(prefix: Path) -> list[Path]:
    """Put the settings into the parameter files below `prefix`; returns the files that changed.

    Raises Misuse if a file cannot be written.
    """
    changed = []
    for name, settings in _FILES:
        path = prefix / "etc" / name
        try:
            old = path.read_text() if path.exists() else ""
            new = with_block(old, settings)
            if new == old:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            # Renamed into place: an mpirun that starts meanwhile reads the old or the new file.
            temporary = path.with_name(f"{name}.{os.getpid()}")
            temporary.write_text(new)
            temporary.replace(path)
        except OSError as error:
            raise Misuse(f"{path}: {error.strerror}") from None
        changed.append(path)
    return changed


def with_block(text: str, settings: Mapping[str, str]) -> str:
    """The file's text with this project's block at its end, where it wins, and nowhere else."""
    head, begin, rest = text.partition(_BEGIN)
    if begin:
        _, end, tail = rest.partition(_END)
        text = head + (tail if end else "")
    lines = [_BEGIN, *(f"{name} = {value}" for name, value in settings.items()), _END]
    kept = text.rstrip("\n")
    return (kept + "\n\n" if kept else "") + "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, str]:
    """The settings of a parameter file; the last line of a name counts."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}
