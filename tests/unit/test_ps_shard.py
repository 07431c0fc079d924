"""A shard's content: taking a clock back, telling a replica, moving whole."""

from __future__ import annotations

import numpy as np
import pytest

from diml.checkpoint.codec import decode, encode
from diml.ps.message import Kind, Message, blob_rows
from diml.ps.shard import ACKNOWLEDGED, Shard
from diml.ps.tables import TableSpec

SPECS = [
    TableSpec("a", 9, 2, "float32", ("uniform", 0, 1)),
    TableSpec("b", 5, 3, "float64", rule="adagrad"),
]


def _shard(track: bool = False, undoable: bool = False) -> Shard:
    shard = Shard(1, 2, 2, track=track, undoable=undoable)
    for spec in SPECS:
        shard.define(spec)
    return shard


def _clock(shard: Shard, rng: np.random.Generator) -> None:
    messages = []
    for worker in range(2):
        for spec in SPECS:
            ids = rng.integers(spec.rows // 2, spec.rows, 3)
            ids = np.unique(ids)
            values = rng.normal(size=(len(ids), spec.cols)).astype(spec.dtype)
            messages.append(Message(Kind.UPDATE, worker, shard.closed, 0, spec.id, ids, values))
        state = rng.integers(0, 255, 4).astype(np.uint8)
        messages.append(
            Message(Kind.LOCAL, worker, shard.closed, values=blob_rows(state), mark=shard.closed)
        )
    shard.version += 1
    shard.apply_clock(shard.end_clock(messages))


def _content(shard: Shard) -> bytes:
    tree = shard.to_tree()
    tree["version"] = 0
    return encode(tree).tobytes()


def test_a_clock_taken_back_leaves_no_trace() -> None:
    rng = np.random.default_rng(0)
    shard = _shard(undoable=True)
    _clock(shard, rng)
    before = decode(encode(shard.to_tree()), copy=True)
    _clock(shard, rng)
    assert shard.closed == 2 and shard.revertible
    shard.revert()
    assert shard.closed == 1 and not shard.revertible
    tree = shard.to_tree()
    for name in ("values", "state", "steps"):
        for mine, old in zip(tree["tables"], before["tables"], strict=True):
            assert np.array_equal(mine[name], old[name])
    assert np.array_equal(shard.ledger[:, :ACKNOWLEDGED], before["ledger"][:, :ACKNOWLEDGED])
    assert {w: list(s) for w, s in shard.locals.items()} == {0: [1], 1: [1]}
    with pytest.raises(AssertionError, match="cannot take"):
        shard.revert()


def test_a_replica_follows_by_what_changed() -> None:
    rng = np.random.default_rng(1)
    shard, replica = _shard(track=True), Shard(1, 2, 2, undoable=True)
    for _ in range(4):
        _clock(shard, rng)
        parts = shard.changes()
        assert parts[-1].kind is Kind.COMMIT
        replica.install(parts)
        assert _content(replica) == _content(shard) and replica.version == shard.version
    assert [part.kind for part in shard.changes()] == [Kind.COMMIT]
    replica.revert()
    assert replica.closed == shard.closed - 1


def _updates(clock: int, table: TableSpec, *ids: list[int]) -> list[Message]:
    rng = np.random.default_rng(clock)
    rows = [rng.normal(size=(len(i), table.cols)).astype(table.dtype) for i in ids]
    return [
        Message(Kind.UPDATE, worker, clock, 0, table.id, np.array(i), values)
        for worker, (i, values) in enumerate(zip(ids, rows, strict=True))
    ]


def test_a_replica_follows_by_updates_that_are_passed_on() -> None:
    shard, replica = _shard(track=True), Shard(1, 2, 2, undoable=True)
    replica.install(shard.changes())
    for clock in range(2):
        shard.version += 1
        closing = shard.end_clock(_updates(clock, SPECS[0], [5, 8], [4, 7]))
        parts = shard.changes(shard.passed_on(closing))
        assert [part.kind for part in parts] == [Kind.PASSED, Kind.PASSED, Kind.COMMIT]
        # In either order: the server's rows change while the messages are on their way.
        replica.install(parts)
        before = replica.to_tree()["tables"][0]["values"].copy()
        shard.apply_clock(closing)
        assert _content(replica) == _content(shard)
        assert [part.kind for part in shard.changes()] == [Kind.COMMIT]
    replica.revert()
    assert replica.closed == 1 and not np.array_equal(replica.tables[SPECS[0].id].values, before)


def test_an_update_that_is_passed_on_by_itself_comes_to_the_same() -> None:
    shard, twin, replica = _shard(track=True), _shard(track=True), Shard(1, 2, 2)
    replica.install(shard.changes())
    for n, last in enumerate((False, True)):
        (update,) = _updates(0, SPECS[0], [5, 8, 5])
        update = update._replace(n=n)
        for one in (shard, twin):
            one.version += 1
        closing = shard.begin_apply(update, last)
        parts = shard.changes(shard.passed_on(closing))
        assert [part.kind for part in parts] == [Kind.PASSED, Kind.COMMIT]
        replica.install(parts)
        shard.apply_clock(closing)
        twin.apply(update, last)
        assert _content(replica) == _content(shard) == _content(twin)
    for other in (SPECS[1], None):
        (update,) = _updates(1, other or SPECS[0], [3])
        if other is None:
            update = update._replace(ids=update.ids[:0], values=update.values[:0])
        assert not shard.begin_apply(update, True)
        assert _content(shard) == _content(twin)


def test_a_clock_of_one_update_is_passed_on_as_it_is() -> None:
    shard, replica = _shard(track=True), Shard(1, 2, 2)
    replica.install(shard.changes())
    shard.version += 1
    closing = shard.end_clock(_updates(0, SPECS[0], [5, 8, 5]), alone=True)
    parts = shard.changes(shard.passed_on(closing))
    assert [part.kind for part in parts] == [Kind.PASSED, Kind.COMMIT]
    replica.install(parts)
    shard.apply_clock(closing)
    assert _content(replica) == _content(shard)


@pytest.mark.parametrize(
    ("table", "ids"), [(SPECS[0], ([5, 8], [4, 5])), (SPECS[0], ([5, 5], [4])), (SPECS[1], ([3],))]
)
def test_updates_are_passed_on_only_where_rows_would_not_be_shorter(
    table: TableSpec, ids: tuple[list[int], ...]
) -> None:
    shard, replica = _shard(track=True), Shard(1, 2, 2)
    replica.install(shard.changes())
    closing = shard.end_clock(_updates(0, table, *ids))
    assert not shard.passed_on(closing)
    shard.apply_clock(closing)
    replica.install(shard.changes())
    assert _content(replica) == _content(shard)


def test_a_shard_moves_whole() -> None:
    shard = _shard()
    _clock(shard, np.random.default_rng(2))
    moved = Shard.from_tree(decode(encode(shard.to_tree())))
    assert _content(moved) == _content(shard)
    _clock(moved, np.random.default_rng(3))
    assert _content(moved) != _content(shard)


def test_old_states_of_a_worker_go_once_they_cannot_be_needed() -> None:
    shard = Shard(0, 1, 1)
    for clock in range(6):
        blob = np.full(1, clock, np.uint8)
        mark = max(0, clock - 3)
        shard.apply(Message(Kind.LOCAL, 0, clock, 0, values=blob_rows(blob), mark=mark), True)
    assert sorted(shard.locals[0]) == [2, 3, 4, 5, 6]
    assert shard.local_at(0, 4) is not None and shard.local_at(0, 4)[0] == 4  # type: ignore[index]
    assert shard.local_at(0, 1) is None
