"""Update rules against plain NumPy twins, one parameter at a time."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from diml.ps.message import Kind, Message, text_of, text_rows
from diml.ps.server_core import ServerCore
from diml.ps.shard import Shard
from diml.ps.table_shard import TableShard
from diml.ps.tables import TableSpec

ROWS, COLS, STEPS = 6, 2, 5
Floats = NDArray[np.float64]


def _shrunk(w: float, by: float) -> float:
    return math.copysign(max(abs(w) - by, 0.0), w)


def _sgd(g: list[float], w: float) -> float:
    for t, slope in enumerate(g, 1):
        eta = 0.5 * (10 + t) ** -0.6
        w = _shrunk(w - eta * (slope + 0.1 * w), eta * 0.01)
    return w


def _adagrad(g: list[float], w: float) -> float:
    z = 0.0
    for slope in g:
        slope = slope + 0.1 * w
        z += slope**2
        w = _shrunk(w - 0.2 / math.sqrt(z) * slope, 0.2 / math.sqrt(z) * 0.01)
    return w


def _ftrl(g: list[float], w: float) -> float:
    z = n = 0.0
    for slope in g:
        sigma = (math.sqrt(n + slope**2) - math.sqrt(n)) / 0.3
        z += slope - sigma * w
        n += slope**2
        lazy = abs(z) <= 0.2
        w = 0.0 if lazy else -(z - math.copysign(0.2, z)) / ((1 + math.sqrt(n)) / 0.3 + 0.1)
    return w


OPTIONS = {
    "sgd": {"step_size": 0.5, "step_size_offset": 10, "step_size_pow": 0.6, "l1": 0.01, "l2": 0.1},
    "adagrad": {"step_size": 0.2, "l1": 0.01, "l2": 0.1},
    "ftrl": {"alpha": 0.3, "beta": 1.0, "l1": 0.2, "l2": 0.1},
}
TWINS = {"sgd": _sgd, "adagrad": _adagrad, "ftrl": _ftrl}


@pytest.mark.parametrize("rule", list(TWINS))
def test_a_rule_is_its_formula(rule: str) -> None:
    start = 0.0 if rule == "ftrl" else 0.7
    options = tuple(sorted(OPTIONS[rule].items()))
    spec = TableSpec("t", ROWS, COLS, "float64", ("constant", start), rule=rule, options=options)
    table = TableShard(spec, 2, ROWS)
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(STEPS, 2, COLS))
    for g in grads:
        table.apply(np.array([3, 5]), g)
    for i, row in enumerate((3, 5)):
        for k in range(COLS):
            assert table.values[row - 2, k] == pytest.approx(
                TWINS[rule](grads[:, i, k].tolist(), start)
            )
    assert (table.values[0] == start).all() and table.steps == STEPS


def test_adarevision_corrects_for_what_came_between() -> None:
    spec = TableSpec("t", 1, 1, "float64", rule="adarevision", options=(("step_size", 0.5),))
    table = TableShard(spec, 0, 1)
    rng = np.random.default_rng(1)
    w = total = z = most = 0.0
    sums = [0.0]
    for t in range(6):
        g, read = float(rng.normal()), sums[max(0, t - 2)]
        late = total - read
        before = most
        z += g * (g + 2 * late)
        most = max(most, z)
        eta = 0.5 / math.sqrt(most)
        eta_before = 0.5 / math.sqrt(before) if before else eta
        w += (eta_before - eta) * late - eta * g
        total += g
        sums.append(total)
        table.apply(np.array([0]), np.array([[g, read]]))
    assert table.values[0, 0] == pytest.approx(w)
    assert table.answer_frame(np.array([0]))[2].tolist() == [[table.values[0, 0], total]]


def momentum(w: Floats, state: Floats, g: Floats, t: int, options: Floats) -> None:
    """A user's rule: heavy ball."""
    for k in range(w.shape[0]):
        state[k] = options[0] * state[k] + g[k]
        w[k] -= options[1] * state[k]


compiled_momentum = njit(momentum)


@pytest.mark.parametrize("name", ["momentum", "compiled_momentum"])
def test_a_users_rule_is_found_by_its_import_path(name: str) -> None:
    path = f"tests.unit.test_ps_rules:{name}"
    options = (("beta", 0.9), ("rate", 0.1), ("slots", 1))
    table = TableShard(TableSpec("t", 3, 2, "float64", rule=path, options=options), 0, 3)
    for _ in range(2):
        table.apply(np.array([1]), np.ones((1, 2)))
    assert table.values[1] == pytest.approx(-0.1 - 0.1 * 1.9)
    assert table.state[1] == pytest.approx(1.9)


def of_four(w: Floats, state: Floats, g: Floats, t: int) -> None:
    """No rule: it takes no options."""


def of_text(w: Floats, state: Floats, g: Floats, t: int, options: Floats) -> None:
    """No rule: the compiler does not know what it calls."""
    w[0] = len(json.dumps(1))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("of_four", (), r"fails: TypeError: of_four\(\) takes 4 positional arguments but 5"),
        ("of_text", (), "cannot be compiled: TypingError: Unknown attribute 'dumps'"),
        ("compiled_momentum", (("beta", 0.9), ("rate", 0.1)), "fails: IndexError: index 0"),
        ("momentum", (("beta", 0.9), ("slots", 1)), "fails: IndexError: index 1"),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_users_rule_that_does_not_work_is_refused_by_the_server(
    name: str, options: tuple[tuple[str, float], ...], words: str, sparse: bool
) -> None:
    path = f"tests.unit.test_ps_rules:{name}"
    spec = TableSpec("t", 3, 2, "float64", rule=path, options=options, sparse=sparse)
    core = ServerCore(Shard(0, 1, 1), (), (0,))
    core.handle(Message(Kind.OPEN, values=text_rows(json.dumps({"consistency": "bsp"}))))
    (send,) = core.handle(Message(Kind.DEFINE, values=text_rows(spec.to_json())))
    assert send.message.kind is Kind.REFUSED
    assert re.match(f"table 't': rule '{path}' {words}.*$", text_of(send.message))
    good = TableSpec("t", 3, 2, "float64")
    (send,) = core.handle(Message(Kind.DEFINE, values=text_rows(good.to_json())))
    assert send.message.kind is Kind.DEFINED, "the server lives on"


@pytest.mark.parametrize("rule", ["add", "sgd", "adagrad", "ftrl", "adarevision"])
def test_a_clock_of_many_workers_is_one_step_on_their_sum(rule: str) -> None:
    spec = TableSpec("t", ROWS, COLS, "float64", rule=rule)
    shard, twin = Shard(0, 1, 2), TableShard(spec, 0, ROWS)
    shard.define(spec)
    rng = np.random.default_rng(2)
    for clock in range(3):
        ids = [np.array([0, 2, 3]), np.array([2, 5])]
        g = [rng.normal(size=(len(i), COLS)) for i in ids]
        wide = [np.hstack([x, np.zeros_like(x)]) if rule == "adarevision" else x for x in g]
        updates = [Message(Kind.UPDATE, w, clock, 0, spec.id, ids[w], wide[w]) for w in range(2)]
        shard.apply_clock(shard.end_clock(updates))
        total = np.zeros((ROWS, COLS))
        for i, x in zip(ids, g, strict=True):
            np.add.at(total, i, x)
        touched = np.array([0, 2, 3, 5])
        step = total[touched]
        if rule == "adarevision":
            step = np.hstack([step, twin.state[touched, :COLS]])
        twin.apply(touched, step)
    assert shard.tables[spec.id].values == pytest.approx(twin.values)
