"""Memory that processes of one host share: what is handed over stays whole until nobody looks."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from diml.ps.neighbours import Neighbours, is_note
from diml.world.lending import LIST_MAX, Borrowed, Lender, Offer, borrow, lend

needs_memory = pytest.mark.skipif(lend() is None, reason="no memory without a name here")


def test_what_is_handed_over_comes_whole_and_in_order() -> None:
    lender = Lender(bytearray(1 << 20))
    first, second = Borrowed(lender.memory, 0), Borrowed(lender.memory, 1)
    assert not first.waiting
    room = lender.room(5000)
    assert room is not None
    room[:] = 7
    assert lender.hand_over([room, np.arange(9, dtype=np.uint8)], 0)
    assert lender.hand_over([room], 1)
    assert first.waiting
    seven, small = first.take()
    assert (seven == 7).all() and small.tolist() == list(range(9))
    assert np.shares_memory(seven, np.frombuffer(lender.memory, np.uint8))
    assert not first.waiting and not first.take()
    (again,) = second.take()
    assert again.tolist() == seven.tolist()


def test_a_block_is_used_again_once_nobody_looks() -> None:
    lender = Lender(bytearray(1 << 20))
    borrowed = Borrowed(lender.memory, 0)

    def address(array: np.ndarray | None) -> int:
        assert array is not None
        return int(array.__array_interface__["data"][0])

    room = lender.room(5000)
    assert room is not None
    place = address(room)
    assert address(lender.room(5000)) != place, "its owner looks"
    assert lender.hand_over([room], 0)
    del room
    assert address(lender.room(5000)) != place, "it has not been taken"
    (taken,) = borrowed.take()
    view = taken[100:200].view(np.int32)
    del taken
    assert address(lender.room(5000)) != place, "a part of it is looked at"
    del view
    assert address(lender.room(5000)) == place


def test_nothing_is_given_where_not_all_of_it_can_be() -> None:
    lender = Lender(bytearray(64 << 10))
    borrowed = Borrowed(lender.memory, 0)
    small, large = np.zeros(10, np.uint8), np.zeros(1 << 20, np.uint8)
    assert not lender.hand_over([small, large], 0)
    assert not borrowed.waiting
    for _ in range(8):
        assert lender.hand_over([small], 0)
    assert not lender.hand_over([small] * (LIST_MAX - 7), 0), "he has too much before him already"
    assert len(borrowed.take()) == 8


@needs_memory
def test_what_a_killed_process_has_handed_over_is_there() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        lent = lend()
        assert lent is not None
        lender, offer = lent
        os.write(writing, b"%d %d " % offer[:2] + offer.token)
        while not lender.hand_over([np.full(1 << 20, 3, np.uint8)], 2):
            pass
        signal.pause()
    pid, descriptor, token = os.read(reading, 1000).split(b" ", 2)
    borrowed = borrow(Offer(int(pid), int(descriptor), token), 2)
    assert borrowed is not None
    while not borrowed.waiting:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (data,) = borrowed.take()
    assert (data == 3).all()
    for end in (reading, writing):
        os.close(end)


@needs_memory
def test_memory_that_is_not_the_one_offered_is_not_opened() -> None:
    lent = lend()
    assert lent is not None
    offer = lent[1]
    assert borrow(offer, 0) is not None
    assert borrow(offer._replace(token=bytes(16)), 0) is None
    assert borrow(offer._replace(descriptor=0), 0) is None
    assert borrow(offer._replace(pid=2**22 + 1), 0) is None


@needs_memory
def test_notes_lead_to_commits_in_memory() -> None:
    server, replica = Neighbours(), Neighbours()
    offer = server.offer(2)
    assert offer is not None and is_note(offer)
    assert server.offer(2) is None, "offered once"
    assert not server.sees(2)
    accepted = replica.heard(offer, 1)
    assert accepted is not None and is_note(accepted)
    assert server.heard(accepted, 2) is None
    assert server.sees(2) and replica.borrowing
    data = server.room(1 << 20)
    data[:] = 1
    assert server.hand_over([data], 2)
    ((sender, found),) = replica.take()
    assert sender == 1
    data[0] = 9
    assert found[0] == 9, "not a copy"
