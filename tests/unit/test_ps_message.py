"""The wire format: what goes in comes out, and what is not whole is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.errors import CorruptState
from diml.ps import pieces
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
    whole,
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


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3000, 32), (10_000, 33), (2, 100_000)])
def test_a_message_in_pieces_is_whole_again(rows: int, width: int) -> None:
    wanted = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    buffer, _, values = frame(0, rows, width, wanted.dtype)
    values[:] = np.nan

    def fill(low: int, high: int) -> None:
        values[low:high] = wanted[low:high]

    message = Message(Kind.VALUES, 1, 5, values=values, frame=buffer, fill=fill)
    header = pieces.announcement(message, encode(message._replace(fill=None)))
    assert pieces.is_announcement(header) and not pieces.is_announcement(buffer[:HEADER_BYTES])
    assert pieces.announced(header) == (rows, 4 * width)
    got = np.zeros_like(buffer)
    pieces.begun(header, got)
    for low, high in pieces.cuts(rows, 4 * width):
        fill(low, high)
        place = pieces.span(low, high, 4 * width)
        got[place] = buffer[place]
    assert np.array_equal(decode(got).values, wanted) and decode(got).clock == 5


def test_values_that_are_not_written_yet_are_written_before_they_are_seen() -> None:
    def filled() -> Message:
        buffer, _, values = frame(0, 2, 2, np.dtype(np.float32))
        return Message(Kind.VALUES, values=values, frame=buffer, fill=lambda a, b: _ones(values))

    def _ones(values: np.ndarray) -> None:  # type: ignore[type-arg]
        values[:] = 1

    assert (decode(encode(filled())).values == 1).all()
    late = whole(filled())
    assert late.fill is None and (late.values == 1).all() and whole(late) is late
