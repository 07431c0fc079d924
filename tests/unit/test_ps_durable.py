"""Durable checkpoints without MPI: meetings at a server, and shards made anew of any number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diml.checkpoint.codec import decode, encode
from diml.checkpoint.keeper import Place
from diml.checkpoint.manifest import Identity
from diml.errors import CorruptState, Misuse
from diml.ps.client import ParameterServer
from diml.ps.client_core import ClientCore
from diml.ps.consistency import parse_consistency
from diml.ps.durable import Durable
from diml.ps.message import Bytes, Flag, Ids, Kind, Message, blob_rows
from diml.ps.port import LocalPort
from diml.ps.saves import Saves
from diml.ps.saving import Nowhere, Saving
from diml.ps.session import Session
from diml.ps.shard import Shard
from diml.ps.snapshot import Assembly, Origin, Snapshot
from diml.ps.tables import TableSpec
from diml.world.calls import Calls

IDENTITY = Identity("program", 3, {})
SPEC = TableSpec("t", 23, 2, "float64", ("uniform", 0, 1), 5, "adagrad")


class Kept(Nowhere):
    """A storage in a list, where a checkpoint is due at every third question."""

    def __init__(self) -> None:
        self.snapshots: list[tuple[int, dict[str, Any]]] = []
        self.asked = 0

    def due(self, stop: bool) -> int:
        self.asked += 1
        return 2 if self.asked % 3 == 0 else 0

    def store(self, decision: int, snapshot: Snapshot, mirrored: bool) -> Bytes | None:
        self.snapshots.append((snapshot.clock, snapshot.to_tree()))
        return None


def _check(worker: int, clock: int) -> Message:
    return Message(Kind.CHECK, worker, clock, request=7)


def _save(worker: int, clock: int, local: Any = None) -> Message:
    about = encode({"facts": {"data": "A"}, "local": local})
    return Message(Kind.SAVE, worker, clock, 2, request=9, values=blob_rows(about))


def test_all_workers_hear_the_same_and_none_before_a_repair_is_met_again() -> None:
    shard, kept = Shard(0, 1, 2), Kept()
    saving = Saving(shard, kept, not_before=2)
    assert [saving.handle(_check(0, clock))[0][1].n for clock in range(7)] == [0, 0, 0, 0, 2, 0, 0]
    assert [saving.handle(_check(1, clock))[0][1].n for clock in range(7)] == [0, 0, 0, 0, 2, 0, 0]
    shard.ledger[:, 0] = 4
    assert saving.handle(_save(0, 4)) == []
    answers = saving.handle(_save(1, 4, np.arange(3, dtype=np.uint8)))
    assert [question.worker for question, _ in answers] == [0, 1]
    assert [(clock, list(tree["locals"])) for clock, tree in kept.snapshots] == [(4, [1])]


def _shards(number: int) -> list[Shard]:
    """Shards of one table after some updates, as one server or several have them."""
    shards = [Shard(index, number, 2) for index in range(number)]
    rng = np.random.default_rng(0)
    updates = [(rng.choice(23, 9, replace=False), rng.normal(size=(9, 2))) for _ in range(4)]
    for shard in shards:
        shard.define(SPEC)
        table = shard.tables[SPEC.id]
        for ids, values in updates:
            here = (ids >= table.low) & (ids < table.high)
            table.apply(ids[here], values[here])
    return shards


@pytest.mark.parametrize("before", [1, 2, 5])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_rows_and_states_are_the_same_on_another_number_of_servers(before: int, after: int) -> None:
    states = {worker: encode(worker, "local") for worker in range(3)}
    pieces = [
        Snapshot(s, 6, {w: b for w, b in states.items() if w % before == s.index}, {}).to_tree()
        for s in _shards(before)
    ]
    twins = _shards(after)
    for index, twin in enumerate(twins):
        assembly = Assembly(Shard(index, after, 3), Origin(6, 3, True, IDENTITY))
        for piece in pieces:
            assembly.add(decode(encode(piece)))
        shard = assembly.finish()
        table, wanted = shard.tables[SPEC.id], twin.tables[SPEC.id]
        assert table.values.tobytes() == wanted.values.tobytes()
        assert table.state.tobytes() == wanted.state.tobytes()
        assert table.steps == wanted.steps and shard.closed == 6
        assert sorted(shard.resumed) == [w for w in range(3) if w % after == index]
        for worker in shard.resumed:
            found = shard.local_at(worker, 6)
            assert found is not None and decode(found[1]) == worker


def test_rows_that_are_in_no_piece_are_an_error() -> None:
    first, *_ = _shards(3)
    assembly = Assembly(Shard(0, 1, 2), Origin(6, 2, True, IDENTITY))
    assembly.add(Snapshot(first, 6, {}, {}).to_tree())
    with pytest.raises(CorruptState, match="16 rows of table 't'"):
        assembly.finish()


class Alone:
    """The link of a single process."""

    rank, size = 0, 1

    def allgather_objects(self, value: Any) -> list[Any]:
        return [value]

    def broadcast_object(self, value: Any, root: int) -> Any:
        return value


class Ended(Exception):
    """What a stop in good order raises here."""


class Stop:
    """A signal that has come, or not."""

    name = ""


def _server(path: Path, stop: Stop, **facts: str) -> tuple[ParameterServer, Durable]:
    durable = Durable([Place(path, 1e-9)], "auto", 3)
    restored = durable.restore(Alone(), ((0,),), 1)  # type: ignore[arg-type]
    core = ClientCore(0, 1, parse_consistency(None, 0))
    session = Session(LocalPort(durable, restored), core, 5.0, lambda *_: None, Calls())
    saves = Saves(session, durable, stop, facts, lambda _, words: Ended(words))  # type: ignore[arg-type]
    ps = ParameterServer(session, 1, 3, False, lambda what, **fields: None, saves)
    ps.open()
    return ps, durable


def test_a_single_process_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    stop = Stop()
    ps, durable = _server(tmp_path, stop)
    table = ps.table("t", 9, 2)
    for clock in range(6):
        table.inc([clock], [[1.0, clock]])
        with pytest.raises(Misuse, match="wait for a clock"):
            ps.checkpoint()
        ps.clock()
        stop.name = "SIGTERM" if clock == 4 else ""
        made: list[int] = []

        def local(clock: int = clock, made: list[int] = made) -> dict[str, int]:
            made.append(clock)
            return {"at": clock}

        if clock == 4:
            with pytest.raises(Ended, match="clock 5 is kept"):
                ps.checkpoint(local)
            break
        ps.checkpoint(local)
        durable.close()
        assert made
    again, _ = _server(tmp_path, Stop())
    assert again.clock_now == 5 and again.local == {"at": 4}
    assert again.resumed is not None and again.resumed.locals == [{"at": 4}]
    rows = again.table("t", 9, 2).get(np.arange(9))
    assert rows[:, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    with pytest.raises(Misuse, match="cols 2 against 3"):
        again.table("t", 9, 3)


def test_the_memory_of_a_replicas_node_has_the_rows_of_a_lost_one(tmp_path: Path) -> None:
    places = [[Place(tmp_path / node, 0.0, in_memory=True)] for node in ("lost", "left")]
    there, here = (Durable(place, "auto", 3, clock=lambda: 0.0) for place in places)
    for durable in (there, here):
        durable.restore(Alone(), ((0,),), 1)  # type: ignore[arg-type]
    (shard,) = _shards(1)
    shard.ledger = np.full((1, 3), 4)
    state = encode("mine", "local")
    assert there.store(4, Snapshot(shard, 4, {0: state}, {}), True) is None, "no place of that bit"
    blob = there.store(2, Snapshot(shard, 4, {0: state}, {}), True)
    assert blob is not None
    message = Message(Kind.MIRROR, clock=4, n=2, values=blob_rows(blob))
    here.mirror(message, 1)
    here.close()
    again = Durable(places[1], "auto", 3)
    restored = again.restore(Alone(), ((0,),), 1)[0]  # type: ignore[arg-type]
    assert again.origin is not None and again.origin.clock == restored.closed == 4
    table = shard.tables[SPEC.id]
    assert restored.tables[SPEC.id].values.tobytes() == table.values.tobytes()
    assert decode(restored.resumed[0]) == "mine"


def test_older_ones_go_once_two_newer_are_known_to_be_whole(tmp_path: Path) -> None:
    ps, durable = _server(tmp_path, Stop())
    for _ in range(6):
        ps.clock()
        ps.checkpoint()
        durable.close()
    # What is on the disk everywhere is known at the next meeting.
    assert len(list((tmp_path / "ps").iterdir())) <= 4
    clocks: Ids = durable.written()
    assert clocks.tolist() == [6]


def test_what_is_asked_for_after_the_write_tells_how_far_it_is(tmp_path: Path) -> None:
    _, durable = _server(tmp_path, Stop())
    shard = Shard(0, 1, 1)
    saving = Saving(shard, durable, 0)
    shard.ledger[:, 0] = 3
    saving.handle(_save(0, 3))
    asked = Message(Kind.CHECK, flags=Flag.EXACT)
    deadline = time.monotonic() + 120
    while saving.handle(asked)[0][1].n:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert saving.handle(asked)[0][1].ids.tolist() == [3]
