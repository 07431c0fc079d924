"""The command lines by which a launcher starts a job.

Owns the words of Open MPI's and MPICH's launchers, and what a job may be. Starts nothing but
`--version`. Must not import MPI.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from diml.errors import Misuse
from diml.world.hosts import Allocation, Host


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
        done = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        raise Misuse(f"{launcher}: does not run") from None
    return "Open MPI" in done.stdout + done.stderr


def hydra_line(launcher: str, order: Order, allocation: Allocation) -> list[str]:
    """The command line of MPICH's launcher, which passes the whole environment to all hosts."""
    line = [launcher, *order.options, "-n", str(order.processes)]
    if allocation.hosts:
        share = -(-order.processes // len(allocation.hosts))
        line += ["-hosts", ",".join(f"{host.name}:{share}" for host in allocation.hosts)]
    return [*line, sys.executable, *order.program]


def mpirun_line(
    launcher: str, order: Order, allocation: Allocation, env: Mapping[str, str], names_hosts: bool
) -> list[str]:
    """The command line of mpirun.

    Inside Slurm mpirun asks for the hosts itself. Elsewhere, and with `names_hosts` (some have
    been lost), they are named, each with room for its share of the processes.
    """
    line = [launcher, *order.options, "-n", str(order.processes)]
    hosts = allocation.hosts
    if hosts and (names_hosts or allocation.system != "Slurm"):
        share = -(-order.processes // len(hosts))
        room = (Host(host.name, max(host.slots or 0, share)) for host in hosts)
        line += ["--host", ",".join(str(host) for host in room)]
    if len(hosts) > 1:
        # By slots, mpirun would fill the first host beyond its slots before it takes the next.
        line += ["--map-by", "node:OVERSUBSCRIBE"]
        # Only its own variables does mpirun carry to other hosts.
        for name in sorted(env):
            if name.startswith("DIML_") or name.endswith("_NUM_THREADS"):
                line += ["-x", name]
    return [*line, sys.executable, *order.program]


def program_words(job: Sequence[str]) -> tuple[str, ...]:
    """The interpreter's arguments for a job: a script, or a module (`diml.jobs.mf`).

    Raises Misuse if it is neither.
    """
    if not job:
        raise Misuse("no job given: diml run -n N -- JOB ARGUMENTS")
    name, arguments = job[0], job[1:]
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
