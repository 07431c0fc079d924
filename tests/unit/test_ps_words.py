"""What compiled code reads and writes of a message is what the codec says."""

from __future__ import annotations

import numpy as np
import pytest

from diml.ps.message import CODES, Flag, Kind, Message, encode
from diml.ps.words import is_plain_ack, read_answer, stamp_update, write_question, write_update

IDS = np.array([12, 10, 12, 17])
TABLE, LOW = 0xFEDCBA98, 10
ROWS = np.arange(30.0, dtype=np.float32).reshape(10, 3)
LEDGER = np.array([[2**40, 7, 0], [2**40 + 1, 2**32 - 1, 0]])
GET = Message(Kind.GET, 1, 2**40 + 2, 0, TABLE, IDS, request=2**32 - 2)


def test_a_question_is_asked_again_at_another_clock() -> None:
    frame = encode(GET)
    others = IDS[::-1].copy()
    assert write_question(frame, others, 18, 2**33 + 5, 9)
    assert np.array_equal(frame, encode(GET._replace(clock=2**33 + 5, request=9, ids=others)))
    for bad in (IDS - 11, IDS + 1, IDS[:-1].copy(), np.append(IDS, 1)):
        assert not write_question(frame, bad, 18, 1, 1)


def test_an_answer_is_taken_for_what_it_is() -> None:
    answer = Message(Kind.VALUES, 1, 2**40, 5, values=ROWS, mark=2**41, request=3)

    def read(message: Message, clock: int = 2**41, n: int = 5) -> tuple[int, int, int]:
        said: tuple[int, int, int] = read_answer(encode(message), 3, 1, 10, 3, clock, n)
        return said

    assert read(answer) == (2**40, 2**41, 5)
    nothing = (-1, 0, 0)
    # It knows of more than was sent.
    assert read(answer, n=4) == read(answer, clock=2**41 - 1) == nothing
    assert read(answer, clock=2**41 + 1, n=0) == (2**40, 2**41, 5)
    for other in (
        answer._replace(kind=Kind.PUSHED),
        answer._replace(request=4),
        answer._replace(values=ROWS[1:]),
        answer._replace(values=ROWS.reshape(15, 2)),
        answer._replace(values=ROWS.astype(np.int32)),
        answer._replace(flags=Flag.LAST),
    ):
        assert read(other) == nothing
    filtered = encode(answer)
    filtered[58] = 2
    assert read_answer(filtered, 3, 1, 10, 3, 2**41, 5) == nothing


def test_an_acknowledgement_is_taken_for_one() -> None:
    ack = Message(Kind.ACK, 3, 2**40, 7)
    assert is_plain_ack(encode(ack))
    others = (ack._replace(kind=Kind.VALUES), ack._replace(ids=IDS), ack._replace(flags=Flag.ACK))
    assert not any(is_plain_ack(encode(other)) for other in others)
    filtered = encode(ack)
    filtered[58] = 2
    assert not is_plain_ack(filtered)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_an_update_is_the_message_that_the_codec_makes(dtype: str) -> None:
    rows = ROWS[:4].astype(dtype)
    message = Message(Kind.UPDATE, 3, 2**40, 2**32 - 1, TABLE, IDS, rows, Flag.LAST, mark=2**39 + 1)
    data = np.full(len(encode(message)), 255, np.uint8)
    assert write_update(data, IDS, rows, 18, 3, TABLE, CODES[rows.dtype])
    stamp_update(data, 2**40, 2**39 + 1, 2**32 - 1)
    assert np.array_equal(data, encode(message))
    assert not write_update(data, IDS, rows, 17, 3, TABLE, 1)
    assert not write_update(data, IDS - 11, rows, 18, 3, TABLE, 1)
