"""The short way of a server's messages does what the long way does, and leaves what it must."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from diml.checkpoint.codec import encode as encode_tree
from diml.ps import serve_words
from diml.ps import tape as tapes
from diml.ps.message import (
    HEADER_BYTES,
    NO_IDS,
    NO_ROWS,
    QUICK_BYTES,
    Address,
    Bytes,
    Flag,
    Kind,
    Message,
    Send,
    decode,
    encode,
    text_rows,
    whole,
)
from diml.ps.node_core import NodeCore
from diml.ps.tables import TableSpec

SERVER = Address("server", 0)
ROWS, COLS = 20, 3
DTYPES = ("float32", "float64", "int32", "int64")
SPECS = [TableSpec(f"t{dtype}", ROWS, COLS, dtype) for dtype in DTYPES]
ADAGRAD = TableSpec("stepped", ROWS, COLS, rule="adagrad")
SPARSE = TableSpec("sparse", ROWS, COLS, sparse=True)


def _node(consistency: str, workers: int, specs: list[TableSpec], servers: int = 1) -> NodeCore:
    node = NodeCore(SERVER, workers, servers, 0, 0)
    for worker in range(workers):
        opening = text_rows(json.dumps({"consistency": consistency}))
        node.handle(Address("worker", worker), Message(Kind.OPEN, worker, values=opening))
    for spec in specs:
        node.handle(Address("worker", 0), Message(Kind.DEFINE, values=text_rows(spec.to_json())))
    return node


def _long(node: NodeCore, message: Message) -> list[Message]:
    copied = decode(encode(message._replace(frame=None)).copy())
    return [whole(s.message) for s in node.handle(Address("worker", message.worker), copied)]


def _short(node: NodeCore, data: Bytes) -> list[Message] | None:
    """What a message is answered with by the short way; None if it is not for it."""
    desk = node.desk
    answer = None if desk is None else desk.take(data)
    if answer is None:
        return None
    return [decode(answer.copy())] if len(answer) else []


def _same(some: list[Message], others: list[Message]) -> bool:
    return [encode(m._replace(frame=None)).tobytes() for m in some] == [
        encode(m._replace(frame=None)).tobytes() for m in others
    ]


def _content(node: NodeCore) -> bytes:
    assert node.server is not None
    server = node.server
    return encode_tree(server.shard.to_tree()).tobytes() + bytes(server.owed)


def _update(spec: TableSpec, worker: int, clock: int, n: int, flags: int, rows: int) -> Message:
    rng = np.random.default_rng((worker, clock, n))
    ids = rng.integers(0, ROWS, rows)
    deltas = (100 * rng.standard_normal((rows, COLS))).astype(spec.dtype)
    return Message(Kind.UPDATE, worker, clock, n, spec.id, ids, deltas, flags, mark=clock // 2)


@pytest.mark.parametrize(
    ("consistency", "workers"), [("bsp", 1), ("bsp", 2), ("ssp(1)", 1), ("ssp(2)", 3), ("asp", 2)]
)
def test_short_and_long_are_the_same(consistency: str, workers: int) -> None:
    rng, ahead = random.Random(consistency), 0 if consistency == "bsp" else 2
    short, long = (_node(consistency, workers, [*SPECS, ADAGRAD, SPARSE]) for _ in range(2))
    clocks, ns, taken = [0] * workers, [0] * workers, {Kind.GET: 0, Kind.UPDATE: 0}
    for step in range(600):
        worker, spec = rng.randrange(workers), rng.choice([*SPECS, SPECS[0], ADAGRAD])
        clock, n = clocks[worker], ns[worker]
        ids = np.array([rng.randrange(ROWS) for _ in range(rng.randint(0, 5))], np.int64)
        message = Message(Kind.GET, worker, clock, 0, spec.id, ids, request=step)
        if rng.random() < 0.1:
            message = message._replace(flags=Flag.EXACT)
        if rng.random() < 0.6 and clock <= min(clocks) + ahead:
            last = rng.random() < 0.7
            flags = (Flag.LAST if last else 0) | (Flag.ACK if rng.random() < 0.1 else 0)
            message = _update(spec, worker, clock, n, flags, rng.randint(0, 6))
            if not len(message.ids):
                message = message._replace(ids=NO_IDS, values=NO_ROWS, table=0)
            if rng.random() < 0.05 and clock:
                # Sent again after a repair.
                message = message._replace(clock=clock - 1)
            else:
                clocks[worker], ns[worker] = (clock + 1, 0) if last else (clock, n + 1)
        answers = _short(short, encode(message))
        if answers is None:
            answers = _long(short, message)
        else:
            taken[message.kind] += 1
        assert _same(answers, _long(long, message))
        assert _content(short) == _content(long)
        if rng.random() < 0.1:
            flushed = [[s.message for s in node.flush()] for node in (short, long)]
            assert _same(*flushed)
    assert taken[Kind.GET] > 50
    # The clock of two is kept until both have ended it.
    least = 0 if (consistency, workers) == ("bsp", 2) else 40
    assert least <= taken[Kind.UPDATE] and (least or not taken[Kind.UPDATE])


GET = Message(Kind.GET, 1, 1, 0, SPECS[0].id, np.array([3, 1, 3]), request=2**32 - 2)
UPDATE = _update(SPECS[0], 1, 0, 0, Flag.LAST, 4)


@pytest.mark.parametrize(
    "message",
    [
        GET._replace(flags=Flag.EXACT),
        GET._replace(ids=NO_IDS),
        GET._replace(ids=np.array([ROWS])),
        GET._replace(ids=np.array([0, -1])),
        GET._replace(ids=np.zeros(QUICK_BYTES // (4 * COLS) + 1, np.int64)),
        GET._replace(clock=2),
        GET._replace(worker=2),
        GET._replace(worker=-1),
        GET._replace(table=7),
        GET._replace(table=SPARSE.id),
        GET._replace(values=np.ones((1, 2), np.float32)),
        GET._replace(kind=Kind.CHECK),
        UPDATE._replace(ids=np.array([0, 1, 2, ROWS])),
        UPDATE._replace(ids=np.array([0, -1, 2, 3])),
        UPDATE._replace(clock=1),
        UPDATE._replace(flags=Flag.LAST | Flag.ACK),
        UPDATE._replace(worker=2),
        UPDATE._replace(table=7),
        UPDATE._replace(table=ADAGRAD.id),
        UPDATE._replace(values=UPDATE.values.astype(np.int32)),
        UPDATE._replace(values=UPDATE.values[:3]),
        UPDATE._replace(values=UPDATE.values[:, :2]),
        UPDATE._replace(values=NO_ROWS),
        UPDATE._replace(ids=NO_IDS),
        UPDATE._replace(kind=Kind.LOCAL),
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_untouched(message: Message) -> None:
    node = _node("ssp(1)", 2, [SPECS[0], ADAGRAD, SPARSE])
    before = _content(node)
    assert _short(node, encode(message._replace(frame=None))) is None
    assert _content(node) == before


def test_bytes_that_are_no_message_are_left() -> None:
    for message in (GET, UPDATE):
        data = encode(message._replace(frame=None))
        filtered, wanted, foreign, endless = (data.copy() for _ in range(4))
        filtered[58], wanted[59], foreign[0] = 1, 1, 0
        endless[28:36] = 255
        longer = np.concatenate([data, data[:8]])
        for other in (
            filtered,
            wanted,
            foreign,
            endless,
            longer,
            data[:-8],
            data[: HEADER_BYTES - 1],
        ):
            assert _short(_node("ssp(1)", 2, [SPECS[0]]), other.copy()) is None
        assert _short(_node("ssp(1)", 2, [SPECS[0]]), data) is not None


def test_nothing_is_short_while_something_waits() -> None:
    data, gathered = encode(GET), encode(GET._replace(clock=0))
    # A read that has to wait, with others behind it.
    waiting = _node("ssp(1)", 2, [SPECS[0]])
    assert _long(waiting, GET._replace(clock=2)) == []
    assert _short(waiting, data) is None
    # Updates of a clock that has not ended, which no read may see.
    open_clock = _node("bsp", 1, [SPECS[0]])
    _long(open_clock, UPDATE._replace(worker=0, flags=Flag.NONE))
    assert _short(open_clock, encode(UPDATE._replace(worker=0, n=1, frame=None))) is None
    assert _short(open_clock, encode(GET._replace(worker=0, clock=0))) is not None
    # Clocks that may have to be taken back.
    several = _node("bsp", 1, [SPECS[0]], servers=2)
    assert _short(several, encode(UPDATE._replace(worker=0, frame=None))) is None
    # Rows that are pushed to their readers.
    assert _short(_node("essp(1)", 2, [SPECS[0]]), gathered) is None


def test_what_a_replica_must_hold_first_is_not_short() -> None:
    node = NodeCore(SERVER, 1, 1, 1, 1)
    opening = text_rows(json.dumps({"consistency": "ssp(1)"}))
    worker = Address("worker", 0)
    node.handle(worker, Message(Kind.OPEN, 0, values=opening))
    node.handle(worker, Message(Kind.DEFINE, values=text_rows(SPECS[0].to_json())))

    def commit() -> None:
        (version,) = [s.message.mark for s in node.flush() if s.message.kind is Kind.COMMIT]
        assert _short(node, encode(GET._replace(worker=0, clock=0))) is None
        node.handle(Address("spare", 0), Message(Kind.COMMITTED, mark=version))

    assert _short(node, encode(GET._replace(worker=0, clock=0))) is None
    commit()
    assert _short(node, encode(GET._replace(worker=0, clock=0))) is not None
    assert _short(node, encode(UPDATE._replace(worker=0, frame=None))) is None
    _long(node, UPDATE._replace(worker=0))
    commit()
    assert _short(node, encode(GET._replace(worker=0, clock=0))) is not None


@pytest.mark.parametrize(("consistency", "workers"), [("bsp", 1), ("ssp(2)", 2), ("asp", 3)])
def test_a_replica_follows_what_was_taken(consistency: str, workers: int) -> None:
    rng, spare = random.Random(consistency), Address("spare", 0)
    node, copy = (NodeCore(place, workers, 1, 1, 1) for place in (SERVER, spare))
    plain = _node(consistency, workers, [*SPECS, ADAGRAD])
    tape = np.zeros(1 << 11, np.uint8)
    tapes.clear(tape)

    def commit(sends: list[Send]) -> None:
        for _, message in (send for send in sends if send.to == spare):
            for _, done in copy.handle(SERVER, message):
                node.handle(spare, done)

    opening = text_rows(json.dumps({"consistency": consistency}))
    for worker in range(workers):
        node.handle(Address("worker", worker), Message(Kind.OPEN, worker, values=opening))
    for spec in [*SPECS, ADAGRAD]:
        define = Message(Kind.DEFINE, values=text_rows(spec.to_json()))
        node.handle(Address("worker", 0), define)
    commit(node.flush())
    desk = node.desk
    assert desk is not None and desk.untold == spare
    desk.tell_on(tape)
    clocks, short = [0] * workers, 0
    for _ in range(300):
        worker, spec = rng.randrange(workers), rng.choice([*SPECS, SPECS[0], ADAGRAD])
        if clocks[worker] > min(clocks) + 1:
            continue
        message = _update(spec, worker, clocks[worker], 0, Flag.LAST, rng.randint(1, 6))
        clocks[worker] += 1
        # A read of a table that adds lets updates be taken again after one of a table that steps.
        assert _short(node, encode(GET._replace(worker=0, clock=0, table=SPECS[1].id)))
        if _short(node, encode(message)) is not None:
            short += 1
        else:
            # What is on the tape was there before the commit.
            copy.follow(0, tape, tapes.written(tape))
            commit(node.handle(Address("worker", worker), message))
            commit(node.flush())
        if _short(plain, encode(message)) is None:
            _long(plain, message)
        if rng.random() < 0.2:
            copy.follow(0, tape, tapes.written(tape))
    copy.follow(0, tape, tapes.written(tape))
    assert short > 100
    assert node.server is not None and plain.server is not None
    shard, twin = node.server.shard, copy.held[0]
    assert encode_tree(shard.to_tree()).tobytes() == encode_tree(twin.to_tree()).tobytes()
    for key, table in plain.server.shard.tables.items():
        same = encode_tree(shard.tables[key].tree()).tobytes()
        assert encode_tree(table.tree()).tobytes() == same


def test_several_replicas_are_told_the_long_way() -> None:
    for replicas, untold in ((0, None), (1, Address("server", 1)), (2, None)):
        node = NodeCore(SERVER, 1, 3, 0, replicas)
        node.handle(
            Address("worker", 0), Message(Kind.OPEN, values=text_rows('{"consistency": "asp"}'))
        )
        for to, message in node.flush():
            if message.kind is Kind.COMMIT:
                node.handle(to, Message(Kind.COMMITTED, mark=message.mark))
        assert node.desk is not None and node.desk.untold == untold
        assert (node.desk.numbers[serve_words.UPDATES] == serve_words.LEFT) == (replicas > 0)
