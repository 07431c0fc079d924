"""Recycled memory of checkpoints: used again once nobody holds it, and never before."""

from __future__ import annotations

import numpy as np

from diml.allreduce.driver import Buffers


def test_what_nobody_holds_is_used_again() -> None:
    buffers = Buffers()
    states = {0: buffers.take(1000)}
    place = states[0].ctypes.data
    buffers.give_back([states.pop(0)])
    states[0] = buffers.take(900)
    assert states[0].ctypes.data == place
    buffers.give_back([states.pop(0)])
    assert buffers.take(1000).ctypes.data == place


def test_what_somebody_holds_is_left_alone() -> None:
    buffers = Buffers()
    whole = buffers.take(1000)
    buffers.give_back([whole])
    assert buffers.take(1000) is not whole
    buffers.give_back([np.empty(1000, np.uint8)])
    view = buffers.take(900)
    view[:] = 7
    writing = {"model": view}
    buffers.give_back([writing["model"]])
    del view
    buffers.take(900)[:] = 0
    assert (writing["model"] == 7).all()


def test_what_is_no_array_is_let_go() -> None:
    buffers = Buffers()
    buffers.give_back([None])
    buffers.give_back([b"bytes"])
