"""What a server shows, and when, beside what the simulator checks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diml.ps import table_shard
from diml.ps.message import Address, Flag, Kind, Message, Send, text_rows, whole
from diml.ps.server_core import ServerCore
from diml.ps.shard import Shard
from diml.ps.tables import TableSpec

REPLICA = Address("spare", 0)
SPEC = TableSpec("t", 10, 2)


def _commit(core: ServerCore, sends: list[Send]) -> list[Send]:
    """Let the replica acknowledge the commit among these messages."""
    (version,) = [s.message.mark for s in sends if s.message.kind is Kind.COMMIT]
    return core.committed(REPLICA, version)


def _update(worker: int) -> Message:
    ids, ones = np.arange(10), np.ones((10, 2), np.float32)
    return Message(Kind.UPDATE, worker, 0, 0, SPEC.id, ids, ones, Flag.LAST)


def test_rows_that_are_gathered_late_are_those_of_the_commit_that_shows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_shard, "LEAST_BYTES", 0)
    core = ServerCore(Shard(0, 1, 2), (REPLICA,), (0, 0))
    opening = text_rows(json.dumps({"consistency": "ssp(1)"}))
    for worker in range(2):
        core.handle(Message(Kind.OPEN, worker, values=opening))
    core.handle(Message(Kind.DEFINE, 0, values=text_rows(SPEC.to_json())))
    _commit(core, core.flush())
    core.handle(_update(0))
    assert not core.handle(Message(Kind.GET, 0, 1, 0, SPEC.id, np.arange(10), request=9))
    begun = core.flush()
    assert not core.handle(_update(1)), "it waits for the commit"
    shown = [send.message for send in _commit(core, begun) if send.message.kind is Kind.VALUES]
    assert [whole(message).values.tolist() for message in shown] == [[[1.0, 1.0]] * 10]
    _commit(core, core.flush())
    (answer,) = core.handle(Message(Kind.GET, 0, 1, 0, SPEC.id, np.arange(10), request=10))
    assert whole(answer.message).values.tolist() == [[2.0, 2.0]] * 10


def test_a_shorter_clock_of_another_life_keeps_its_own_state() -> None:
    core = ServerCore(Shard(0, 1, 1), (), (0,))
    opening = text_rows(json.dumps({"consistency": "ssp(1)"}))
    core.handle(Message(Kind.OPEN, values=opening))
    core.handle(Message(Kind.DEFINE, values=text_rows(SPEC.to_json())))
    for n in range(3):
        core.handle(_update(0)._replace(n=n, flags=Flag.NONE))
    core.handle(_update(0)._replace(flags=Flag.NONE))
    state = np.arange(4, dtype=np.uint8)
    core.handle(Message(Kind.LOCAL, n=1, values=state.reshape(1, -1), flags=Flag.LAST))
    found = core.shard.local_at(0, 1)
    assert found is not None and found[0] == 1 and found[1].tolist() == state.tolist()
    assert core.shard.ledger[0, :2].tolist() == [1, 0]
    assert core.shard.tables[SPEC.id].values[:, 0].tolist() == [3.0] * 10
