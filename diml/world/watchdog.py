"""Nothing waits for ever: deadlines on waits that MPI cannot interrupt, and the end of the hung.

Owns one daemon thread a process. Must not know what is waited for. It counts its own ticks
instead of reading a clock, so that a job that was suspended as a whole is not taken for a dead
one when it goes on.

Invariants: a process of this host that is stopped (state T) for longer than its deadline, or a
worker that is late, is killed by its neighbours, which turns a hang into a death that MPI
reports; a limit that is outlived ends the job with one line that says what was waited for. So
does a neighbour that is gone and waited for, where MPI says nothing: Open MPI reports who is
ended by a signal, not who ends with an exit status of its own. A process does not outlive its
launcher: nobody would end it, or hear of its death, and the next run would meet it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diml.world.calls import Calls, LateJudge
from diml.world.host import Host, Process
from diml.world.launch import singleton
from diml.world.node_memory import drop_segments

TICK_S = 0.25
# For what a launcher still does on its way out.
_ALONE_MOST_S = 2.0


@dataclass(frozen=True)
class Watch:
    """What a watchdog watches.

    Attributes:
        host: this process, the others beside it, and the board where they publish.
        calls: this process's own calls.
        working: the uids that are workers at the moment.
        needed: those whose death has to be repaired and is not being repaired: workers, servers.
        stuck: called when all workers of the host wait in calls past the deadline, one alone too if
            there are workers elsewhere.
        beat: told at every tick whether this process is in a call.
        report: told the uid and the reason of everyone killed here.
        abort: ends the whole job with a status.
        frozen_deadline_s: for processes in state T.
        deadline_s: for late workers.
    """

    host: Host
    calls: Calls
    working: Callable[[], frozenset[int]]
    needed: Callable[[], frozenset[int]]
    stuck: Callable[[], None]
    beat: Callable[[bool], None]
    report: Callable[[int, str], None]
    abort: Callable[[int], None]
    frozen_deadline_s: float
    deadline_s: float


@dataclass
class _Limit:
    ticks_left: int
    seconds: float
    what: str
    abort_status: int | None
    last_words: str


class Watchdog:
    """Watches this process's waits and the processes beside it on the host."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._limits: list[_Limit] = []
        self._heartbeat = 0
        self._judge = LateJudge(ticks(watch.deadline_s))
        self._slot = max(0, watch.host.me.slot)
        self._others: dict[int, Process] = {}
        self._births: dict[int, str] = {}
        self._frozen_ticks: dict[int, int] = {}
        # Those that are gone: the call in which this process waited then, and for how long.
        self._gone: dict[int, tuple[int, int]] = {}
        self._launcher = None if singleton(os.environ) else os.getppid()
        self._alone_ticks = 0
        self.meet_neighbours()
        self._over = threading.Event()
        threading.Thread(target=self._run, name="diml-watchdog", daemon=True).start()

    def meet_neighbours(self) -> None:
        """Watch everyone who has joined on this host since the last time."""
        for process in self._watch.host.neighbours():
            if process.uid not in self._births:
                self._births[process.uid] = _process_state(process.pid)[1]
                self._frozen_ticks[process.uid] = 0
                self._others[process.uid] = process

    def stop(self) -> None:
        """No more watching: the job is over."""
        self._over.set()

    @contextlib.contextmanager
    def limit(
        self, seconds: float, what: str, abort_status: int | None = None, last_words: str = ""
    ) -> Iterator[None]:
        """End the job if the block takes longer than `seconds`.

        With `abort_status` it ends with that status, and says `last_words` instead of `what`.
        """
        entry = _Limit(ticks(seconds), seconds, what, abort_status, last_words)
        self._limits.append(entry)
        try:
            yield
        finally:
            self._limits.remove(entry)

    def _run(self) -> None:
        while not self._over.wait(TICK_S):
            try:
                self._tick()
            except Exception:  # without this thread nothing would ever end a wait
                with contextlib.suppress(OSError):
                    traceback.print_exc()

    def _tick(self) -> None:
        self._heartbeat += 1
        calls = self._watch.calls
        calls.busy_ticks = max(0, calls.busy_ticks - 1)
        self._watch.host.board.publish(self._slot, self._heartbeat, calls)
        for entry in list(self._limits):
            entry.ticks_left -= 1
            if entry.ticks_left <= 0:
                self._give_up(entry)
        self._follow_launcher()
        self._fence_frozen()
        self._end_unreported()
        self._fence_late()
        self._watch.beat(bool(calls.inside))

    def _follow_launcher(self) -> None:
        if self._launcher is None or os.getppid() == self._launcher:
            return
        self._alone_ticks += 1
        if self._alone_ticks == 1:
            # At once: MPI may end this process before the time is over.
            with contextlib.suppress(OSError):
                drop_segments()
        if self._alone_ticks >= ticks(_ALONE_MOST_S):
            with contextlib.suppress(OSError):
                print("diml: the launcher is gone; ending", file=sys.stderr, flush=True)
            os._exit(1)

    def _give_up(self, entry: _Limit) -> None:
        text = entry.last_words
        if entry.abort_status is None:
            text = f"diml: waited {entry.seconds:g} s for {entry.what}; giving up{self._away()}"
        if text:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)
        self._watch.abort(1 if entry.abort_status is None else entry.abort_status)
        os._exit(1)

    def _away(self) -> str:
        """Who of this host's workers is outside every call, for the message of a lost wait."""
        board, working = self._watch.host.board, self._watch.working()
        away = [n for n in list(self._others.values()) if n.uid in working]
        names = [
            f"process {n.uid} (last call: {standing.site or 'none'})"
            for n in away
            if not (standing := board.read(n.slot)).inside
        ]
        return f"; not in any call: {', '.join(names)}" if names else ""

    def _fence_frozen(self) -> None:
        for uid, other in list(self._others.items()):
            state, birth = _process_state(other.pid)
            if birth != self._births[uid]:
                del self._others[uid]
                self._gone[uid] = (0, 0)
            elif state != "T":
                self._frozen_ticks[uid] = 0
            else:
                self._frozen_ticks[uid] += 1
                if self._frozen_ticks[uid] >= ticks(self._watch.frozen_deadline_s):
                    self._kill(other, f"stopped for {self._watch.frozen_deadline_s:g} s")

    def _end_unreported(self) -> None:
        """End the job if this process waits in one call while somebody is gone whom nobody
        replaces; of a host's processes the first one says so."""
        needed = self._watch.needed() if self._gone else frozenset()
        call, inside, _ = self._watch.calls.now()
        before_me = sum(uid < self._watch.host.me.uid for uid in list(self._others))
        most = ticks(self._watch.frozen_deadline_s) + ticks(1.0) * before_me
        for uid, (since, waited) in list(self._gone.items()):
            waiting = inside and call == since and uid in needed
            self._gone[uid] = (call, waited + 1 if waiting else 0)
            if self._gone[uid][1] >= most:
                words = f"process {uid} has ended, which MPI does not report; giving up"
                self._give_up(_Limit(0, 0.0, "", 1, f"diml: {words}"))

    def _fence_late(self) -> None:
        working = self._watch.working()
        here = [p for p in (self._watch.host.me, *self._others.values()) if p.uid in working]
        standings = {p.uid: self._watch.host.board.read(max(0, p.slot)) for p in here}
        late, stuck = self._judge.tick(standings, elsewhere=len(working) > len(here))
        for uid in late:
            if uid in self._others:
                site = standings[uid].site or "the start"
                reason = f"{self._watch.deadline_s:g} s late; it last called {site}"
                self._kill(self._others[uid], reason)
        if stuck:
            self._watch.stuck()

    def _kill(self, other: Process, reason: str) -> None:
        del self._others[other.uid]
        self._watch.report(other.uid, reason)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(other.pid, signal.SIGKILL)


def ticks(seconds: float) -> int:
    """A time in ticks of the watchdog, at least one."""
    return max(1, round(seconds / TICK_S))


def _process_state(pid: int) -> tuple[str, str]:
    """State letter and start time of a process in /proc; empty if there is no such process.

    The start time tells a process from a later one that was given the same number.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].decode().split()
        return words[0], words[19]
    except (OSError, IndexError):
        return "", ""
