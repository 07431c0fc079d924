"""`diml run`: the right mpirun line for where it is, and the job started again when it is lost.

Owns the life of mpirun's process, and the decision what an end means (`judge`, pure). That a job
is done is known from its own word (`marker`), never from mpirun's exit status alone: it is 0 after
a lost node. Must not import MPI, nor know what the job does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from diml.errors import Misuse, Resumable
from diml.world import marker, node_memory
from diml.world.command import Order, hydra_line, mpirun_line
from diml.world.hosts import Allocation, Host

_PROBE_S = 20.0  # for a host to answer
_READY_S = 10.0  # for a job that is told to stop to say that it can
_CTRL_C_S = 2.0
_LOST_S = 2.0  # for a host that was given up, to be swept if it is back
_POLL_S = 0.1
_LOOK_S = 10.0
_MISUSE, _FAILED, _INTERRUPTED = 2, 1, 130
_RESUMABLE = Resumable.exit_status


@dataclass(frozen=True, slots=True)
class End:
    """How one attempt ended.

    Attributes:
        status: mpirun's exit status (negative: it died of that signal).
        done: the job has said that it is done.
        version: the newest checkpoint that it is known to have kept; 0 for none.
        stopped: it was told to stop.
    """

    status: int
    done: bool
    version: int = 0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows: again, or the exit status to leave with; `words` say why, where needed."""

    again: bool
    status: int = 0
    words: str = ""


def judge(ends: Sequence[End], max_restarts: int) -> Verdict:
    """What follows from all attempts up to now.

    A job that said why it leaves (misuse, an error of the program, an interruption, a stop that
    it was told to make) is not started again; one that was lost is, unless it was lost twice at
    the same version or has been started again often enough.
    """
    last = ends[-1]
    if last.done:
        return Verdict(False, _shell(last.status))
    if last.status in (_MISUSE, _FAILED, _INTERRUPTED, -signal.SIGINT):
        return Verdict(False, _shell(last.status))
    if last.stopped:
        return Verdict(False, _RESUMABLE if last.status == _RESUMABLE else _FAILED)
    lost = f"the job was lost (mpirun's exit status {last.status}, and it never said it was done)"
    if last.status == _RESUMABLE:
        lost = "the job left to be started again"
    status = _RESUMABLE if last.version else _FAILED
    if len(ends) > 1 and ends[-2].version == last.version:
        where = f"version {last.version}" if last.version else "its beginning"
        return Verdict(False, status, f"{lost}, twice without getting beyond {where}: given up")
    if len(ends) > max_restarts:
        return Verdict(False, status, f"{lost}; no restarts left of {max_restarts}")
    return Verdict(True, 0, lost)


def _shell(status: int) -> int:
    return status if status >= 0 else 128 - status


def hosts_left(allocation: Allocation) -> Allocation:
    """The allocation without the hosts that do not answer."""
    if len(allocation.hosts) < 2:
        return allocation
    probes = {host: _probe(allocation, host) for host in allocation.hosts}
    deadline = time.monotonic() + _PROBE_S
    left = []
    for host, probe in probes.items():
        try:
            if probe.wait(max(0.1, deadline - time.monotonic())) == 0:
                left.append(host)
        except subprocess.TimeoutExpired:
            probe.kill()
            probe.wait()
    return Allocation(allocation.system, allocation.job, tuple(left))


def _on_host(allocation: Allocation, host: Host, command: Sequence[str]) -> list[str]:
    if allocation.system == "Slurm":
        step = ["srun", "--overlap", "--immediate=15", "-N1", "-n1", "-w", host.name, "--mpi=none"]
        return [*step, *command]
    ssh = ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host.name]
    return [*ssh, shlex.join(command)]


def _is_here(host: Host) -> bool:
    """Whether a host is this machine: by its name, or because its address can be bound."""
    if host.name in ("localhost", os.uname().nodename):
        return True
    try:
        with socket.socket() as probe:
            probe.bind((host.name, 0))
    except OSError:
        return False
    return True


def _probe(allocation: Allocation, host: Host) -> subprocess.Popen[bytes]:
    if _is_here(host):
        return _quietly(["true"])
    return _quietly(_on_host(allocation, host, ["true"]))


def _quietly(command: Sequence[str]) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
    except OSError:
        return subprocess.Popen(["false"])


class Lookout(threading.Thread):
    """Asks all hosts of a running job now and then whether they are there.

    A host that is cut off sends nothing that would end a wait inside MPI. `silent` names the
    hosts that did not answer twice in a row.
    """

    def __init__(self, allocation: Allocation, every_s: float = _LOOK_S) -> None:
        super().__init__(name="lookout", daemon=True)
        self.silent: tuple[str, ...] = ()
        self._allocation, self._every_s = allocation, every_s
        self._over = threading.Event()

    def run(self) -> None:
        before: set[Host] = set()
        while len(self._allocation.hosts) > 1 and not self._over.wait(self._every_s):
            now = set(self._allocation.hosts) - set(hosts_left(self._allocation).hosts)
            self.silent = tuple(
                host.name for host in self._allocation.hosts if host in now & before
            )
            before = now

    def end(self) -> None:
        """No more questions; one under way comes to its end by itself."""
        self._over.set()


