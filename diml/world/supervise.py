"""`diml run`: the right mpirun line for where it is, and the job started again when it is lost.

Owns the life of mpirun's process, and the decision what an end means (`judge`, pure). That a job
is done is known from its own word (`marker`), never from mpirun's exit status alone: it is 0 after
a lost node. Must not import MPI, nor know what the job does.

Invariant: 75 is left with only where the job has a checkpoint on a disk, and never for a job that
is lost at the same place again and again: a batch script puts it back into the queue.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from diml.errors import Misuse, Resumable
from diml.world import marker, node_memory
from diml.world.command import Order, hydra_line, mpirun_line
from diml.world.hosts import Allocation
from diml.world.launch import children
from diml.world.lookout import Lookout, Roll, call

_READY_S = 10.0  # for a job that is told to stop to say that it can
_CTRL_C_S = 2.0
_END_S = 30.0  # for mpirun to end what it was told to end
_STAYS_S = 30.0  # for mpirun to end once nobody is left
_LOST_S = 2.0  # for a host that was given up, to be swept if it is back
_POLL_S = 0.1
_FAILED, _INTERRUPTED = 1, 130
_RESUMABLE = Resumable.exit_status
_OF_ONE_ATTEMPT: tuple[marker.Word, ...] = ("begun", "ready", "left", "done", "came", "went")
# The signals that stop a run, the weaker first. SGE's warning is USR2; a terminal that is closed
# sends HUP, which nohup has told to ignore.
_STOPS = ("", "SIGUSR1", "SIGTERM", "SIGINT")
_MEANS = {signal.SIGUSR2: "SIGUSR1", signal.SIGHUP: "SIGTERM"}
_TOLD = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, *_MEANS)


@dataclass(frozen=True, slots=True)
class End:
    """How one attempt ended.

    Attributes:
        status: mpirun's exit status (negative: it died of that signal).
        done: the job has said that it is done.
        version: the newest checkpoint that it is known to have kept; 0 for none.
        stopped: it was told to stop.
        begun: some process of it has called `diml.init`.
        left: the status with which it has said that it leaves in error, if it has.
        on_disk: it keeps checkpoints on a disk.
        alone: it had this host only, so none can have been lost.
        cut: it has loaded DiML, and none of its processes has come to the end of the program.
    """

    status: int
    done: bool
    version: int = 0
    stopped: bool = False
    begun: bool = True
    left: int | None = None
    on_disk: bool = False
    alone: bool = False
    cut: bool = False

    @property
    def resumable(self) -> int:
        """The status to leave with where there is no more to be done: can it be resumed?"""
        return _RESUMABLE if self.version and self.on_disk else _FAILED


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows: again, or the exit status to leave with; `words` say why, where needed."""

    again: bool
    status: int = 0
    words: str = ""


def judge(ends: Sequence[End], max_restarts: int) -> Verdict:
    """What follows from all attempts up to now.

    A job that said why it leaves (misuse, an error or a status of the program, an interruption, a
    stop that it was told to make) is not started again; one that was lost is, unless it was lost
    twice at the same version or has been started again often enough.
    """
    last = ends[-1]
    if last.done or _is_its_own(last):
        return Verdict(False, _shell(last.status))
    if last.status == 0 and last.alone and not last.begun and not last.cut:
        return Verdict(False, 0, "the program has ended, and never called diml.init")
    if last.stopped:
        return Verdict(False, _RESUMABLE if last.status == _RESUMABLE else _FAILED)
    lost = f"the job was lost (mpirun's exit status {last.status}, and it never said it was done)"
    if not last.begun:
        lost = f"the job was lost before it came to diml.init (mpirun's exit status {last.status})"
    if last.status == _RESUMABLE:
        lost = "the job left to be started again"
    if len(ends) > 1 and ends[-2].version == last.version:
        where = f"version {last.version}" if last.version else "its beginning"
        return Verdict(False, _FAILED, f"{lost}, twice without getting beyond {where}: given up")
    if len(ends) > max_restarts:
        return Verdict(False, last.resumable, f"{lost}; no restarts left of {max_restarts}")
    return Verdict(True, 0, lost)


