"""The codec gives back the same types, bits and layout, and refuses what it could not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diml.checkpoint import codec
from diml.errors import CorruptState, Misuse

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=40)
    | st.complex_numbers(allow_nan=False)
)
arrays = hnp.arrays(
    hnp.scalar_dtypes().filter(lambda dtype: dtype.kind in "biufcmMSU"),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
keys = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2))
trees: st.SearchStrategy[Any] = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equality of type, bits and order, as the codec promises it."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        bits = left.tobytes() == right.tobytes() or left.size == 0
        order = left.flags.f_contiguous == right.flags.f_contiguous or left.ndim < 2
        return left.dtype == right.dtype and left.shape == right.shape and bits and order
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return math.copysign(1, left) == math.copysign(1, right) and left == right
    return bool(left == right)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_every_tree_comes_back_as_it_was(tree: Any) -> None:
    encoded = codec.encode(tree)
    assert same(codec.decode(encoded), tree)
    assert same(codec.decode(bytes(encoded), copy=True), tree)


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 5e-324, 2**70, -(2**63)])
def test_hard_numbers(value: float) -> None:
    assert same(codec.decode(codec.encode([value])), [value])


def test_numpy_scalars_keep_their_type() -> None:
    tree = [np.float32(0.1), np.float64(0.1), np.int8(-3), np.bool_(True), np.complex64(1j)]
    assert same(codec.decode(codec.encode(tree)), tree)


def test_arrays_are_read_only_views_unless_copies_are_asked_for() -> None:
    model = np.arange(1000.0)
    encoded = codec.encode({"w": model})
    view = codec.decode(encoded)["w"]
    assert not view.flags.writeable
    assert np.shares_memory(view, encoded)
    assert view.ctypes.data % 8 == 0
    own = codec.decode(encoded, copy=True)["w"]
    own[0] = 7.0
    assert view[0] == 0.0


def test_layout_strides_and_byte_order() -> None:
    grid = np.arange(24, dtype=">i4").reshape(4, 6)
    for array in (np.asfortranarray(grid), grid[::-1, ::2], grid.T, grid[2]):
        back = codec.decode(codec.encode(array))
        assert np.array_equal(back, array)
        assert back.dtype == array.dtype
    assert codec.decode(codec.encode(np.asfortranarray(grid))).flags.f_contiguous


def test_record_arrays() -> None:
    records = np.zeros(3, dtype=[("id", "<i8"), ("weight", "<f4", (2,))])
    records["weight"][1] = 2.5
    back = codec.decode(codec.encode(records))
    assert back.dtype == records.dtype
    assert back.tobytes() == records.tobytes()


@pytest.mark.parametrize("bits", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_generators_go_on_where_they_stood(bits: str) -> None:
    generator = np.random.Generator(getattr(np.random, bits)(7))
    generator.random(5)
    generator.spawn(2)
    generator.integers(0, 2**31, dtype=np.int32)
    back = codec.decode(codec.encode({"rng": generator}))["rng"]
    assert np.array_equal(back.random(9), generator.random(9))
    assert np.array_equal(back.spawn(1)[0].random(3), generator.spawn(1)[0].random(3))


def test_the_legacy_generator_too() -> None:
    generator = np.random.RandomState(3)
    generator.standard_normal(3)
    back = codec.decode(codec.encode(generator))
    assert np.array_equal(back.standard_normal(5), generator.standard_normal(5))


class Optimiser:
    """Stands for an object of the user's own."""


class Settings(dict[str, int]):
    """A subclass would come back as a plain dict."""


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"opt": Optimiser()}, 'model["opt"] is a tests.unit.test_codec.Optimiser'),
        ({"a": [1, {2, 3}]}, 'model["a"][1] is a set'),
        (Settings(a=1), "model is a tests.unit.test_codec.Settings"),
        ({"a": np.array([None])}, 'model["a"] has dtype object'),
        ({frozenset(): 1}, "a key of model is a frozenset"),
        (np.ma.masked_array([1.0], [True]), "model is a numpy.ma"),
        (CYCLE, "nested deeper than"),
    ],
)
def test_what_cannot_come_back_is_refused_by_its_path(tree: Any, words: str) -> None:
    with pytest.raises(Misuse) as caught:
        codec.encode(tree, "model")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_damaged_byte_is_seen() -> None:
    encoded = codec.encode({"w": np.arange(40.0), "name": "x", "b": b"123"})
    for place in range(encoded.size):
        damaged = encoded.copy()
        damaged[place] ^= 0x10
        with pytest.raises(CorruptState):
            codec.decode(damaged)


def test_shifted_swapped_and_shortened_blocks_are_seen() -> None:
    encoded = codec.encode(np.random.default_rng(1).random(20_000))
    swapped = encoded.copy()
    swapped[40_000:72_768], swapped[72_768:105_536] = (
        encoded[72_768:105_536].copy(),
        encoded[40_000:72_768].copy(),
    )
    shifted = encoded.copy()
    shifted[4096:] = np.roll(encoded[4096:], 8)
    for damaged in (swapped, shifted, encoded[:-64], encoded[:20], np.zeros(64, np.uint8)):
        with pytest.raises(CorruptState):
            codec.decode(damaged)


def test_a_later_format_is_refused_by_number() -> None:
    encoded = codec.encode(1)
    encoded[8] = codec.FORMAT + 1
    with pytest.raises(CorruptState, match=f"format {codec.FORMAT + 1}"):
        codec.decode(encoded)


def test_recycled_buffers_leave_no_trace() -> None:
    tree = {"w": np.arange(3.0), "s": "text"}
    clean = codec.encode(tree)
    dirty = codec.encode(tree, allocate=lambda size: np.full(size, 0xAA, np.uint8))
    assert np.array_equal(clean, dirty)
    assert codec.fingerprint(clean) == codec.fingerprint(dirty)
    assert codec.fingerprint(codec.encode({**tree, "s": "tEXt"})) != codec.fingerprint(clean)


@pytest.mark.parametrize("empty", [np.str_(""), np.bytes_(b"")])
def test_texts_of_no_length_come_back(empty: np.generic) -> None:
    came = codec.decode(codec.encode({"name": empty}), copy=True)["name"]
    assert type(came) is type(empty) and came == empty
