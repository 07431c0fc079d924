"""What a worker remembers and says: its clock, what is not acknowledged, what it waits for. Pure.

Owns the worker's clock and the numbers of its updates. Must not know MPI or time: the driver sends
what is returned here and calls `handle` for what comes.

Invariant: a server answers one worker's messages in the order sent.
"""

from __future__ import annotations

import json

from diml.errors import Misuse
from diml.ps.cache import Found, RowCache
from diml.ps.consistency import Consistency
from diml.ps.message import (
    Address,
    Bytes,
    Flag,
    Ids,
    Kind,
    Message,
    Rows,
    Send,
    blob_rows,
    flagged,
    text_of,
    text_rows,
)
from diml.ps.pending import Pending, Segment, Writing
from diml.ps.questions import Questions, Request
from diml.ps.reading import Reading, assemble, assemble_cells
from diml.ps.recovery import Plan
from diml.ps.sent import Framed, Sent
from diml.ps.tables import TableSpec, split

# A checkpoint that a repair interrupts is left out.
_OF_CHECKPOINTS = frozenset({Kind.CHECK, Kind.SAVE})


class ClientCore:
    """One worker.

    Attributes:
        clock: clocks that it has finished.
        specs: by id, the tables that are there.
        n: updates of the open clock that are sent.
        questions: what it has asked and not taken the answers of.
        repairs: how many it has come through.
        answered: whether any server has ever answered: from then on a lost shard is a loss.
        pushing: whether servers send rows without being asked.
        sent: its updates that may be needed again, and which of them are acknowledged.
    """

    def __init__(
        self,
        worker: int,
        servers: int,
        consistency: Consistency,
        cache_rows: int | None = None,
        significance: float = 0.0,
    ) -> None:
        self.pushing = consistency.model == "essp"
        self._cache_rows = 0 if cache_rows is None and self.pushing else cache_rows
        self._significance = significance
        self.worker, self.servers, self.consistency = worker, servers, consistency
        self._window = consistency.window_clocks
        self.clock = 0
        self.repairs = 0
        self.specs: dict[int, TableSpec] = {}
        self.answered = False
        self.n = 0
        # The clock of the last barrier.
        self._barrier = 0
        self._servers = [Address("server", server) for server in range(servers)]
        self.questions = Questions(worker, self._servers)
        self._writing: dict[int, Writing] = {}
        self.sent = Sent(self._servers, consistency.buffered)
        # Whether a server had updates of this clock, from a former life, that are done again now:
        # rows of this clock that are kept may have them twice.
        self._doubtful = False

    # Questions -------------------------------------------------------------------------------

    def open(self) -> tuple[int, list[Send]]:
        """Ask where to go on."""
        config = text_rows(json.dumps({"consistency": str(self.consistency)}))
        return self.questions.ask_all(Message(Kind.OPEN, values=config))

    def opened(self, request: int) -> tuple[int, Bytes] | None:
        """Take the answer of OPEN: set the clock; returns the newest own state and its clock.

        Raises Misuse if other workers opened it in another way.
        """
        replies = self.questions.take(request).replies
        for reply in replies.values():
            if reply.kind is Kind.REFUSED:
                raise Misuse(text_of(reply))
        home = replies[self.worker % self.servers]
        self.clock = home.clock
        self.sent.begin(home.clock)
        return (home.n, home.values.reshape(-1)) if home.values.size else None

    def define(self, spec: TableSpec) -> tuple[int, list[Send]]:
        """Ask for a table to be there."""
        return self.questions.ask_all(Message(Kind.DEFINE, values=text_rows(spec.to_json())))

    def defined(self, spec: TableSpec, request: int, cached: bool = True) -> None:
        """Take the answers of `define`. Rows of a table that is pushed to must not be `cached`:
        they would lack what was pushed. Raises Misuse if a server knows another definition."""
        for reply in self.questions.take(request).replies.values():
            if reply.kind is Kind.REFUSED:
                raise Misuse(text_of(reply))
        self.specs[spec.id] = spec
        cache = None
        if self._cache_rows is not None and cached and not spec.sparse:
            cache = RowCache(spec, self.servers, self._cache_rows, self.pushing)
        self._writing[spec.id] = Writing.of(spec, cache, self._significance)

    def get(self, spec: TableSpec, ids: Ids) -> tuple[int, list[Send]]:
        """Ask for rows, but for those that are kept."""
        cache = self._writing[spec.id].cache
        if cache is None:
            return self.questions.ask(*self._reading(spec, ids, None))
        least = 0 if self.consistency.model == "asp" else self.clock - self.consistency.staleness
        found = cache.find(ids, max(least, self._barrier))
        asked, reading = self._reading(spec, ids, found)
        for server in cache.servers_of(ids[found.awaited]):
            # An answer without rows: it comes after the push that is waited for.
            empty = Message(Kind.GET, self.worker, self.clock, request=self.questions.next)
            asked.setdefault(server, empty)
        return self.questions.ask(asked, reading)

    def _reading(
        self, spec: TableSpec, ids: Ids, found: Found | None
    ) -> tuple[dict[int, Message], Reading]:
        """The messages that ask for what the cache does not have."""
        pieces = split(spec, self.servers, ids if found is None else ids[~found.hit])
        request = self.questions.next
        asked = {
            piece.server: Message(
                Kind.GET, self.worker, self.clock, 0, spec.id, piece.ids, request=request
            )
            for piece in pieces
        }
        return asked, Reading(spec, ids, pieces, found)

    def writing_of(self, spec: TableSpec) -> Writing:
        """This worker's side of a table."""
        return self._writing[spec.id]

    def answered_at_once(self, server: int, clock: int, n: int) -> None:
        """The question `questions.next` was asked and answered by a server that had all updates
        before (clock, n); see `diml.ps.quick`."""
        self.answered = True
        self.questions.skip()
        self.sent.acknowledge(server, clock, n)

    def synchronise(self) -> tuple[int, list[Send]]:
        """Ask every server to answer once all workers have finished this worker's clocks."""
        return self.questions.ask_all(Message(Kind.GET, clock=self.clock, flags=Flag.EXACT))

    def synchronised(self, request: int) -> None:
        """Take the answers of `synchronise`: from now on no read is older than this clock."""
        self.questions.take(request)
        self._barrier = self.clock

    def ask_who_is_late(self, servers: list[int]) -> tuple[int, list[Send]]:
        """Ask servers whom they wait for."""
        message = Message(Kind.WHO, self.worker, request=self.questions.next)
        return self.questions.ask(dict.fromkeys(servers, message))

    def rows_of(self, request: int) -> tuple[Rows, int]:
        """Take the answers of `get`: rows (len(ids), cols) with the own pending updates, and how
        many clocks the slowest worker was behind when they were read."""
        asked = self.questions.take(request)
        assert asked.reading is not None
        writing = self._writing[asked.reading.spec.id]
        rows, slowest = assemble(asked.reading, asked.replies, writing, self.clock)
        return rows, self._staleness(asked, slowest)

    def cells_of(self, request: int) -> tuple[Ids, Rows, int]:
        """As `rows_of`, of a sparse table: cells, their values, and the staleness."""
        asked = self.questions.take(request)
        assert asked.reading is not None
        writing = self._writing[asked.reading.spec.id]
        cells, values, slowest = assemble_cells(asked.reading, asked.replies, writing, self.clock)
        return cells, values, self._staleness(asked, slowest)

    def _staleness(self, asked: Request, slowest: int) -> int:
        """How stale a read was, which is never beyond the bound."""
        clock = min((m.clock for m in asked.messages.values()), default=self.clock)
        model, staleness = self.consistency, max(0, clock - slowest)
        assert model.model == "asp" or staleness <= model.staleness, f"a read {staleness} stale"
        return staleness

    # Updates ---------------------------------------------------------------------------------

    def update(self, spec: TableSpec, ids: Ids, values: Rows) -> None:
        """Add to rows; it is sent when the clock ends."""
        self._writing[spec.id].add(ids, values)

    def update_framed(self, spec: TableSpec, buffer: Bytes) -> None:
        """As `update` with the bytes of a message (`diml.ps.quick`)."""
        self._writing[spec.id].keep_framed(buffer)

    def push(self, spec: TableSpec, ids: Ids, values: Rows) -> tuple[tuple[int, int], list[Send]]:
        """Update rows at once, not at the end of the clock; returns the update's (clock, n)."""
        assert not self.consistency.buffered, "a clock's updates are sent as a whole"
        parcel = Pending(spec.width, spec.numpy_dtype)
        parcel.add(ids, values)
        stamp = (self.clock, self.n)
        by_server: list[list[Message]] = [[] for _ in range(self.servers)]
        for segment in parcel.take():
            segment = self._writing[spec.id].with_echo(segment)
            self._spread(spec, segment, by_server, Flag.ACK)
        return stamp, self.sent.retain(by_server)

    @property
    def has_pending(self) -> list[str]:
        """Names of the tables that have updates of the open clock."""
        return [writing.spec.name for writing in self._writing.values() if writing.open]

    @property
    def held_bytes(self) -> int:
        """What the significance filter has kept from being sent."""
        return sum(writing.held_bytes for writing in self._writing.values())

    def send_held(self) -> list[Send]:
        """What the significance filter holds back, at once."""
        by_server: list[list[Message]] = [[] for _ in range(self.servers)]
        for key in sorted(self._writing):
            writing = self._writing[key]
            if writing.significance > 0:
                for segment in writing.pending.take():
                    self._spread(writing.spec, segment, by_server, Flag.ACK)
        return self.sent.retain(by_server)

    @property
    def clock_is_empty(self) -> bool:
        """Whether nothing was updated since the last clock ended."""
        return not self.n and not self.has_pending

    @property
    def may_clock(self) -> bool:
        """Whether the window leaves room for one more clock."""
        window = self._window
        return window is None or self.clock - self.sent.watermark < window

    def finish_clock(self, local: Bytes | None) -> list[Send]:
        """End the clock: what is pending goes to the servers, the own state to the home server."""
        assert self.may_clock, f"worker {self.worker} is a window ahead at clock {self.clock}"
        by_server: list[list[Message]] = [[] for _ in range(self.servers)]
        parts = [
            (self._writing[key].spec, segment)
            for key in sorted(self._writing)
            for segment in self._writing[key].segments()
        ]
        # Where one message is all, it is made as the last one that it is.
        flags = Flag.LAST if len(parts) == self.servers == 1 and local is None else Flag.NONE
        for spec, segment in parts:
            self._spread(spec, segment, by_server, flags)
        worker, clock, mark = self.worker, self.clock, self.sent.watermark
        if local is not None:
            home = by_server[worker % self.servers]
            values = blob_rows(local)
            home.append(Message(Kind.LOCAL, worker, clock, self.n, values=values, mark=mark))
            self.n += 1
        for messages in () if flags else by_server:
            if messages:
                messages[-1] = flagged(messages[-1], Flag.LAST)
            else:
                end = Message(Kind.UPDATE, worker, clock, self.n, flags=Flag.LAST, mark=mark)
                messages.append(end)
        sends = self.sent.retain(by_server)
        self.clock += 1
        self.n = 0
        if self._doubtful:
            self._drop_doubtful()
        return sends

    def finish_framed(self) -> Framed | None:
        """As `finish_clock` without an own state, where one update is all that the clock has and
        it is in the bytes of its message: how it is to be sent. None, and nothing is done, if the
        clock is anything else."""
        only = None
        for writing in self._writing.values():
            if writing.pending:
                if only is not None:
                    return None
                only = writing
        if only is None or self.servers > 1 or self._doubtful:
            return None
        buffer = only.take_framed()
        if buffer is None:
            return None
        assert self.may_clock, f"worker {self.worker} is a window ahead at clock {self.clock}"
        framed = self.sent.retain_framed(self.clock, self.n, buffer)
        self.clock += 1
        self.n = 0
        return framed

    def _spread(
        self, spec: TableSpec, segment: Segment, by_server: list[list[Message]], flags: int
    ) -> None:
        """One segment's messages, one a server, under one n."""
        ids, values, buffer = segment
        mark = self.sent.watermark
        if self.servers == 1:
            by_server[0].append(
                Message(
                    Kind.UPDATE, self.worker, self.clock, self.n, spec.id, ids, values, flags,
                    mark, 0, 0, buffer,
                )
            )  # fmt: skip
        else:
            pieces = split(spec, self.servers, ids, cells=spec.sparse)
            for server, its_ids, places in pieces:
                whole = len(pieces) == 1
                by_server[server].append(
                    Message(
                        Kind.UPDATE, self.worker, self.clock, self.n, spec.id, its_ids,
                        values if whole else values[places], flags, mark, 0, 0,
                        buffer if whole else None,
                    )
                )  # fmt: skip
        self.n += 1

    @property
    def all_acknowledged(self) -> bool:
        """Whether every server has acknowledged every update sent."""
        return self.sent.complete((self.clock, self.n))

    def behind(self) -> list[int]:
        """Servers that have not acknowledged every update sent."""
        return self.sent.behind((self.clock, self.n))

    # What comes back -------------------------------------------------------------------------

    def handle(self, server: int, message: Message) -> None:
        """Take a server's message."""
        self.answered = True
        if message.kind is Kind.ACK:
            self.sent.acknowledge(server, message.clock, message.n)
            return
        if message.kind is Kind.PUSHED:
            self._doubt(message)
            self._take_push(server, message)
            return
        self.questions.answer(server, message)
        if message.kind is Kind.VALUES:
            self._doubt(message)
            self.sent.acknowledge(server, message.mark, message.n)

    def _doubt(self, message: Message) -> None:
        if (message.mark, message.n) > (self.clock, self.n):
            self._doubtful = True

    def _drop_doubtful(self) -> None:
        """At the end of a clock: keep no rows that may have an update twice."""
        if not any(asked.reading for asked in self.questions.open.values()):
            self._doubtful = False
            for writing in self._writing.values():
                if writing.cache is not None:
                    writing.cache.drop()

    def _take_push(self, server: int, message: Message) -> None:
        """Rows that the server pushes, without the own updates that it had not applied yet."""
        if len(message.ids):
            unapplied = self.sent.unapplied(server, message.table, (message.mark, message.n))
            self._writing[message.table].pushed(message, unapplied)
        if message.flags & Flag.LAST:
            for writing in self._writing.values():
                if writing.cache is not None:
                    writing.cache.pushed[server] = message.clock

    def recovered(self, plan: Plan) -> list[Send]:
        """After a repair: everything that a server does not have, and all open questions, anew."""
        self.repairs += 1
        for writing in self._writing.values():
            if writing.cache is not None:
                writing.cache.drop()
        sends = self.sent.again([ledger[self.worker] for ledger in plan.ledgers])
        self.questions.give_up(_OF_CHECKPOINTS)
        for number, asked in self.questions.open.items():
            reading = asked.reading
            if reading is not None and self._writing[reading.spec.id].cache is not None:
                self._ask_for_all(number, asked)
            for server, message in asked.messages.items():
                if server not in asked.replies:
                    sends.append(Send(self._servers[server], message))
        return sends

    def _ask_for_all(self, request: int, asked: Request) -> None:
        """What the cache had is gone, and no server remembers who reads what: let a question ask
        for all of its rows, answered or not."""
        assert asked.reading is not None
        messages, asked.reading = self._reading(asked.reading.spec, asked.reading.ids, None)
        asked.messages = {s: m._replace(request=request) for s, m in messages.items()}
        asked.replies = {}
