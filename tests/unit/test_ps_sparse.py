"""Sparse tables against dense twins: rules, reads, what a replica and a snapshot hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diml.errors import Misuse
from diml.ps.message import Kind, Message
from diml.ps.shard import Shard
from diml.ps.snapshot import Assembly, Origin, Snapshot
from diml.ps.tables import TableSpec
from tests.unit.test_ps_client import _server
from tests.unit.test_ps_durable import IDENTITY

COLS = 10**5


@pytest.mark.parametrize(("staleness", "model"), [(0, None), (2, None), (0, "asp"), (0, "essp(2)")])
def test_a_sparse_table_holds_what_a_dense_one_does(staleness: int, model: str | None) -> None:
    ps = _server(staleness, model)
    table = ps.table("t", 12, COLS, "float64", sparse=True)
    twin = np.zeros((12, 7))
    columns = np.array([0, 5, 77, 10**3, 10**4, COLS - 2, COLS - 1])
    rng = np.random.default_rng(0)
    for step in range(60):
        ids = rng.integers(0, 12, rng.integers(0, 6))
        deltas = rng.integers(-2, 3, (len(ids), 7)).astype(float)
        np.add.at(twin, ids, deltas)
        rows, places = np.nonzero(deltas)
        shape = (len(ids), COLS)
        table.inc_sparse(ids, sp.csr_array((deltas[rows, places], (rows, columns[places])), shape))
        if step % 3 == 0:
            asked = rng.integers(0, 12, 5)
            found = table.get_sparse(asked)
            assert found.shape == (5, COLS) and found.nnz == np.count_nonzero(twin[asked])
            assert (found[:, columns].toarray() == twin[asked]).all()
        if step % 20 == 19:
            ps.clock()
    assert (table.get_sparse(np.arange(12))[:, columns].toarray() == twin).all()
    ps.close()


def test_small_ones_are_read_and_written_as_arrays_too() -> None:
    ps = _server()
    table = ps.table("t", 5, 3, sparse=True)
    table.inc([4, 0, 4], np.array([[1.0, 0, 2], [0, 3, 0], [1, 0, 0]]))
    assert table.get([0, 4]).tolist() == [[0, 3, 0], [2, 0, 2]]
    bad = {
        "not 5": lambda: table.get_sparse([5]),
        "shape": lambda: table.inc_sparse([1], sp.csr_array((1, 4))),
        "was not made with sparse": lambda: ps.table("d", 5, 3).get_sparse([1]),
        "begins as zeros": lambda: ps.table("e", 5, 3, init=1.0, sparse=True),
        "not for sparse": lambda: ps.table("f", 5, 3, rule="adarevision", sparse=True),
        "sparse False against True": lambda: ps.table("d", 5, 3, sparse=True),
    }
    for words, call in bad.items():
        with pytest.raises(Misuse, match=words):
            call()
    ps.clock()


def _updates() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [
        (np.sort(rng.choice(23 * 40, 30, replace=False)), rng.normal(size=(30, 1)))
        for _ in range(4)
    ]


def _shard(number: int, index: int, rule: str) -> tuple[Shard, TableSpec]:
    shard = Shard(index, number, 1, undoable=True)
    spec = TableSpec("t", 23, 40, "float64", rule=rule, sparse=True)
    shard.define(spec)
    return shard, spec


@pytest.mark.parametrize("rule", ["add", "sgd", "adagrad", "ftrl"])
def test_rules_act_on_cells_as_on_dense_rows(rule: str) -> None:
    shard, spec = _shard(1, 0, rule)
    dense = Shard(0, 1, 1)
    twin = TableSpec("t", 23 * 40, 1, "float64", rule=rule)
    dense.define(twin)
    for clock, (cells, values) in enumerate(_updates()):
        parts = [(cells[:20], values[:20]), (cells[10:], values[10:])]
        messages = [Message(Kind.UPDATE, 0, clock, 0, spec.id, ids, v) for ids, v in parts]
        table = shard.tables[spec.id]
        _, before, kept, _ = table.answer_frame(np.arange(23))
        shard.apply_clock(shard.end_clock(messages))
        if clock == 2:
            shard.revert()
            _, cells, values, _ = table.answer_frame(np.arange(23))
            assert cells.tolist() == before.tolist() and values.tolist() == kept.tolist()
            shard.apply_clock(shard.end_clock(messages))
        dense.apply_clock(dense.end_clock(messages))
    table = shard.tables[spec.id]
    wanted = dense.tables[twin.id].values[:, 0]
    found = np.zeros(23 * 40)
    _, cells, values, _ = table.answer_frame(np.arange(23))
    found[cells] = values[:, 0]
    assert found.tobytes() == wanted.tobytes() or (found == wanted).all()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 2)])
def test_cells_go_to_other_numbers_of_servers(before: int, after: int) -> None:
    pieces = []
    for index in range(before):
        shard, spec = _shard(before, index, "adagrad")
        table = shard.tables[spec.id]
        for cells, values in _updates():
            here = (cells >= table.low * 40) & (cells < table.high * 40)
            table.apply(cells[here], values[here])
        pieces.append(Snapshot(shard, 5, {}, {}).to_tree())
    total = 0
    for index in range(after):
        assembly = Assembly(Shard(index, after, 1), Origin(5, 1, False, IDENTITY))
        for piece in pieces:
            assembly.add(piece)
        table = assembly.finish().tables[spec.id]
        _, cells, values, _ = table.answer_frame(np.arange(table.low, table.high))
        total += len(cells)
        assert ((cells >= table.low * 40) & (cells < table.high * 40)).all()
        assert (np.count_nonzero(table.state, axis=1) == 1).all() and len(values) == len(cells)
    assert total == len(np.unique(np.concatenate([cells for cells, _ in _updates()])))
