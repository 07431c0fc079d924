"""Which hosts of a run answer: while a job runs on them, and after it was lost.

Owns the asking, by a step of Slurm's or by ssh, and which host is this one. Must not know what runs
there. Invariant: a host that does not answer is given up only where asking is known to work. A
site may have no ssh among its nodes (SGE's mpirun has a way of its own), an old srun, or a
controller that is being restarted; none of that says anything of the hosts.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from diml.world.hosts import Allocation, Host

ANSWER_S = 20.0
"""For a host to do what it was asked."""
_LOOK_S = 10.0
_AGAIN_S = 10.0
# A job may have 40,000 steps in Slurm, and each look is one. So often too where nobody answers.
_SELDOM_S = 60.0
_AT_ONCE = 64


def host_here(hosts: Iterable[Host]) -> Host | None:
    """The one that is this machine: by its name, or because its address can be bound."""
    hosts = tuple(hosts)
    names = {"localhost", os.uname().nodename, os.environ.get("SLURMD_NODENAME")}
    by_name = (host for host in hosts if host.name in names)
    return next(by_name, None) or next((host for host in hosts if _can_bind(host.name)), None)


def _can_bind(name: str) -> bool:
    try:
        with socket.socket() as probe:
            probe.bind((name, 0))
    except (OSError, UnicodeError):
        return False
    return True


def call(
    where: Allocation, hosts: Sequence[Host], command: Sequence[str], limit_s: float = ANSWER_S
) -> frozenset[Host]:
    """Run a command on other hosts, not more than some dozens at a time; those that did it."""
    at_once = where.system == "Slurm" and len(hosts) > 1
    if at_once and _end(_start(_step(hosts, command)), limit_s / 2):
        return frozenset(hosts)
    done: list[Host] = []
    for first in range(0, len(hosts), _AT_ONCE):
        some = hosts[first : first + _AT_ONCE]
        slurm = where.system == "Slurm"
        asked = [_start(_step([h], command) if slurm else _ssh(h, command)) for h in some]
        until = time.monotonic() + limit_s
        for host, process in zip(some, asked, strict=True):
            if _end(process, until - time.monotonic()):
                done.append(host)
    return frozenset(done)


def _step(hosts: Sequence[Host], command: Sequence[str]) -> list[str]:
    size = [f"-N{len(hosts)}", f"-n{len(hosts)}", "--ntasks-per-node=1"]
    names = ",".join(host.name for host in hosts)
    return ["srun", "--overlap", "--immediate=15", *size, "-w", names, "--mpi=none", *command]


def _ssh(host: Host, command: Sequence[str]) -> list[str]:
    options = ["-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    return ["ssh", *options, host.name, shlex.join(command)]


def _start(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes] | None, limit_s: float) -> bool:
    """Whether it comes to a good end in time; afterwards it is gone."""
    if process is None:
        return False
    try:
        return process.wait(max(0.1, limit_s)) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


class Roll:
    """The hosts of one run, and which of them have answered in it.

    Attributes:
        place: the hosts that are left.
        here: the one among them that is this machine, if any.
    """

    def __init__(self, place: Allocation) -> None:
        self.place = place
        self.here = host_here(place.hosts) if place.hosts else None
        self.seen: frozenset[Host] = frozenset()

    @property
    def others(self) -> tuple[Host, ...]:
        """The hosts that are not this one."""
        return tuple(host for host in self.place.hosts if host != self.here)

    def ask(self) -> frozenset[Host] | None:
        """The other hosts that answer; None if that none does says nothing of them."""
        found = call(self.place, self.others, ["true"])
        self.seen |= found
        if found or not self.others:
            return found
        if self.place.system == "Slurm":
            # If there is no step on this host either, it is Slurm that does not answer.
            works = self.here is not None and bool(call(self.place, [self.here], ["true"]))
        else:
            works = bool(self.seen)
        return found if works else None

    def strike_out(self) -> list[str]:
        """Leave the hosts that do not answer out from now on; their names."""
        found = self.ask()
        if found is None:
            return []
        left = tuple(h for h in self.place.hosts if h == self.here or h in found)
        gone = [host.name for host in self.place.hosts if host not in left]
        self.place = replace(self.place, hosts=left)
        return gone


class Lookout(threading.Thread):
    """Asks all hosts of a running job now and then whether they are there.

    A host that is cut off sends nothing that would end a wait inside MPI. `silent` names the hosts
    that did not answer twice in a row, though they have answered before.
    """

    def __init__(self, roll: Roll, again_s: float = _AGAIN_S) -> None:
        super().__init__(name="lookout", daemon=True)
        self.silent: tuple[str, ...] = ()
        self._roll, self._again_s = roll, again_s
        self._over = threading.Event()

    def run(self) -> None:
        # Whoever has many hosts asks them less often.
        rounds = 1 + len(self._roll.others) // _AT_ONCE
        slurm = self._roll.place.system == "Slurm"
        every_s = _SELDOM_S if slurm else _LOOK_S * rounds
        before: frozenset[Host] = frozenset()
        while self._roll.others and not self._over.is_set():
            found = self._roll.ask()
            known = self._roll.seen & frozenset(self._roll.others)
            missing = frozenset() if found is None else known - found
            self.silent = tuple(sorted(host.name for host in missing & before))
            before = missing
            pause_s = every_s if found is not None else _SELDOM_S
            self._over.wait(self._again_s if missing else pause_s)

    def end(self) -> None:
        """No more questions; one under way comes to its end by itself."""
        self._over.set()
