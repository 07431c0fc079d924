"""The command lines by which a launcher starts a job.

Owns the words of Open MPI's and MPICH's launchers, and what a job may be. Starts nothing but
`--version`. Must not import MPI.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from diml.errors import Misuse
from diml.world.hosts import Allocation, Host

# What the interpreter and its modules need on the other hosts as well.
_CARRIED = frozenset(("LD_LIBRARY_PATH", "NUMBA_CACHE_DIR", "PYTHONPATH"))


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        processes: workers, spares and servers together.
        program: the interpreter's arguments: a module or a script, and the job's own.
        options: mpirun's own options, before everything else.
    """

    processes: int
    program: tuple[str, ...]
    options: tuple[str, ...] = ()


def recovers_inside(launcher: str) -> bool:
    """Whether the launcher is Open MPI's, under which a job survives the death of a rank.

    Under any other one (MPICH's, a vendor's) the job ends, and is started again.
    """
    try:
        ask = [launcher, "--version"]
        done = subprocess.run(ask, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        raise Misuse(f"{launcher}: does not run") from None
    return "Open MPI" in done.stdout + done.stderr


def shares(processes: int, hosts: Sequence[Host]) -> list[int]:
    """How many processes each host gets: dealt out in turn, to those that have a slot left.

    Where there are more processes than slots, the rest goes by the number of slots.
    """
    dealt = [0] * len(hosts)
    for _ in range(processes if hosts else 0):
        free = [i for i, h in enumerate(hosts) if h.slots is None or dealt[i] < h.slots]
        least = min(free, key=dealt.__getitem__, default=None)
        if least is None:
            least = min(range(len(hosts)), key=lambda i: (dealt[i] + 1) / (hosts[i].slots or 1))
        dealt[least] += 1
    return dealt


def hydra_line(launcher: str, order: Order, allocation: Allocation) -> list[str]:
    """The command line of MPICH's launcher, which passes the whole environment to all hosts."""
    line = [launcher, *order.options, "-n", str(order.processes)]
    if allocation.hosts:
        dealt = zip(allocation.hosts, shares(order.processes, allocation.hosts), strict=True)
        line += ["-hosts", ",".join(f"{host.name}:{share}" for host, share in dealt if share)]
    return [*line, sys.executable, *order.program]


def mpirun_line(
    launcher: str, order: Order, allocation: Allocation, env: Mapping[str, str], names_hosts: bool
) -> list[str]:
    """The command line of mpirun.

    Inside Slurm mpirun asks for the hosts itself. Elsewhere, and with `names_hosts` (some have
    been lost), they are named, each with room for its share of the processes. They are named too
    where some have too few slots for the same share as the others.
    """
    line = [launcher, *order.options, "-n", str(order.processes)]
    hosts = allocation.hosts
    dealt = shares(order.processes, hosts)
    even = len(hosts) < 2 or max(dealt) - min(dealt) <= 1
    if hosts and (names_hosts or allocation.system != "Slurm" or not even):
        room = [max(host.slots or 0, *dealt) for host in hosts] if even else dealt
        named = (f"{host.name}:{n}" for host, n in zip(hosts, room, strict=True) if n)
        line += ["--host", ",".join(named)]
    if len(hosts) > 1:
        # By slots, mpirun would fill the first host beyond its slots before it takes the next; by
        # nodes, it would give all the same. Neither if there are as many slots as processes.
        policy = ["node:OVERSUBSCRIBE"] if even else ["slot:OVERSUBSCRIBE", "--rank-by", "node"]
        line += ["--map-by", *policy]
        # Only its own variables does mpirun carry to other hosts.
        for name in sorted(env):
            if name.startswith("DIML_") or name.endswith("_NUM_THREADS") or name in _CARRIED:
                line += ["-x", name]
    return [*line, sys.executable, *order.program]


def program_words(job: Sequence[str]) -> tuple[str, ...]:
    """The interpreter's arguments for a job: a script, or a module (`diml.jobs.mf`).

    Raises Misuse if it is neither.
    """
    if not job:
        raise Misuse("no job given: diml run -n N -- JOB ARGUMENTS")
    name, arguments = job[0], job[1:]
    if re.fullmatch(r"python[0-9.]*", Path(name).name):
        raise Misuse(f"job {name!r}: give the script or the module alone, without the interpreter")
    if Path(name).is_file():
        return (name, *arguments)
    if name == "-m" and arguments:
        return tuple(job)
    if all(part.isidentifier() for part in name.split(".")) and _is_there(name):
        return ("-m", name, *arguments)
    raise Misuse(f"job {name!r}: neither a file nor a module that can be found")


def _is_there(module: str) -> bool:
    """Whether the interpreter, started here, could run the module. Imports nothing."""
    path: list[str] | None = [str(Path.cwd()), *sys.path]
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = None if path is None else PathFinder.find_spec(name, path)
        if spec is None:
            return False
        within = spec.submodule_search_locations
        try:
            path = None if within is None else list(within)
        except KeyError:  # a folder without __init__.py in another: only an import could tell
            return True
    return path is None or PathFinder.find_spec(f"{name}.__main__", path) is not None
