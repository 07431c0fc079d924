"""What the environment tells about the launcher, before MPI is asked anything.

Owns the names of the variables by which launchers and batch systems speak; the environment comes
as an argument. Owns also how ranks that cannot talk to each other yet say one thing once. Must
not import mpi4py.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TRIAL = "DIML_TRIAL"
"""The variable by which a job knows that it is a trial of a sweep, on ranks that stay."""
_PATIENCE_S = 10.0  # for rank 0 on this host to say it
_PATIENCE_ELSEWHERE_S = 2.0  # for a rank 0 that cannot be watched

# By which variables a launcher says that it started this process, and how many: the innermost
# launcher first, since inside a Slurm step there may be an mpirun. A batch script's own shell has
# SLURM_NTASKS and SLURM_PROCID as well: one process there is as wrong as many.
_MPIRUN = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))
_SRUN = (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("SLURM_PROCID", "SLURM_NTASKS"))


def singleton(env: Mapping[str, str]) -> bool:
    """Whether no MPI launcher started this process, so that it is a world of its own."""
    return not any(size in env for _, size in _MPIRUN)


def one_of_many(env: Mapping[str, str]) -> str:
    """The launcher that started this process beside others; empty if it was started alone.

    A batch script's own shell is alone, whatever it may start.
    """
    if not singleton(env):
        return "mpirun"
    rank, size = _SRUN[0]
    return "srun" if rank in env and env.get(size, "1") != "1" else ""


def speaks(env: Mapping[str, str]) -> bool:
    """Whether this process says what all ranks would say: rank 0, or a process without a launcher.

    For use before MPI is up.
    """
    return _rank(env) in ("0", None)


def say_once(text: str, env: Mapping[str, str]) -> None:
    """Print to stderr a line that all ranks have to say before they leave with an error.

    Rank 0 prints it, the others wait until it has gone: mpirun ends the job when the second rank
    has left with an error, and what rank 0 has not said by then is lost. If rank 0 has not gone
    within ten seconds it has nothing to say, and the line is this rank's own. In a trial of a sweep
    each rank says it, to the sweep, which shows one.
    """
    if TRIAL not in env and not speaks(env) and _rank_0_has_gone(env):
        return
    print(text, file=sys.stderr, flush=True)


def _rank_0_has_gone(env: Mapping[str, str]) -> bool:
    """Wait for rank 0's end; True also where it cannot be watched from here (another host)."""
    all_here = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == env.get("OMPI_COMM_WORLD_SIZE")
    begun, seen = time.monotonic(), False
    while True:
        lives = "0" in (_rank(variables) for variables in siblings().values())
        seen = seen or lives
        waited_s = time.monotonic() - begun
        if not lives and (seen or all_here or waited_s > _PATIENCE_ELSEWHERE_S):
            return True
        if waited_s > _PATIENCE_S:
            return False
        time.sleep(0.02)


def end_siblings() -> None:
    """Kill the other ranks that the same launcher has started on this host.

    For the end of a job before its processes know one another.
    """
    for pid in _other_ranks():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def end_siblings_soon() -> None:
    """The same in a second, whatever has become of this process by then."""
    command = ["/bin/sh", "-c", 'sleep 1; kill -9 "$@"', "end", *map(str, _other_ranks())]
    null = subprocess.DEVNULL
    with contextlib.suppress(OSError):
        subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


def _other_ranks() -> list[int]:
    return [
        pid
        for pid, variables in siblings().items()
        if _rank(variables) is not None and pid != os.getpid()
    ]


def siblings() -> dict[int, dict[str, str]]:
    """The environments, by pid, of the living processes that this process's parent started."""
    found: dict[int, dict[str, str]] = {}
    for pid in children(os.getppid()):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            variables = (item.split("=", 1) for item in text.split("\0") if "=" in item)
            found[pid] = dict(variables)
    return found


def children(parent: int) -> list[int]:
    """The pids of what a process has started and has not seen the end of."""
    found: list[int] = []
    for listing in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def _rank(env: Mapping[str, str]) -> str | None:
    return next((env[rank] for rank, _ in (*_MPIRUN, *_SRUN) if rank in env), None)


def refuse_singleton(
    env: Mapping[str, str], world_size: int, command: Sequence[str] = ()
) -> str | None:
    """The line that refuses N separate one-rank worlds where one world of N was meant, or None.

    `srun`, and the mpirun of another MPI, start N processes each of which finds itself alone,
    does the whole work and reports success. `world_size` is COMM_WORLD's; `command` is the
    program with its arguments, for the line to end in the command that works.
    """
    by_mpirun = [("mpirun", env[size]) for _, size in _MPIRUN if size in env]
    by_srun = [(size, env[size]) for rank, size in _SRUN if rank in env and size in env]
    if world_size != 1 or not by_mpirun + by_srun:
        return None
    launcher, size = (by_mpirun + by_srun)[0]
    if not (size.isascii() and size.isdigit()) or int(size) < 2:
        return None
    program = shlex.join(command) if command else "python -m diml.jobs.NAME ..."
    cause = {
        "mpirun": "that mpirun is another MPI's",
        "SLURM_STEP_NUM_TASKS": "srun cannot start this MPI's ranks",
    }.get(launcher, "so many tasks are granted, and a batch script starts one process")
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
