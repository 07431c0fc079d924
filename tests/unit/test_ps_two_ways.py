"""Calls that go the short way do to worker and server what the long way does, whatever the order.

Two workers, each with a server of its own, do the same; only one of them has a short way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diml.ps.client import ParameterServer
from diml.ps.message import Kind, Message, Send, encode
from tests.unit.test_ps_quick import Wired, opened

ROWS = 20
_ids = st.lists(st.integers(0, ROWS - 1), min_size=0, max_size=4)
_table = st.integers(0, 2)
_operations = st.lists(
    st.one_of(
        st.tuples(st.just("get"), _table, _ids),
        st.tuples(st.just("inc"), _table, _ids),
        st.tuples(st.just("inc"), st.just(0), _ids),
        st.tuples(st.just("clock"), st.booleans(), st.booleans()),
        st.tuples(st.just("clock"), st.just(False), st.just(False)),
        st.tuples(st.sampled_from(["is_late", "dies", "loses"]), st.none(), st.none()),
        st.tuples(st.just("push"), st.none(), _ids),
    ),
    max_size=30,
)


class _Worker:
    def __init__(self, short: bool, staleness: int) -> None:
        self.port, self.ps = opened(staleness, short)
        self.tables = [
            self.ps.table("f", ROWS, 3, "float32", init=("uniform", 0, 1)),
            self.ps.table("i", ROWS, 2, "int64"),
            self.ps.table("s", ROWS, 3, "float64", rule="sgd"),
        ]
        self.vector = self.ps.kv("v", ROWS, rule="add")
        self.steps = 0

    def do(self, what: str, first: Any, second: Any) -> Any:
        self.steps += 1
        if what == "get":
            return self.tables[first].get(np.array(second, np.int64)).tolist()
        if what == "inc":
            table = self.tables[first]
            rng = np.random.default_rng(self.steps)
            deltas = rng.integers(-9, 9, (len(second), table.cols)).astype(table.dtype)
            return table.inc(np.array(second, np.int64), deltas)
        if what == "clock":
            return self.ps.clock({"step": self.steps} if first else None, wait=second)
        if what == "push":
            keys = np.unique(np.array(second, np.int64))
            return self.vector.push(keys, np.ones(len(keys), np.float32))
        return setattr(self.port, what, True)


def _state(port: Wired, ps: ParameterServer) -> object:
    """All that may not depend on the way."""
    core = port.core
    assert core is not None and port.node.server is not None
    retained = [encode(message).tobytes() for message in core.sent._messages(0)]
    shard = port.node.server.shard
    return {
        "clock": (core.clock, core.n, core.answered, core.questions.next, core.questions.open),
        "sent": (core.sent.watermark, core.sent._acknowledged, retained),
        "seen": ps.staleness_seen,
        "ledger": shard.ledger.tolist(),
        "rows": {key: table.values.tobytes() for key, table in shard.tables.items()},
        "handled": port.handled,
        "arrived": [data.tobytes() for data in port.arrived],
    }


_CLOCK = ("clock", False, False)


# A push has a number in its clock, which the clock's own update comes after.
@example([("push", None, [1]), ("get", 0, [1]), ("inc", 0, [1]), _CLOCK, ("get", 0, [1])], 2)
@settings(max_examples=150, deadline=None)
@given(operations=_operations, staleness=st.sampled_from([0, 2]))
def test_both_ways_do_the_same(operations: list[tuple[str, Any, Any]], staleness: int) -> None:
    short, long = _Worker(True, staleness), _Worker(False, staleness)
    for operation in operations:
        assert short.do(*operation) == long.do(*operation)
        assert _state(short.port, short.ps) == _state(long.port, long.ps), operation


def test_a_clock_of_one_update_goes_the_short_way() -> None:
    worker = _Worker(True, 2)
    ids = [1, 5, 1]
    sent: list[Message] = []
    post = worker.port.post

    def told(sends: list[Send]) -> None:
        sent.extend(send.message for send in sends)
        post(sends)

    worker.port.post = told  # type: ignore[method-assign]
    for _ in range(3):
        worker.do("get", 0, ids)
        worker.do("inc", 0, ids)
        worker.do("clock", False, False)
    assert not sent
    worker.do("get", 0, ids)
    worker.do("inc", 0, ids)
    worker.do("inc", 1, ids)
    worker.do("clock", False, False)
    assert [message.kind for message in sent] == [Kind.UPDATE, Kind.UPDATE]