@dataclass
class Supervisor:
    """One run of a job, through as many attempts as it takes.

    Attributes:
        launcher: the mpirun to use.
        order: what to run.
        allocation: where.
        max_restarts: how often a lost job is started again.
        env: the environment of the job.
        hydra: the launcher is MPICH's.
    """

    launcher: str
    order: Order
    allocation: Allocation
    max_restarts: int
    env: Mapping[str, str]
    hydra: bool = False
    _ends: list[End] = field(default_factory=list)
    _stop: str = ""
    _goes_on: bool = False
    _given_up: list[str] = field(default_factory=list)

    def run(self) -> int:
        """Run the job to its end; returns the exit status to leave with."""
        for left in node_memory.sweep():
            self._say(f"removed {left}, which a killed run had left behind")
        memory = node_memory.new_folder()
        held = node_memory.hold(memory, supervisor=True)
        folder = memory / "words"
        folder.mkdir(mode=0o700)
        told = [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT]
        before = {number: signal.signal(number, self._told) for number in told}
        try:
            return self._attempts(folder, memory)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._forget(memory)
            os.close(held)

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._stop = signal.Signals(number).name

    def _attempts(self, folder: Path, memory: Path) -> int:
        place, names_hosts = self.allocation, False
        while True:
            self._ends.append(self._attempt(folder, memory, place, names_hosts))
            if self._stop == "SIGINT":
                return _INTERRUPTED
            verdict = judge(self._ends, self.max_restarts)
            if verdict.words:
                self._say(verdict.words)
            if not verdict.again:
                return verdict.status
            if self._stop:
                return _RESUMABLE if self._ends[-1].version else _FAILED
            left = hosts_left(place)
            if place.hosts and not left.hosts:
                self._say("no host of the allocation answers any more")
                return _RESUMABLE if self._ends[-1].version else _FAILED
            if gone := [host.name for host in place.hosts if host not in left.hosts]:
                self._say(f"going on without {', '.join(gone)}")
                self._given_up += gone
                names_hosts = True
            place = left

    def _attempt(self, folder: Path, memory: Path, place: Allocation, names_hosts: bool) -> End:
        env = {
            **self.env,
            marker.FOLDER: str(folder),
            marker.ATTEMPT: str(len(self._ends) + 1),
            marker.MEMORY: str(memory),
        }
        for word in ("ready", "done"):
            (folder / word).unlink(missing_ok=True)
        if self.hydra:
            line = shown = hydra_line(self.launcher, self.order, place)
        else:
            line = mpirun_line(self.launcher, self.order, place, env, names_hosts)
            shown = mpirun_line(self.launcher, self.order, place, self.env, names_hosts)
        self._say(("started again: " if self._ends else "") + shlex.join(shown))
        try:
            process = subprocess.Popen(line, env=env)
        except OSError as error:
            raise Misuse(f"{self.launcher}: {error.strerror}") from None
        lookout = Lookout(place)
        lookout.start()
        try:
            status, stopped = self._wait(process, folder, lookout)
        finally:
            lookout.end()
        done = marker.heard(folder, "done") is not None
        return End(status, done, marker.heard(folder, "version") or 0, stopped)

    def _wait(
        self, process: subprocess.Popen[bytes], folder: Path, lookout: Lookout
    ) -> tuple[int, bool]:
        """mpirun's exit status, and whether it was told to stop."""
        asked_s, passed = 0.0, False
        while (status := process.poll()) is None:
            time.sleep(_POLL_S)
            if lookout.silent:
                self._say(f"{', '.join(lookout.silent)} cut off: ending what runs here")
                process.kill()
                process.wait()
            if self._stop and not passed:
                asked_s = asked_s or time.monotonic()
                ready = marker.heard(folder, "ready") is not None
                passed = self._pass_on(process, ready, time.monotonic() - asked_s)
            asked_s = asked_s if self._stop else 0.0
        return status, passed

    def _pass_on(self, process: subprocess.Popen[bytes], ready: bool, waited_s: float) -> bool:
        """Tell the job what this process was told; False if not now, or not at all."""
        if self._stop == "SIGINT":
            # From a terminal Ctrl-C has reached mpirun already.
            if waited_s > _CTRL_C_S:
                process.send_signal(signal.SIGINT)
            return waited_s > _CTRL_C_S
        if ready:
            # mpirun passes it to every rank; TERM would make it end them.
            process.send_signal(signal.SIGUSR1)
            return True
        if waited_s < _READY_S:
            return False
        if self._stop == "SIGTERM":
            process.terminate()
            return True
        if not self._goes_on:
            self._goes_on = True
            self._say(
                f"{self._stop}: the job keeps no checkpoints (--checkpoint-dir) yet: it goes on"
            )
        return False

    def _forget(self, memory: Path) -> None:
        """Remove the checkpoints in the memory of all hosts."""
        shutil.rmtree(memory, ignore_errors=True)
        command = ["rm", "-rf", str(memory)]
        others = [host for host in self.allocation.hosts if not _is_here(host)]
        begun = time.monotonic()
        sweeps = {host: _quietly(_on_host(self.allocation, host, command)) for host in others}
        for host, sweep in sweeps.items():
            limit_s = _LOST_S if host.name in self._given_up else _PROBE_S
            try:
                sweep.wait(max(0.1, begun + limit_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                sweep.kill()
                sweep.wait()

    def _say(self, words: str) -> None:
        print(f"diml run: {words}", file=sys.stderr, flush=True)