def _is_its_own(end: End) -> bool:
    """Whether the program has chosen this status, so that another try would come to the same.

    MPI ends a job with numbers of its own: a process that is lost in MPI_Init takes the others
    with it, with an error class of MPI's. So a job that has begun has to say with what it leaves.
    Before, all statuses are a program's but those over 125, which are Open MPI's launcher's, and
    the number of USR2, with which processes leave when one of them is lost (`orphan`).
    """
    status = end.status
    if status in (_FAILED, Misuse.exit_status, _INTERRUPTED, -signal.SIGINT):
        return True
    if not 0 < status < 126 or status == _RESUMABLE:
        return False
    return status == end.left if end.begun else status != signal.SIGUSR2


def _shell(status: int) -> int:
    return status if status >= 0 else 128 - status


class Leavings:
    """Whether a launcher stays though all that it had started on this host has left."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._had = False
        self._alone_since_s: float | None = None

    def idle(self) -> bool:
        """To be asked again and again: whether it has had nobody left for long, and nothing that
        somebody has yet to read."""
        if any(map(_lives, children(self._pid))):
            self._had, self._alone_since_s = True, None
        elif self._had and self._alone_since_s is None:
            self._alone_since_s = time.monotonic()
        if self._alone_since_s is None or not _taken():
            return False
        return time.monotonic() - self._alone_since_s > _STAYS_S


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"Z"
    except OSError:
        return False


def _taken() -> bool:
    """Whether stdout and stderr, the launcher's as well, have room for more."""
    poll = select.poll()
    for file in (1, 2):
        poll.register(file, select.POLLOUT)
    room = [file for file, seen in poll.poll(0) if seen & select.POLLOUT]
    return len(room) == 2


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
        """Run the job to its end; returns the exit status to leave with.

        Raises Misuse where this is none of the hosts, or has no place for the words of the job.
        """
        roll = Roll(self.allocation)
        if self.allocation.hosts and roll.here is None:
            names = [host.name for host in self.allocation.hosts]
            those = ", ".join([*names[:4], *(["..."] if names[4:] else [])])
            here = os.uname().nodename
            raise Misuse(f"{here} is none of the hosts ({those}): start diml run on one of them")
        for left in node_memory.sweep():
            self._say(f"removed {left}, which a killed run had left behind")
        memory = node_memory.new_folder()
        folder = memory / "words"
        try:
            held = node_memory.hold(memory, supervisor=True)
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise Misuse(f"no folder in the memory of the node: {error}") from None
        told = [number for number in _TOLD if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._told) for number in told}
        try:
            return self._attempts(folder, memory, roll)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._forget(memory, roll)
            os.close(held)

    def _told(self, number: int, frame: FrameType | None) -> None:
        name = _MEANS.get(signal.Signals(number)) or signal.Signals(number).name
        self._stop = max(self._stop, name, key=_STOPS.index)

    def _attempts(self, folder: Path, memory: Path, roll: Roll) -> int:
        names_hosts = False
        while True:
            self._ends.append(self._attempt(folder, memory, roll, names_hosts))
            if self._stop == "SIGINT":
                return _INTERRUPTED
            verdict = judge(self._ends, self.max_restarts)
            if verdict.words:
                self._say(verdict.words)
            if not verdict.again:
                return verdict.status
            if not self._stop and (gone := roll.strike_out()):
                self._say(f"going on without {', '.join(gone)}")
                self._given_up += gone
                names_hosts = True
            if self._stop:
                return _INTERRUPTED if self._stop == "SIGINT" else self._ends[-1].resumable

    def _attempt(self, folder: Path, memory: Path, roll: Roll, names_hosts: bool) -> End:
        place = roll.place
        env = {
            **self.env,
            marker.FOLDER: str(folder),
            marker.ATTEMPT: str(len(self._ends) + 1),
            marker.MEMORY: str(memory),
        }
        for word in _OF_ONE_ATTEMPT:
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
        lookout = Lookout(roll)
        lookout.start()
        alone = len(place.hosts) < 2
        try:
            status, stopped = self._wait(process, folder, lookout, alone)
        finally:
            lookout.end()
        if self.hydra and signal.SIGINT < status < signal.SIGRTMIN:
            status = -status  # what ended a process, in MPICH's words
        words = [marker.heard(folder, word) for word in _OF_ONE_ATTEMPT]
        begun, ready, left, done, came, went = words
        version = marker.heard(folder, "version") or 0
        on_disk = ready is not None or any(end.on_disk for end in self._ends)
        cut = came is not None and went is None
        return End(
            status, done is not None, version, stopped, begun is not None, left, on_disk, alone, cut
        )

    def _wait(
        self, process: subprocess.Popen[bytes], folder: Path, lookout: Lookout, alone: bool
    ) -> tuple[int, bool]:
        """mpirun's exit status, and whether it was told to stop. `alone`: on this host only."""
        asked_s, passed, sent, end_by_s = 0.0, "", 0, 0.0
        leavings = Leavings(process.pid)
        while (status := process.poll()) is None:
            time.sleep(_POLL_S)
            if alone and leavings.idle():
                self._say(f"{self.launcher} stays though the last process has left: killed")
                process.kill()
                status = process.wait()
                done = marker.heard(folder, "done") is not None
                return 0 if done else status, bool(passed)
            if lookout.silent:
                self._say(f"{', '.join(lookout.silent)} cut off: ending what runs here")
                process.kill()
                process.wait()
            if self._stop and (not passed or self._stop == "SIGINT" != passed):
                asked_s = asked_s or time.monotonic()
                ready = marker.heard(folder, "ready") is not None
                sent = self._pass_on(process, ready, time.monotonic() - asked_s)
                if sent:
                    passed, end_by_s = self._stop, time.monotonic() + _END_S
            if sent in (signal.SIGINT, signal.SIGTERM) and time.monotonic() > end_by_s:
                self._say(f"{self.launcher} does not end: killed")
                process.kill()
                process.wait()
        return status, bool(passed)

    def _pass_on(self, process: subprocess.Popen[bytes], ready: bool, waited_s: float) -> int:
        """Tell the job what this process was told; the signal sent, 0 if not now or not at all."""
        number = 0
        if self._stop == "SIGINT":
            # From a terminal Ctrl-C has reached mpirun already.
            number = signal.SIGINT if waited_s > _CTRL_C_S else 0
        elif ready:
            # mpirun passes it to every rank; TERM would make it end them.
            number = signal.SIGUSR1
        elif waited_s > _READY_S and self._stop == "SIGTERM":
            number = signal.SIGTERM
        if number:
            process.send_signal(number)
            return number
        if self._stop == "SIGINT" or waited_s <= _READY_S:
            return 0
        if not self._goes_on:
            self._goes_on = True
            self._say(
                f"{self._stop}: the job keeps no checkpoints (--checkpoint-dir) yet: it goes on"
            )
        return 0

    def _forget(self, memory: Path, roll: Roll) -> None:
        """Remove the checkpoints in the memory of all hosts."""
        shutil.rmtree(memory, ignore_errors=True)
        command = ["rm", "-rf", str(memory)]
        lost = [host for host in self.allocation.hosts if host.name in self._given_up]
        call(self.allocation, roll.others, command)
        for host in lost:
            call(self.allocation, [host], command, _LOST_S)

    def _say(self, words: str) -> None:
        # A full disk or a reader that has gone is no reason to leave a job alone.
        with contextlib.suppress(OSError):
            print(f"diml run: {words}", file=sys.stderr, flush=True)
