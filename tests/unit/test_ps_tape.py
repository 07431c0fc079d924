"""Updates on a tape: read whole, in order, and nothing is lost where it is full."""

from __future__ import annotations

import random

import numpy as np

from diml.ps import tape as tapes
from diml.ps.handover import Given, Taken
from diml.ps.message import HEADER_BYTES, Bytes
from diml.world.lending import LIST_MAX, Borrowed, Lender

TAPE_BYTES = 1 << 10


def _message(number: int, length: int = HEADER_BYTES) -> Bytes:
    data = np.full(length, number % 100, np.uint8)
    data[58:59] = 0
    return data


def _read(tape: Bytes) -> Bytes:
    record = tapes.first(tape).copy()
    tapes.drop_first(tape, len(record))
    return record


def test_records_are_read_as_they_were_written() -> None:
    rng, tape = random.Random(1), np.full(TAPE_BYTES, 255, np.uint8)
    tapes.clear(tape)
    waiting: list[Bytes] = []
    taken = refused = 0
    for number in range(5000):
        if rng.random() < 0.55:
            data = _message(number, rng.randint(1, 300))
            if tapes.append(tape, data):
                waiting.append(data)
            else:
                refused += 1
                assert sum(len(record) for record in waiting) + len(data) > TAPE_BYTES // 3
        elif waiting:
            assert tapes.read(tape) < tapes.written(tape)
            assert _read(tape).tobytes() == waiting.pop(0).tobytes()
            taken += 1
        else:
            assert tapes.read(tape) == tapes.written(tape)
    assert taken > 1000 and refused > 100


def test_a_record_that_is_longer_than_the_tape_is_refused() -> None:
    tape = np.zeros(TAPE_BYTES, np.uint8)
    tapes.clear(tape)
    assert not tapes.append(tape, _message(0, TAPE_BYTES))
    assert tapes.append(tape, _message(1, TAPE_BYTES - 200))
    assert not tapes.append(tape, _message(2, 100))


def test_commits_and_updates_are_taken_in_their_order() -> None:
    rng, lender = random.Random(2), Lender(bytearray(1 << 20))
    given, taken = Given(lender, 0, TAPE_BYTES), Taken(Borrowed(lender.memory, 0))
    assert given.tape is not None
    expected: list[int] = []
    found: list[int] = []
    for number in range(3000):
        what = rng.random()
        if what < 0.45:
            if tapes.append(given.tape, _message(number, 100)):
                expected.append(number % 100)
        elif what < 0.7:
            parts = [_message(number), _message(number + 1)]
            if given.hand_over(parts):
                expected += [number % 100, (number + 1) % 100]
        elif what < 0.8:
            assert taken.waiting == (len(found) < len(expected))
            for item in taken.take():
                if isinstance(item, int):
                    assert taken.tape is not None
                    while tapes.read(taken.tape) < item:
                        found.append(_read(taken.tape).item(0))
                else:
                    found.append(item.item(0))
            assert found == expected and not taken.waiting
    assert len(found) > 1000


def test_a_commit_for_which_there_is_no_room_does_not_count() -> None:
    lender = Lender(bytearray(1 << 20))
    given, taken = Given(lender, 0, TAPE_BYTES), Taken(Borrowed(lender.memory, 0))
    assert given.tape is not None
    while given.hand_over([_message(1)]):
        pass
    assert tapes.append(given.tape, _message(2))
    assert not given.hand_over([_message(3)] * LIST_MAX)
    *commits, upto = taken.take()
    assert len(commits) == LIST_MAX - 1 and upto == tapes.written(given.tape)


def test_without_memory_for_a_tape_there_is_none() -> None:
    lender = Lender(bytearray(64 << 10))
    given, taken = Given(lender, 0), Taken(Borrowed(lender.memory, 0))
    assert given.tape is None
    assert given.hand_over([_message(1)])
    assert [item.item(0) for item in taken.take() if not isinstance(item, int)] == [1]
