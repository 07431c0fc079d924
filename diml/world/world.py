"""This process's place in the job: its role, its links, and how both are got back after a death.

Owns the life of a process between start and exit: gates, recovery, leaving, ending in error.
Must not know collectives' logs, tables or checkpoints; whoever holds such state registers a hook.

Invariants ("one gate"): commit, leaving and repair each begin with one agreement on the link that
they concern, so that no process is in an agreement while another one shrinks. After the workers
have agreed to leave, the next agreement of each is the one on `full`, whatever goes wrong between.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from diml.config import Settings
from diml.drill import DrillPlan
from diml.errors import GaveUp, JobEnded, PeerFailed, status_of
from diml.events import EventLog, about
from diml.world import marker
from diml.world.calls import Activity, Calls
from diml.world.host import Host
from diml.world.link import LEAVE_TAG
from diml.world.membership import Role
from diml.world.mpi import abort, lent
from diml.world.position import Position
from diml.world.repair import Footing, PhaseClock, Rebuild, Unfilled
from diml.world.spawn import Spawner
from diml.world.watchdog import Watch, Watchdog, ticks

_LAST_GATE = "the last gate"
_KEPT = b"kept"  # the word that workers have state of their own; the empty one: leave
# So many repairs in a row in which nobody was lost, and the cause is none that a repair mends.
_IDLE_REPAIRS_MAX = 16
# How long a rank that leaves in error waits for the others to hear of it.
_END_DEADLINE_S = 10.0
# How long the others stay when one says why all must leave and no agreement is possible any more:
# mpirun ends the job when the second process leaves in error. On a busy machine a second is short.
_LET_SPEAK_S = 2.0


class World(Position):
    """The process among its peers. Made by `diml.world.start.start`, collectively.

    Attributes beside those of `Position`:
        settings: the job's settings.
        event: writes one line into the event log (`event("what", field=...)`), if there is one.
        calls: the DiML call that this process is in; whatever may wait for peers says begin, end.
        repairs: seconds of each repair that this process took part in.
        at_repair: hooks that restore state, run by `recover` in this order, collectively on
            `full` over workers, servers and spares; they may raise PeerFailed.
        at_end: called when the job is over in good order.
        resumable: whether the job can go on from a durable checkpoint if it gives up.
    """

    def __init__(self, settings: Settings, footing: Footing, event: EventLog, host: Host) -> None:
        self.settings = settings
        super().__init__(footing, host)
        self.at_repair: list[Callable[[], None]] = []
        self.at_end: list[Callable[[], None]] = []
        self.resumable: Callable[[], bool] = lambda: False
        self.repairs: list[float] = []
        self.event = event
        self.calls = Calls()
        self._drills = DrillPlan(settings.drills)
        self._workers_gate_failed = self._full_gate_failed = False
        self._idle_repairs = 0
        self._recovering = False
        self._ending = 0
        self._last_words = ""
        self._spawner = Spawner()
        self._committed = False
        self._record_place()
        self.watchdog = Watchdog(self._watch())
        tells = self.uid == 0 and event.heard
        self.event("start", size=footing.full.size, **(about(settings) if tells else {}))

    def _watch(self) -> Watch:
        return Watch(
            host=self.host,
            calls=self.calls,
            working=lambda: frozenset(seat.uid for seat in self.membership.workers),
            needed=self._needed,
            stuck=self._unstick,
            beat=Activity(self.event, self.calls).beat if self.settings.events else _nothing,
            report=lambda uid, reason: self.event("fence", fenced=uid, reason=reason),
            abort=abort,
            frozen_deadline_s=self.settings.frozen_deadline_s,
            deadline_s=self.settings.deadline_s,
        )

    def _needed(self) -> frozenset[int]:
        if self._recovering or self.calls.site == _LAST_GATE:
            return frozenset(() if self._recovering else self.footing.uids)
        return frozenset(s.uid for s in (*self.membership.workers, *self.membership.servers))

    def _unstick(self) -> None:
        """All workers wait and nothing moves: get them out, so that they can compare notes."""
        if self.workers is not None:
            self.workers.revoke()

    # Gates, recovery, leaving ----------------------------------------------------------------

    def gate(self) -> None:
        """The commit gate: returns when every worker has come here and none has failed.

        Collective over the workers.

        Raises:
            PeerFailed: on all of them alike; recovery is next.
        """
        assert self.workers is not None
        # Longer than it takes to find the workers stuck: that ends better, with their call sites.
        limit_s = 2 * self.settings.deadline_s + 5
        with self.watchdog.limit(limit_s, "the gate of the workers"):
            if not self.workers.agree(True):
                self._workers_gate_failed = True
                raise PeerFailed("a worker failed before the gate")

    def recover(self) -> None:
        """Go from a failure to a whole world: links, seats, and the state that hooks restore.

        Called by whoever caught PeerFailed; all the others follow as soon as they touch a link.
        Role and membership may have changed when it returns.

        Raises:
            JobEnded: a rank leaves in error, nobody can take a dead one's seat, or a state has no
                holder left: on everyone alike, the reason printed once.
        """
        clock = PhaseClock()
        before = self.footing.uids
        self._recovering = True
        self._shut_gates()
        self._repair(clock, rebuild_first=True)
        self._recovering = False
        seconds = clock.total_s()
        self.repairs.append(seconds)
        lost = [uid for uid in before if uid not in self.footing.uids]
        self._idle_repairs = 0 if lost else self._idle_repairs + 1
        if self._idle_repairs >= _IDLE_REPAIRS_MAX:
            raise self._ended(GaveUp("MPI keeps failing though nobody has died"))
        self.event("repair", lost=lost, seconds=seconds, phases=clock.seconds)
        if self._committed:
            self._prepare_spare()

    def join(self) -> None:
        """Complete the repair for which this process was spawned, with its hooks in place."""
        clock = PhaseClock()
        self._repair(clock, rebuild_first=False)
        self.event("join", seconds=clock.total_s(), phases=clock.seconds)

    def _repair(self, clock: PhaseClock, rebuild_first: bool) -> None:
        """Rebuild and restore until everyone has come through both alive."""
        about = (self.host.run, self.host.processes)
        on_failure = self.settings.on_failure
        try:
            while True:
                with self.watchdog.limit(self.settings.repair_deadline_s, "the repair"):
                    if rebuild_first:
                        rebuild = Rebuild(clock.phase, on_failure, self._spawner, lambda: about)
                        self.footing = rebuild.run(self.footing)
                    rebuild_first = True
                    self._record_place()
                    clock.phase("restore")
                    if self._restore():
                        break
        except Unfilled as error:
            raise self._ended(error, error.speaker) from None
        except GaveUp as error:
            raise self._ended(error) from None
        self._workers_gate_failed = False
        self._full_gate_failed = False
        clock.phase("done")

    def _prepare_spare(self) -> None:
        """With --spares auto, the leader keeps one process ready from the first commit on."""
        wanted = self.settings.spares == "auto" and self.settings.on_failure == "respawn"
        if wanted and self.full.rank == 0 and self.full.size > 1 and not self.membership.spares:
            self._spawner.prepare()

    def committed(self) -> None:
        """Told after every commit (a checkpoint, a clock): from the first one on it is worth it
        to have a process ready for the next death."""
        if not self._committed:
            self._committed = True
            self._prepare_spare()

    def _ended(self, error: GaveUp, speaker: bool | None = None) -> JobEnded:
        """The end that all come to alike; the speaker says why, worker 0 where only workers may
        have found out, and the others let it."""
        if speaker or (speaker is None and self.role is Role.WORKER and self.rank == 0):
            print(f"diml: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(_LET_SPEAK_S)
        return JobEnded(status_of(error, self.resumable()))

    def _shut_gates(self) -> None:
        """Get everyone out of what they are in, and meet them at the gates with "error"."""
        with self.watchdog.limit(self.settings.deadline_s, "everyone's arrival at the repair"):
            if self.workers is not None:
                self.workers.revoke()
            self.full.revoke()
            if self.workers is not None and not self._workers_gate_failed:
                self.workers.agree(False)
            if not self._full_gate_failed:
                self.full.agree(False)

    def _restore(self) -> bool:
        """Run the hooks; whether everyone came through them alive."""
        ok = True
        try:
            said = self.full.allgather_objects((self._ending, self.host.me))
            endings = [status for status, _ in said]
            if any(endings):
                return self._end_together(endings)
            self.host.processes.update({process.uid: process for _, process in said})
            self.watchdog.meet_neighbours()
            for hook in self.at_repair:
                hook()
        except PeerFailed:
            ok = False
            self.full.revoke()
        return self.full.agree(ok)

    def _end_together(self, endings: list[int]) -> bool:
        """Leave for the first rank's reason; False on everyone if a death came between.

        The reason is said before anyone leaves: mpirun ends the job at the second process that
        leaves in error, and what has not been said by then is lost.
        """
        speaker = next(rank for rank, status in enumerate(endings) if status)
        if self.full.rank == speaker and self._last_words:
            print(self._last_words, file=sys.stderr, flush=True)
            self._last_words = ""
        if not self.full.agree(True):
            return False
        marker.say("left", endings[speaker])
        raise JobEnded(endings[speaker])

    def leave(self) -> None:
        """The last gate of a worker: all workers are finished, servers and spares may go.

        Collective over everyone; the workers must have passed `gate` just before.

        Raises:
            PeerFailed: someone died on the way out; recover, finish and leave again.
        """
        ok = True
        self._spawner.close()
        try:
            if self.rank == 0:
                self.full.tell(self.footing.servers_and_spares, b"")
        except PeerFailed:
            ok = False
        self.leave_as_told(ok)

    def say_kept(self) -> None:
        """Let servers and spares know that workers have state of their own. Raises PeerFailed."""
        self.full.tell(self.footing.servers_and_spares, _KEPT)

    def leave_as_told(self, ok: bool = True) -> None:
        """The last gate of a server or spare that has received LEAVE_TAG. Raises PeerFailed."""
        self.calls.begin(_LAST_GATE)
        with self.watchdog.limit(self.settings.deadline_s, _LAST_GATE):
            agreed = self.full.agree(ok)
            self.calls.end()
            if not agreed:
                self._full_gate_failed = True
                raise PeerFailed("a process failed before the last gate")
        self.event("leave")
        marker.say("done")
        self.watchdog.stop()
        for step in self.at_end:
            step()

    def wait_as_spare(self) -> None:
        """Stay until there is a seat for this process, or until the job is over.

        Returns with `role` changed, or as a spare after the last gate.
        """
        while self.role is Role.SPARE:
            try:
                message = self._idle_receive()
                if message:
                    self.leave_as_told()
                    return
            except PeerFailed:
                self.recover()

    def _idle_receive(self) -> bool:
        """Whether the word to leave has come, within a second. Raises PeerFailed if revoked."""
        try:
            message = self.full.receive(timeout_s=1.0)
        except PeerFailed:
            # The death of another spare is nobody's business until a seat is empty, and then
            # those who work on the dead one's behalf revoke the link; but if no worker is left
            # to do so, the spares have to.
            if self.full.is_revoked():
                raise
            dead = self.full.ack_deaths()
            workers = range(len(self.membership.workers))
            if all(self.address(Role.WORKER, i) in dead for i in workers):
                raise
            return False
        return message is not None and message.tag == LEAVE_TAG

    def end(self, status: int, words: str) -> JobEnded:
        """Take the whole job down with an exit status; the caller raises what it returns.

        `words` are said once, though several ranks may have come to the same end. Everyone else
        gets JobEnded out of `recover`; those who do not come within a few seconds are ended by
        MPI_Abort.
        """
        self._ending, self._last_words = status, words
        marker.say("left", status)
        limit_s = self.settings.deadline_s if lent() else _END_DEADLINE_S  # nobody lent is forced
        with self.watchdog.limit(limit_s, "everyone to leave", status, words):
            try:
                self.recover()
            except JobEnded as ended:
                return ended
        return JobEnded(status)

    def busy(self, seconds: float) -> None:
        """Keep the watchdogs of the host from taking this rank for late during `seconds`."""
        self.calls.busy_ticks = ticks(seconds)

    # Drills and events -----------------------------------------------------------------------

    def drill(self, version: int, sequence: int, point: str = "entry") -> None:
        """End or stop this process if a drill says so here and now."""
        if not self.settings.drills:
            return
        number = self.membership.drill_number(self.uid)
        name = self._drills.strike(number, version, sequence, self.incarnation, point)
        if name is None:
            return
        self.event("drill", version=version, sequence=sequence, point=point, signal=name)
        strike = functools.partial(os.kill, os.getpid(), getattr(signal, f"SIG{name}"))
        if point == "inside":
            # The thread runs once the main thread has gone into MPI and let go of the interpreter.
            threading.Thread(target=strike, daemon=True).start()
        else:
            strike()

    def _record_place(self) -> None:
        role, rank = self.membership.place_of(self.uid)
        self.event.stand(role=role.value, rank=rank, incarnation=self.incarnation, epoch=self.epoch)


def _nothing(inside: bool) -> None:
    """Without an event log nobody asks how much of its time a process waits."""
