"""Definitions of tables, their first values, and the models of consistency."""

from __future__ import annotations

import numpy as np
import pytest

from diml.errors import Misuse
from diml.ps.consistency import Consistency, parse_consistency
from diml.ps.rules import rule_of
from diml.ps.tables import (
    TableSpec,
    first_values,
    row_bounds,
    row_range,
    same_definition,
    spec_of_init,
)


@pytest.mark.parametrize("init", [("uniform", -1.0, 3.0), ("normal", 2.0, 0.5), ("constant", 7)])
@pytest.mark.parametrize("cols", [1, 3, 4, 9])
def test_first_values_do_not_depend_on_the_cut(init: tuple[str | float, ...], cols: int) -> None:
    spec = TableSpec("t", 23, cols, "float64", init, seed=5)
    whole = first_values(spec, 0, 23)
    for shards in (1, 2, 5, 23, 40):
        parts = [first_values(spec, *row_range(23, p, shards)) for p in range(shards)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert row_bounds(23, 5)[-1] == 23


def test_first_values_have_their_distribution() -> None:
    spec = TableSpec("t", 20_000, 5, "float32", ("uniform", -1.0, 3.0), seed=5)
    values = first_values(spec, 0, 20_000)
    assert values.dtype == np.float32 and values.min() >= -1 and values.max() < 3
    assert abs(values.mean() - 1) < 0.02 and abs(values.std() - 4 / 12**0.5) < 0.02
    normal = first_values(TableSpec("t", 20_000, 5, "float64", ("normal", 2.0, 0.5)), 0, 20_000)
    assert abs(normal.mean() - 2) < 0.01 and abs(normal.std() - 0.5) < 0.01
    other = TableSpec("t", 20_000, 5, "float32", ("uniform", -1.0, 3.0), seed=6)
    assert not np.array_equal(first_values(other, 0, 9), values[:9])
    named = TableSpec("u", 20_000, 5, "float32", ("uniform", -1.0, 3.0), seed=5)
    assert not np.array_equal(first_values(named, 0, 9), values[:9])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rows": 0}, "rows"),
        ({"cols": -1}, "cols"),
        ({"dtype": "complex64"}, "dtype"),
        ({"init": ("gamma", 1)}, "init"),
        ({"init": ("uniform", 1)}, "init"),
        ({"init": ("constant", float("nan"))}, "finite"),
        ({"init": ("uniform", 2.0, 1.0)}, "no distribution"),
        ({"init": ("normal", 0.0, -1.0)}, "no distribution"),
        ({"dtype": "int64", "init": ("constant", 0.5)}, "int64 cannot hold init 0.5"),
        ({"dtype": "int32", "init": ("constant", 2**31)}, "cannot hold"),
        ({"init": ("constant", 1e300)}, "float32 cannot hold"),
        ({"name": 3}, "name is a text"),
        ({"name": ""}, "name is a text"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_senseless_definitions_are_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(Misuse, match=word):
        TableSpec(**({"name": "t", "rows": 3, "cols": 2} | change))  # type: ignore[arg-type]


def test_two_definitions_of_one_name_name_both() -> None:
    spec = TableSpec("t", 3, 2, init=("uniform", 0, 1), options=(("l1", 0.5),))
    assert TableSpec.from_json(spec.to_json()) == spec
    same_definition(spec, TableSpec.from_json(spec.to_json()))
    with pytest.raises(Misuse, match="rows 3 against 4"):
        same_definition(spec, TableSpec("t", 4, 2, init=("uniform", 0, 1), options=(("l1", 0.5),)))
    with pytest.raises(Misuse, match="share an id"):
        same_definition(spec, TableSpec("u", 3, 2))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (TableSpec("t", 3, 2, rule="momentum"), "none of"),
        (TableSpec("t", 3, 2, rule="sgd", options=(("eta", 1.0),)), "no option 'eta'"),
        (TableSpec("t", 3, 2, "int64", rule="adagrad"), "floats"),
        (TableSpec("t", 3, 2, rule="diml.nowhere:f"), "cannot be imported"),
        (TableSpec("t", 3, 2, rule="__main__:f"), "__main__"),
        (TableSpec("t", 3, 2, rule=":f"), "no module:function"),
        (TableSpec("t", 3, 2, rule="math:pi"), "not a function"),
    ],
)
def test_senseless_rules_are_refused(spec: TableSpec, word: str) -> None:
    with pytest.raises(Misuse, match=word):
        rule_of(spec)


def test_models() -> None:
    assert parse_consistency(None, 0) == Consistency("bsp", 0)
    assert parse_consistency("ssp(3)", 0) == parse_consistency(None, 3) == Consistency("ssp", 3)
    assert parse_consistency("ssp(0)", 0).buffered
    assert str(parse_consistency("ssp(3)", 0)) == "ssp(3)"
    assert parse_consistency("asp", 0).readable(100, 0)
    assert parse_consistency(None, 2).readable(5, 3)
    assert not parse_consistency(None, 2).readable(5, 2)
    for text, staleness, words in (
        ("bsp", 1, "staleness 0, not 1"),
        ("ssp(3)", 2, "contradicts staleness 2"),
        ("essp?", 0, "none of bsp"),
        (None, -1, "whole number"),
        (None, 2**62, "whole number"),
        ("ssp(99999999999999999999)", 0, "whole number"),
        ("bsp(2)", 0, "bsp takes no number"),
        ("asp(3)", 0, "asp takes no number"),
        ("asp", 2, "no bound"),
    ):
        with pytest.raises(Misuse, match=words):
            parse_consistency(text, staleness)


def test_a_whole_number_to_begin_with_is_exact() -> None:
    spec = TableSpec("t", 2, 1, "int64", spec_of_init(2**53 + 1))
    assert first_values(TableSpec.from_json(spec.to_json()), 0, 2).tolist() == [[2**53 + 1]] * 2
