"""Carries out the effects of the protocol's scripts over the world's links, and retries.

Owns the loop "try; if a rank died, repair and run a new script", the framing of what recovery
sends, and the recycled memory of checkpoints. Must not decide anything: that is `recovery`'s.

Invariants: a link is never kept across a repair; memory that a failed MPI call may still write to
is not used again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from diml.allreduce.effects import (
    Effect,
    Execute,
    Gate,
    Give,
    Pass,
    Point,
    Reduce,
    Script,
    Spread,
    Swap,
    Take,
)
from diml.allreduce.log import Result
from diml.allreduce.recovery import Core
from diml.allreduce.wire import Bytes, unwrap, wrap
from diml.errors import CallFailed, PeerFailed, Shrunk

if TYPE_CHECKING:
    from diml.world.link import Link
    from diml.world.world import World

T = TypeVar("T")
_TAG = 1
# A message longer than this goes in pieces (MPI counts bytes in an int).
_PIECE_BYTES = 1 << 29
_IDLE_BUFFERS_MAX = 6
_TELL_EVERY_S = 0.5


class Buffers:
    """Recycled memory for encoded states: fresh pages cost as much as the copy into them."""

    def __init__(self) -> None:
        self._idle: list[Bytes] = []

    def take(self, nbytes: int) -> Bytes:
        """An uninitialised uint8 array of exactly that length."""
        fitting = [i for i, b in enumerate(self._idle) if nbytes <= b.size <= 2 * nbytes]
        if not fitting:
            return np.empty(nbytes, np.uint8)
        return self._idle.pop(min(fitting, key=lambda i: self._idle[i].size))[:nbytes]

    def give_back(self, box: list[Any]) -> None:
        """Let the buffer in the box be used again, unless somebody else still holds it: a
        checkpoint that is being made once more, or written to a disk."""
        if not isinstance(box[0], np.ndarray):
            return
        free = _FREE_WHOLE if box[0].base is None else _FREE_VIEW
        whole, seen = _seen(box)
        if isinstance(whole, np.ndarray) and whole.flags.owndata and seen == free:
            self._idle.append(whole)
            del self._idle[:-_IDLE_BUFFERS_MAX]


def _seen(box: list[Any]) -> tuple[Any, tuple[int, int]]:
    """Whose memory the array in the box is; the references to both that are seen here."""
    buffer = box.pop()
    whole = buffer if buffer.base is None else buffer.base
    return whole, (sys.getrefcount(buffer), sys.getrefcount(whole))


# Seen if nobody else has any. Not written down: Python 3.14 counts fewer of its own than 3.13.
_FREE_WHOLE = _seen([np.empty(1, np.uint8)])[1]
_FREE_VIEW = _seen([np.empty(2, np.uint8)[:1]])[1]


class Driver:
    """Runs scripts for one process.

    Attributes:
        buffers: memory for encoded states.
        received_bytes, sent_bytes: what recovery has moved, for the record.
        held: what the collective under way has shown to MPI.
    """

    def __init__(self, world: World, core: Core) -> None:
        self._world = world
        self._core = core
        self.buffers = Buffers()
        self.received_bytes = self.sent_bytes = 0
        self.held: list[Any] = []
        self._lost: list[Any] = []
        self._told_s = 0.0

    @property
    def link(self) -> Link:
        """The workers' present link."""
        link = self._world.workers
        assert link is not None
        return link

    def tell_traffic(self, last: bool = False) -> None:
        """Write what this process has moved into the event log: now and then, and at its end."""
        now = time.monotonic()
        if not last and now - self._told_s < _TELL_EVERY_S:
            return
        self._told_s = now
        logs = (self._core.boot, self._core.steps)
        plain = sum(log.nbytes + log.gone_bytes for log in logs)
        size = self._core.size
        wire = 2 * plain * (size - 1) // size + self.sent_bytes
        self._world.event("traffic", by="collectives", plain_bytes=plain, wire_bytes=wire)

    def perform(
        self, make_script: Callable[[], Script[T]], execute: Callable[[], Result] | None = None
    ) -> T:
        """Run a script to its end, through as many repairs as it takes.

        Raises what the script raises (GaveUp, Mismatch), and CallFailed if MPI refuses the call
        again although all ranks agree on it; and Shrunk.
        """
        refusals = 0
        while True:
            try:
                return self.run(make_script(), execute)
            except CallFailed as error:
                refusals += 1
                if refusals > 1:
                    raise
                self.fail(error)
            except PeerFailed as error:
                self.fail(error)

    def fail(self, error: PeerFailed) -> None:
        """Somebody has died: say so in the event log, and repair the world.

        Raises Shrunk if it has become smaller, so that the program must begin again.
        """
        version, sequence = self._core.coordinates
        self._world.event("failure", version=version, sequence=sequence, reason=str(error))
        before = set(self._core.lost)
        self._world.recover()
        if self._core.restart:
            self._core.restart = False
            lost = tuple(sorted(set(self._core.lost) - before))
            self._world.event("shrunk", lost=lost, size=self._core.size)
            raise Shrunk(lost, self._core.size)

    def run(self, script: Script[T], execute: Callable[[], Result] | None = None) -> T:
        """Run a script once. Raises PeerFailed when an effect fails."""
        was_recovering, begun = self._core.recovering, time.perf_counter()
        outcome: Any = None
        try:
            while True:
                outcome = self._carry_out(script.send(outcome), execute)
                if was_recovering and not self._core.recovering:
                    was_recovering = False
                    self._event_together(time.perf_counter() - begun)
        except StopIteration as end:
            value: T = end.value
        if was_recovering and not self._core.recovering:
            self._event_together(time.perf_counter() - begun)
        return value

    def _event_together(self, seconds: float) -> None:
        version, sequence = self._core.coordinates
        self._world.event(
            "together",
            version=version,
            sequence=sequence,
            seconds=seconds,
            sent=self.sent_bytes,
            received=self.received_bytes,
        )

    def _carry_out(self, effect: Effect, execute: Callable[[], Result] | None) -> Any:
        if isinstance(effect, Reduce):
            send = np.array(effect.vector, np.int64)
            merged = np.empty_like(send)
            self._guarded(lambda: self.link.allreduce(send, merged, "max"), send, merged)
            return tuple(merged.tolist())
        if isinstance(effect, Execute):
            assert execute is not None
            version, sequence = self._core.coordinates
            self._world.drill(version, sequence, "inside")
            return self._execute(execute)
        if isinstance(effect, Point):
            self._world.drill(*self._core.coordinates, effect.name)
            return None
        if isinstance(effect, Gate):
            self._world.gate()
            return None
        if isinstance(effect, Give):
            return self._give(effect)
        if isinstance(effect, Take):
            return self._take(effect)
        if isinstance(effect, Spread):
            return self._spread(effect)
        if isinstance(effect, Pass):
            return self._pass(effect)
        return self._swap(effect)

    def _execute(self, execute: Callable[[], Result]) -> Result:
        self.held.clear()
        try:
            return execute()
        except PeerFailed:
            self.keep(*self.held)
            raise
        finally:
            self.held.clear()

    def _guarded(self, call: Callable[[], None], *buffers: Any) -> None:
        """Make an MPI call; if it fails, keep its buffers for good."""
        try:
            call()
        except PeerFailed:
            self.keep(*buffers)
            raise

    def keep(self, *buffers: Any) -> None:
        """Never let these be used again: MPI may still hold them after a failed call."""
        self._lost.extend(buffers)

    def _give(self, effect: Give) -> None:
        data = wrap(effect.payload)
        link = self.link
        # The receiver meets everyone in the next collective, so these are complete by then.
        link.isend(np.array([data.size], np.int64).view(np.uint8), effect.to, _TAG)
        for start in range(0, data.size, _PIECE_BYTES):
            link.isend(data[start : start + _PIECE_BYTES], effect.to, _TAG)
        self.sent_bytes += data.size

    def _take(self, effect: Take) -> Any:
        size = int(self._receive(effect.source).view(np.int64)[0])
        data = self._receive(effect.source)
        if data.size < size:
            whole = np.empty(size, np.uint8)
            whole[: data.size] = data
            filled = data.size
            while filled < size:
                data = self._receive(effect.source)
                whole[filled : filled + data.size] = data
                filled += data.size
            data = whole
        self.received_bytes += size
        return unwrap(data)

    def _receive(self, source: int) -> Bytes:
        message = self.link.receive(source, _TAG)
        assert message is not None
        return message.data

    def _spread(self, effect: Spread) -> Any:
        link = self.link
        gives = link.rank == effect.root
        data = wrap(effect.payload) if gives else None
        size = np.array([data.size if data is not None else 0], np.int64)
        self._guarded(lambda: link.broadcast(size, effect.root), size)
        buffer = data if data is not None else np.empty(int(size[0]), np.uint8)
        self._guarded(lambda: link.broadcast(buffer, effect.root), buffer)
        if gives:
            self.sent_bytes += buffer.size
            return effect.payload
        self.received_bytes += buffer.size
        return unwrap(buffer)

    def _pass(self, effect: Pass) -> Any:
        """A shift's values once more; the caller gets one of its own, writable."""
        received = self._swap(Swap(wrap(effect.payload), effect.to, effect.source))
        self.received_bytes += received.size
        value = unwrap(received)
        return value.copy() if isinstance(value, np.ndarray) else value

    def _swap(self, effect: Swap) -> Bytes:
        """Exchange encoded local states on the ring, without a copy."""
        link, payload = self.link, effect.payload
        sizes = np.array([payload.size, 0, 0], np.int64)
        mine, theirs, most = sizes[:1], sizes[1:2], sizes[2:]
        self._guarded(lambda: link.sendrecv(mine, effect.to, theirs, effect.source, _TAG), sizes)
        self._guarded(lambda: link.allreduce(mine, most, "max"), sizes)
        replica = self.buffers.take(int(theirs[0]))
        # Everyone makes as many steps as the longest state needs; the shorter ones run empty.
        for start in range(0, int(most[0]), _PIECE_BYTES):
            out, into = payload[start : start + _PIECE_BYTES], replica[start : start + _PIECE_BYTES]
            try:
                link.sendrecv(out, effect.to, into, effect.source, _TAG)
            except PeerFailed:
                self.keep(payload, replica)
                raise
        return replica
