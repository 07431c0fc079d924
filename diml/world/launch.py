"""What the environment tells about the launcher, before MPI is asked anything.

Owns the names of the variables by which launchers and batch systems speak. Pure: the environment
comes as an argument. Must not import mpi4py.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Mapping, Sequence

# By which variables a launcher says that it started this process, and how many: the innermost
# launcher first, since inside a Slurm step there may be an mpirun. A batch script's own shell has
# SLURM_NTASKS and SLURM_PROCID as well: one process there is as wrong as many.
_MPIRUN = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))
_SRUN = (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("SLURM_PROCID", "SLURM_NTASKS"))


def singleton(env: Mapping[str, str]) -> bool:
    """Whether no MPI launcher started this process, so that it is a world of its own."""
    return not any(size in env for _, size in _MPIRUN)


def speaks(env: Mapping[str, str]) -> bool:
    """Whether this process says what all ranks would say: rank 0, or a process without a launcher.

    For use before MPI is up.
    """
    return next((env[rank] == "0" for rank, _ in (*_MPIRUN, *_SRUN) if rank in env), True)


def refuse_singleton(
    env: Mapping[str, str], world_size: int, command: Sequence[str] = ()
) -> str | None:
    """The line that refuses N separate one-rank worlds where one world of N was meant, or None.

    `srun`, and the mpirun of another MPI, start N processes each of which finds itself alone,
    does the whole work and reports success. `world_size` is COMM_WORLD's; `command` is the
    program with its arguments, for the line to end in the command that works.
    """
    by_mpirun = [("mpirun", env[size]) for _, size in _MPIRUN if size in env]
    by_srun = [("srun", env[size]) for rank, size in _SRUN if rank in env and size in env]
    if world_size != 1 or not by_mpirun + by_srun:
        return None
    launcher, size = (by_mpirun + by_srun)[0]
    if not (size.isascii() and size.isdigit()) or int(size) < 2:
        return None
    program = shlex.join(command) if command else "python -m diml.jobs.NAME ..."
    cause = (
        "srun cannot start this MPI's ranks"
        if launcher == "srun"
        else "that mpirun is another MPI's"
    )
    return (
        f"{size} processes were meant, but this one is alone ({cause}): "
        f"use this environment's own `mpirun -n {size} {program}`"
    )


def host_identity() -> str:
    """Processes with the same answer see each other's pids (host name and pid namespace)."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()
