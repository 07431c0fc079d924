"""The way of a core's messages over the world's link.

Owns addresses and encoding. Must not know what the messages mean. Invariant: only messages of the
present link arrive; a repair begins with nothing on its way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from diml.ps.arrivals import Arrivals
from diml.ps.exchange import OTHER, OUTSIDE, exchange, send_update
from diml.ps.filters import Filters
from diml.ps.message import (
    HEADER_BYTES,
    OF_COMMIT,
    QUICK_BYTES,
    Address,
    Bytes,
    Fill,
    Flag,
    Ids,
    Kind,
    Message,
    Send,
    encode,
    flagged,
)
from diml.ps.neighbours import Neighbours, is_note
from diml.ps.pieces import announced, announcement, begun, cuts, is_announcement, span
from diml.ps.port import UNANSWERED, UNASKED
from diml.ps.quick import Quick
from diml.ps.quick_serve import Desk
from diml.ps.sent import Framed
from diml.ps.serve_loop import AWAKE_S, serve
from diml.world.direct import NOTHING, Direct
from diml.world.link import ANY, LEAVE_TAG, Link
from diml.world.link import Message as Received
from diml.world.membership import Role
from diml.world.world import World

PS_TAG, PIECE_TAG = 1, 5
# How a wait polls: without a pause while an answer may be due (it only makes room for others where
# there are fewer cores than processes), then sleep longer and longer. Large answers, and those
# that a replica must confirm, take longer than 300 microseconds.
# A wait goes on where the one before has ended without a message: a server without work must not
# begin anew twenty times a second.
_NAP_S = 50e-6
_IDLE_AFTER_S = 10e-3
# From then on a sleep is this part of the time that has passed.
_IDLE_PART = 0.04
# How long a process sleeps for which nobody waits: each look costs those that share its core.
_STANDBY_NAP_S = 1e-3
_IDLE_NAP_S, _IDLE_NAP_MAX_S = 1e-3, 4e-3
# Longer messages come to memory of their own.
_ROOM_MAX = HEADER_BYTES + 2 * QUICK_BYTES


class WorldPort:
    """The way over `world.full`; `follow` is to be set to that of `NodeCore`."""

    follow: Callable[[int, Bytes, int], None]

    def __init__(self, world: World) -> None:
        self._world = world
        self.filters = Filters()
        self._link: Link | None = None
        self._direct: Direct
        # Where the next message comes to, if it fits; its length is that of the last one that did
        # not.
        self._room = np.empty(HEADER_BYTES, np.uint8)
        self._ranks: dict[Address, int] = {}
        self._places: list[Address] = []
        self._crowded = True
        self._neighbours = Neighbours()
        self._arrivals = Arrivals(self._neighbours, self._follow)
        self._commit: list[Message] = []
        # How long nothing has come or been sent, as of the end of the last wait.
        self._idle_s = 0.0

    def _current(self) -> Link:
        """The link of today; addresses are read anew after a repair."""
        link = self._world.full
        if link is not self._link:
            members = self._world.membership
            groups = [
                (Role.WORKER, len(members.workers)),
                (Role.SERVER, len(members.servers)),
                (Role.SPARE, len(members.spares)),
            ]
            self._ranks = {
                Address(role.value, number): self._world.address(role, number)
                for role, count in groups
                for number in range(count)
            }
            self._places = sorted(self._ranks, key=self._ranks.__getitem__)
            self._link, self._direct = link, Direct(link)
            self._crowded = self._world.host.crowded
            self.filters.restart()
            self._neighbours = Neighbours()
            self._arrivals = Arrivals(self._neighbours, self._follow)
            self._commit = []
        return link

    def post(self, sends: list[Send]) -> None:
        """Send; the link keeps the buffers alive. Raises PeerFailed."""
        link = self._current()
        self._idle_s = 0.0
        for to, message in sends:
            rank = self._ranks[to]
            if message.kind in OF_COMMIT:
                self._commit.append(message)
                if message.kind is Kind.COMMIT:
                    parts, self._commit = self._commit, []
                    self._replicate(link, parts, to)
                continue
            if message.fill is not None and self.filters.none_to(rank):
                self._pour(link, message, message.fill, rank)
                continue
            self._direct.send(self.filters.pack(message, rank), rank, PS_TAG)

    def _replicate(self, link: Link, parts: list[Message], to: Address) -> None:
        """Tell a replica of a commit: where it sees this process's memory it holds the commit at
        once, and its answer is given here in its place."""
        rank, commit = self._ranks[to], parts[-1]
        if self._neighbours.sees(rank):
            held = [*parts[:-1], flagged(commit, Flag.HELD)]
            if self._neighbours.hand_over([self.filters.pack(m, rank) for m in held], rank):
                done = Message(Kind.COMMITTED, shard=commit.shard, mark=commit.mark)
                self._arrivals.add(rank, encode(done))
                return
        elif (note := self._neighbours.offer(rank)) is not None:
            link.isend(note, rank, PS_TAG)
        for part in parts:
            link.isend(self.filters.pack(part, rank), rank, PS_TAG)

    @property
    def wire(self) -> WorldPort | None:
        """Itself, where messages go as they are."""
        return None if self.filters.wanted else self

    def send_bytes(self, to: Address, buffer: Bytes) -> None:
        """Send a message that needs no filters. Raises PeerFailed."""
        self._current()
        self._count_plain(len(buffer))
        self._direct.send(buffer, self._ranks[to], PS_TAG)

    def _count_plain(self, size: int, short: int = 0) -> None:
        filters = self.filters
        filters.plain_bytes += size
        filters.wire_bytes += size
        filters.short += short
        self._idle_s = 0.0

    def send_framed(self, to: Address, framed: Framed) -> None:
        """Send an update that is in its frame. Raises PeerFailed."""
        if self._world.footing.full is not self._link:
            self._current()
        clock, n, mark, buffer = framed
        self._count_plain(len(buffer), 1)
        direct = self._direct
        result = send_update(direct.words, self._ranks[to], PS_TAG, buffer, clock, mark, n)
        if result:
            direct.sent(result, buffer)

    def exchange(
        self, quick: Quick, ids: Ids, room: Bytes, clock: int, n: int, request: int
    ) -> tuple[int, int, int]:
        """Ask for rows and wait for them a short time: see `Wire`."""
        if self._world.footing.full is not self._link or self._neighbours.borrowing:
            self._current()
        if self._arrivals.look():
            return UNASKED, 0, 0
        frame, direct = quick.frame, self._direct
        self._count_plain(len(frame), 1)
        found: tuple[int, int, int] = exchange(
            direct.words, self._ranks[quick.server], PS_TAG, self._crowded, AWAKE_S, frame, ids,
            quick.rows, room, quick.code, quick.cols, clock, n, request,
        )  # fmt: skip
        return found if found[0] >= 0 else (self._without_answer(found, frame, room), 0, 0)

    def _without_answer(self, found: tuple[int, int, int], frame: Bytes, room: Bytes) -> int:
        """What an exchange without the answer has come to; another message is received next."""
        result, count, _ = found
        direct = self._direct
        if result == OUTSIDE:
            return UNASKED
        if result == NOTHING:
            self._idle_s = AWAKE_S
        elif result == OTHER:
            source = direct.source
            data = room[:count] if count <= len(room) else self._rest(count)
            whole = self._whole(self._current(), data, source)
            if whole is not None:
                self._arrivals.add(source, whole)
        else:
            direct.sent(result, frame)
        return UNANSWERED

    def _pour(self, link: Link, message: Message, fill: Fill, rank: int) -> None:
        """Send rows piece by piece, each as soon as it is gathered."""
        buffer = self.filters.pack(message._replace(fill=None), rank)
        link.isend(announcement(message, buffer), rank, PS_TAG)
        rows, row_bytes = len(message.values), message.values.nbytes // len(message.values)
        for low, high in cuts(rows, row_bytes):
            fill(low, high)
            link.isend(buffer[span(low, high, row_bytes)], rank, PIECE_TAG)

    def _in_pieces(self, link: Link, header: Bytes, source: int) -> Bytes:
        """The message that a header announces."""
        rows, row_bytes = announced(header)
        buffer = np.empty(HEADER_BYTES + rows * row_bytes, np.uint8)
        begun(header, buffer)
        pieces = [buffer[span(low, high, row_bytes)] for low, high in cuts(rows, row_bytes)]
        link.receive_pieces(pieces, source, PIECE_TAG, self._crowded)
        return buffer

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        """The next message of the parameter server, or None after so long. Raises PeerFailed.

        Naps once nothing has come for a while; but never while a message of its own is leaving,
        because a large one leaves only as fast as its sender looks after it.
        """
        found = self.receive_bytes(timeout_s)
        return None if found is None else (found[0], self.opened(*found))

    def receive_bytes(self, timeout_s: float) -> tuple[Address, Bytes] | None:
        """As `receive`, the message as it came. The bytes are the caller's until the next message
        is received: see `opened`."""
        self._current()
        if self._arrivals.look():
            return self._next()
        into, awake_s = self._room, self._awake_s(timeout_s)
        count = self._direct.receive(into, PS_TAG, awake_s, self._crowded)
        return self._came(count, into, timeout_s, awake_s)

    def serve(
        self, desk: Desk, timeout_s: float, turns: int
    ) -> tuple[tuple[Address, Bytes] | None, int, bool]:
        """As `receive_bytes`, but that `desk` sees to what it can, `turns` messages at most. Also
        how many it has seen to, and whether there may be more, though none is here. Raises
        PeerFailed."""
        self._current()
        if self._arrivals.look():
            return self._next(), 0, False
        if (replica := desk.untold) is not None:
            desk.tell_on(self._neighbours.tape_to(self._ranks[replica]))
        into, awake_s = self._room, self._awake_s(timeout_s)
        # Between two looks at what is handed over there is but one message.
        turns = 1 if self._neighbours.borrowing else turns
        served = serve(self._direct, desk, into, PS_TAG, awake_s, self._crowded, turns)
        if served.seen:
            self._count_plain(served.size, served.seen)
            if served.length == NOTHING:
                return None, served.seen, served.early
        return self._came(served.length, into, timeout_s, awake_s), served.seen, False

    def _awake_s(self, timeout_s: float) -> float:
        """How much of so long a wait goes without a pause."""
        awake_s = 0.0 if self._standing_by else AWAKE_S - self._idle_s
        return awake_s if awake_s < timeout_s else timeout_s

    def _came(
        self, count: int, into: Bytes, timeout_s: float, awake_s: float
    ) -> tuple[Address, Bytes] | None:
        """The message that has come, or comes in what is left of the wait."""
        link, direct = self._direct.link, self._direct
        # The memory of what has left meanwhile, still in the cache, is that of the next message.
        link.still_sending()
        if count == len(into):
            data, source = into, direct.source
        elif count != NOTHING:
            source = direct.source
            data = into[:count] if count < len(into) else self._rest(count)
        else:
            found = self._wait_on(link, timeout_s, awake_s) if timeout_s > 0 else None
            if found is None:
                return self._next()
            data, source = found.data, found.source
        self._idle_s = 0.0
        whole = self._whole(link, data, source)
        if whole is None:
            return None
        if self._arrivals.look():
            # What was handed over before this was sent comes before it.
            self._arrivals.add(source, self._own(whole))
            return self._next()
        return self._places[source], whole

    def _whole(self, link: Link, data: Bytes, source: int) -> Bytes | None:
        """The message that has come or begun to come; None if it is for this port itself."""
        if len(data) != HEADER_BYTES:
            return data
        if is_announcement(data):
            return self._in_pieces(link, data, source)
        if not is_note(data):
            return data
        answer = self._neighbours.heard(data, source)
        if answer is not None:
            link.isend(answer, source, PS_TAG)
        return None

    def _follow(self, rank: int, tape: Bytes, upto: int) -> None:
        """Have single updates taken up."""
        self.follow(self._places[rank].number, tape, upto)
        self._idle_s = 0.0

    def _next(self) -> tuple[Address, Bytes] | None:
        """The first of what has come and was put aside."""
        found = self._arrivals.next()
        return None if found is None else (self._places[found[0]], found[1])

    def held(self) -> Iterator[tuple[Address, Message]]:
        """The commits that this process holds and has not looked at, to be taken up in turn before
        a repair asks what it has: the dead have told others that these are safe."""
        while self._arrivals.look() and (found := self._next()) is not None:
            sender, message = found[0], self.opened(*found)
            if message.kind in OF_COMMIT:
                yield sender, message

    def _rest(self, count: int) -> Bytes:
        """A message that was too long for where it should have come to."""
        if count <= _ROOM_MAX:
            self._room = np.empty(count, np.uint8)
        return self._direct.rest(self._neighbours.room(count))

    def _wait_on(self, link: Link, timeout_s: float, waited_s: float) -> Received | None:
        """Go on with a wait that has taken so long already."""
        waited_s = max(0.0, waited_s)
        self._idle_s += waited_s
        return self._wait(link, timeout_s - waited_s) if timeout_s > waited_s else None

    def opened(self, sender: Address, data: Bytes) -> Message:
        """What the bytes of a message say; to be called once for each, whose bytes are the
        message's from then on."""
        return self.filters.unpack(self._own(data), self._ranks[sender])

    def _own(self, data: Bytes) -> Bytes:
        """A message's bytes, which the next message no longer takes the place of."""
        room = self._room
        if data is not room and data.base is not room:
            return data
        if 2 * len(data) < len(room):
            return data.copy()
        self._room = np.empty(len(room), np.uint8)
        return data

    def _wait(self, link: Link, timeout_s: float) -> Received | None:
        begun, before_s = time.monotonic(), self._idle_s
        while True:
            waited_s = time.monotonic() - begun
            self._idle_s = idle_s = before_s + waited_s
            if waited_s >= timeout_s or self._arrivals.look():
                return None
            if not self._idle_s:
                before_s, idle_s = -waited_s, 0.0  # updates were handed over
            if self._standing_by and idle_s < _IDLE_AFTER_S:
                time.sleep(_STANDBY_NAP_S)
            elif link.still_sending() or idle_s < AWAKE_S:
                self.make_room()
            elif idle_s < _IDLE_AFTER_S:
                time.sleep(_NAP_S)
            else:
                time.sleep(min(max(_IDLE_NAP_S, _IDLE_PART * idle_s), _IDLE_NAP_MAX_S))
            found = link.poll(ANY, PS_TAG, self._neighbours.room)
            if found is not None:
                return found

    @property
    def _standing_by(self) -> bool:
        """Whether nobody waits for this process: it keeps a copy, and holds what it was handed
        over before it looks."""
        return self._neighbours.borrowing and self._world.role is Role.SPARE

    def make_room(self) -> None:
        """Let others have the core for a moment, where there are fewer cores than processes: what
        this process does can wait, and they may have what a worker waits for."""
        if self._crowded:
            os.sched_yield()

    def word(self) -> bytes | None:
        """What worker 0 tells servers and spares (`World.say_kept`; empty: leave), if anything.
        Raises PeerFailed."""
        message = self._current().poll(tag=LEAVE_TAG)
        return None if message is None else message.data.tobytes()

    def recover(self) -> bool:
        """Repair the world; the node's hook sends again what has to be. Whether anybody died."""
        before = self._everyone()
        self._world.recover()
        return self._everyone() != before

    def _everyone(self) -> tuple[int, ...]:
        members = self._world.membership
        return (*(seat.uid for seat in (*members.workers, *members.servers)), *members.spares)
