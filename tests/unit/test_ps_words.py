"""What compiled code reads and writes of a message is what the codec says."""

from __future__ import annotations

import numpy as np

from diml.ps.message import HEADER_BYTES, Flag, Kind, Message, decode, encode
from diml.ps.words import ask_again, copy_update, read_answer

IDS = np.array([12, 10, 12, 17])
TABLE, LOW = 0xFEDCBA98, 10
ROWS = np.arange(30.0, dtype=np.float32).reshape(10, 3)
LEDGER = np.array([[2**40, 7, 0], [2**40 + 1, 2**32 - 1, 0]])
GET = Message(Kind.GET, 1, 2**40 + 2, 0, TABLE, IDS, request=2**32 - 2)


def test_a_question_is_asked_again_at_another_clock() -> None:
    frame = encode(GET)
    known = frame[HEADER_BYTES:].view(np.int64)
    assert ask_again(frame, known, IDS.copy(), 2**33 + 5, 9)
    assert np.array_equal(frame, encode(GET._replace(clock=2**33 + 5, request=9)))
    for others in (IDS[:-1].copy(), IDS + 1, IDS[::-1].copy()):
        assert not ask_again(frame, known, others, 1, 1)
    assert decode(frame).request == 9


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


def test_an_update_is_copied_and_looked_at() -> None:
    ids, rows = np.empty(4, np.int64), np.empty((4, 3), np.float32)
    assert copy_update(IDS, ROWS[:4], 18, ids, rows)
    assert np.array_equal(ids, IDS) and np.array_equal(rows, ROWS[:4])
    assert not copy_update(IDS, ROWS[:4], 17, ids, rows)
    assert not copy_update(IDS - 11, ROWS[:4], 18, ids, rows)
