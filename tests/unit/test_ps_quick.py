"""The short way of a read gives what the long way gives; what it does not expect goes that way."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from diml.errors import Misuse, PeerFailed
from diml.ps.client import ParameterServer
from diml.ps.client_core import ClientCore
from diml.ps.consistency import parse_consistency
from diml.ps.filters import Filters
from diml.ps.message import Address, Bytes, Flag, Ids, Kind, Message, Send
from diml.ps.node_core import NodeCore
from diml.ps.port import UNANSWERED, UNASKED
from diml.ps.quick import Quick
from diml.ps.recovery import make_plan
from diml.ps.sent import Framed
from diml.ps.session import Session
from diml.ps.words import is_plain_ack, read_answer, stamp_update, write_question
from diml.world.calls import Calls

WORKER, SERVER = Address("worker", 0), Address("server", 0)


class Wired:
    """A server of one worker, reached by bytes.

    Attributes:
        handled: the bytes of all messages that the server has been given.
        is_late, dies, loses: what happens to the next question, and to what is sent next.
    """

    def __init__(self, short: bool = True) -> None:
        """`short`: whether messages that are bytes already have a way of their own."""
        self._short = short
        self.handled: list[bytes] = []
        self.node = NodeCore(SERVER, 1, 1, 0, 0)
        self.core: ClientCore | None = None
        self.arrived: deque[Bytes] = deque()
        self.opened_kinds: list[Kind] = []
        self.is_late = self.dies = self.loses = False
        self._filters = Filters()

    @property
    def wire(self) -> Wired | None:
        return self if self._short else None

    def post(self, sends: list[Send]) -> None:
        for to, message in sends:
            self.send_bytes(to, self._filters.pack(message, 1))

    def send_bytes(self, to: Address, buffer: Bytes) -> None:
        assert to == SERVER
        if self.loses:
            self.loses, self.dies = False, True
            raise PeerFailed("somebody has died")
        self.handled.append(buffer.tobytes())
        sends = self.node.handle(WORKER, self._filters.unpack(buffer.copy(), 0))
        sends += self.node.flush()
        self.arrived += [self._filters.pack(send.message, 0).copy() for send in sends]

    def send_framed(self, to: Address, framed: Framed) -> None:
        stamp_update(framed.buffer, framed.clock, framed.mark, framed.n)
        self.send_bytes(to, framed.buffer)

    def exchange(
        self, quick: Quick, ids: Ids, room: Bytes, clock: int, n: int, request: int
    ) -> tuple[int, int, int]:
        """As `diml.ps.exchange.exchange`."""
        if not write_question(quick.frame, ids, quick.rows, clock, request):
            return UNASKED, 0, 0
        self.send_bytes(quick.server, quick.frame)
        if self.dies:
            raise PeerFailed("somebody has died")
        if self.is_late:
            self.is_late = False
            return UNANSWERED, 0, 0
        while is_plain_ack(self.arrived[0]):
            self.arrived.popleft()
        data = self.arrived[0]
        if len(data) == len(room):
            found = read_answer(data, request, quick.code, len(ids), quick.cols, clock, n)
            if found[0] >= 0:
                room[:] = self.arrived.popleft()
                return found
        return UNANSWERED, 0, 0

    def opened(self, sender: Address, data: Bytes) -> Message:
        message = self._filters.unpack(data, 1)
        self.opened_kinds.append(message.kind)
        return message

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        if self.dies:
            raise PeerFailed("somebody has died")
        return (SERVER, self.opened(SERVER, self.arrived.popleft())) if self.arrived else None

    def recover(self) -> bool:
        assert self.core is not None
        self.dies, self.arrived = False, deque()
        places = [self.node.report(SERVER), NodeCore(WORKER, 1, 1, 0, 0).report(WORKER, self.core)]
        self.post(self.core.recovered(make_plan(places[::-1], 0)))
        return True


def opened(staleness: int = 0, short: bool = True) -> tuple[Wired, ParameterServer]:
    """A worker and its server."""
    port, core = Wired(short), ClientCore(0, 1, parse_consistency(None, staleness))
    port.core = core
    ps = ParameterServer(
        Session(port, core, 0.05, None, Calls()), 1, 3, False, lambda what, **fields: None
    )
    ps.open()
    return port, ps


def _table(ps: ParameterServer, **options: Any) -> Any:
    return ps.table("t", 50, 3, "float64", init=("uniform", 0, 1), **options)


@pytest.mark.parametrize("staleness", [0, 2])
def test_reads_are_short_and_see_every_update(staleness: int) -> None:
    port, ps = opened(staleness)
    table, rng = _table(ps), np.random.default_rng(0)
    twin = table.get(np.arange(50))
    port.opened_kinds.clear()
    kept = np.array([3, 7, 7, 1])
    for step in range(40):
        ids = kept if step % 3 else rng.integers(0, 50, 4)
        assert np.array_equal(table.get(ids), twin[ids])
        deltas = rng.integers(0, 9, (4, 3)).astype(float)
        table.inc(ids, deltas)
        np.add.at(twin, ids, deltas)
        assert table.get(ids) == pytest.approx(twin[ids])
        ps.clock()
    assert Kind.VALUES not in port.opened_kinds
    assert ps.staleness_seen == {0: 81}
    ps.close()


def test_a_changed_list_of_the_same_array_is_read_anew() -> None:
    _, ps = opened()
    table = _table(ps)
    whole = table.get(np.arange(50))
    ids = np.array([4, 5, 6])
    rows = table.get(ids)
    ids[1] = 30
    assert np.array_equal(table.get(ids), whole[[4, 30, 6]])
    assert np.array_equal(rows, whole[[4, 5, 6]])
    rows[:] = 7
    assert np.array_equal(table.get(ids), whole[[4, 30, 6]])
    assert table.get([]).shape == (0, 3)
    assert np.array_equal(table.get(range(3)), whole[:3])
    with pytest.raises(Misuse, match=r"has rows 0\.\.49, not 50"):
        table.get(np.array([4, 50]))
    assert np.array_equal(table.get(ids), whole[[4, 30, 6]])


def test_what_comes_late_or_in_between_goes_the_long_way() -> None:
    port, ps = opened()
    table = _table(ps)
    ids = np.array([1, 2])
    first = table.get(ids)
    port.is_late = True
    assert np.array_equal(table.get(ids), first)
    table.inc(ids, np.ones((2, 3)))
    ps.clock()
    # The acknowledgement of the clock stands before the answer.
    assert port.arrived
    assert np.array_equal(table.get(ids), first + 1)
    assert np.array_equal(table.get(ids), first + 1)
    assert sum(ps.staleness_seen.values()) == 4


def test_a_death_on_the_short_way_is_met_like_any_other() -> None:
    port, ps = opened()
    table = _table(ps)
    ids = np.array([1, 2])
    first = table.get(ids)
    table.inc(ids, np.ones((2, 3)))
    ps.clock()
    port.dies = True
    assert np.array_equal(table.get(ids), first + 1)
    assert not port.dies
    assert np.array_equal(table.get(ids), first + 1)
    ps.close()


@pytest.mark.parametrize(
    "options", [{"rule": "adarevision"}, {"sparse": True}], ids=["echo", "sparse"]
)
def test_other_tables_have_no_short_way(options: dict[str, Any]) -> None:
    port, ps = opened()
    table = ps.table("t", 50, 3, "float64", **options)
    table.get(np.array([1]))
    assert Kind.VALUES in port.opened_kinds


def test_an_answer_that_knows_more_than_was_sent_is_left_alone() -> None:
    port, ps = opened()
    table = _table(ps)
    first = table.get(np.array([1]))
    request = port.core.questions.next if port.core else 0
    early = Message(Kind.VALUES, 0, 0, 0, 0, values=first + 5, mark=1, request=request)
    assert not early.flags & Flag.LAST
    assert port.core is not None
    quick, ids = table._quick, np.array([1])
    assert quick.ready(ids) is ids

    def read(answer: Message) -> Any:
        data = Filters().pack(answer, 1)
        return data, *read_answer(data, request, quick.code, 1, quick.cols, 0, 0)

    assert read(early)[1] < 0
    rows, staleness = quick.shown(*read(early._replace(mark=0)))
    assert np.array_equal(rows, first + 5) and staleness == 0
    assert port.core.questions.next == request + 1
