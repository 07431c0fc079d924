"""The wire format: what goes in comes out, and what is not whole is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.errors import CorruptState
from diml.ps.message import (
    DTYPES,
    HEADER_BYTES,
    Flag,
    Kind,
    Message,
    decode,
    encode,
    frame,
    text_of,
    text_rows,
)


@given(
    kind=st.sampled_from(Kind),
    numbers=st.lists(st.integers(0, 2**31), min_size=4, max_size=4),
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    shape=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dtype=st.sampled_from(DTYPES),
    flags=st.sampled_from([Flag.NONE, Flag.LAST, Flag.EXACT | Flag.ACK]),
)
def test_a_message_survives_the_wire(
    kind: Kind,
    numbers: list[int],
    ids: list[int],
    shape: tuple[int, int],
    dtype: np.dtype[np.float32],
    flags: int,
) -> None:
    values = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    clock, n, mark, request = numbers
    sent = Message(
        kind, 3, clock, n, 0xFFFFFFFF, np.array(ids, np.int64), values, flags, mark, 7, request
    )
    got = decode(encode(sent).copy())
    assert got[:5] == sent[:5] and got[7:11] == sent[7:11]
    assert np.array_equal(got.ids, sent.ids) and np.array_equal(got.values, sent.values)
    assert got.values.dtype == dtype or not values.size
    assert str(got).split(" ids")[0] == str(sent).split(" ids")[0]


def test_a_frame_is_sent_as_it_is() -> None:
    buffer, ids, values = frame(2, 2, 3, np.dtype(np.float32))
    ids[:] = (5, 9)
    values[:] = 1.5
    message = Message(Kind.UPDATE, ids=ids, values=values, frame=buffer)
    assert encode(message) is buffer
    got = decode(buffer)
    assert got.ids.tolist() == [5, 9] and (got.values == 1.5).all()
    assert np.shares_memory(got.values, buffer)


def test_text_travels() -> None:
    assert text_of(decode(encode(Message(Kind.REFUSED, values=text_rows("λ < 0"))))) == "λ < 0"


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:10],
        lambda b: b[:-1],
        lambda b: np.append(b, np.uint8(0)),
        lambda b: np.concatenate([np.zeros(4, np.uint8), b[4:]]),
        lambda b: np.concatenate([b[:4], [np.uint8(99)], b[5:]]),
        lambda b: np.concatenate([b[:5], [np.uint8(99)], b[6:]]),
    ],
)
def test_damage_is_refused(damage) -> None:  # type: ignore[no-untyped-def]
    message = Message(Kind.GET, ids=np.arange(3), values=np.ones((2, 2), np.float32))
    with pytest.raises(CorruptState):
        decode(damage(encode(message)))
    assert HEADER_BYTES == 64
