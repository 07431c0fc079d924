"""Short messages by compiled code: MPI's own functions, without a Python object a call.

Owns the way from compiled code to MPI, and what MPI's answers mean there: an error becomes what
`diml.world.transfer` makes of it, a send that is still under way becomes its link's. Must not know
what the bytes mean. A message costs a microsecond by this way and three by mpi4py's calls, which
matters to nobody but those who send small ones one after the other.

Invariant: for each call here `Link` has one that does the same (`isend`, `poll`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from mpi4py import MPI
from numba import njit, types
from numpy.typing import NDArray

from diml.world.link import ANY, Bytes, Link
from diml.world.transfer import Sending, keep_unfilled, translated

# Where MPI reads and writes, in words of 64 bits: handles, what MPI answers, and at the end what it
# says of a message.
_COMM, _BYTE, _REQUEST, _FLAG, _MESSAGE, _COUNT, _ERROR = range(7)
_STATUS, _STATUS_WORDS = 8, 16
_WORD = 8

# What a call has come to, where that is no number of bytes.
NOTHING, FAILED, UNDER_WAY = -1, -2, -3

# A receive looks at the clock each time that it has looked so often for a message.
_LOOKS = 8

_LIBRARY = ctypes.CDLL(MPI.__file__)
_int, _handle, _address = types.int32, types.int64, types.int64


def _function(name: str, *arguments: Any, result: Any = _int) -> Callable[..., Any]:
    """A C function, for compiled code to call. Handles of MPI are pointers or numbers of 32 bits,
    by the library; both fit into 64."""
    address = ctypes.cast(getattr(_LIBRARY, name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(name, address)
    function: Callable[..., Any] = types.ExternalFunction(name, result(*arguments))
    return function


_isend = _function("MPI_Isend", _address, _int, _handle, _int, _int, _handle, _address)
_test = _function("MPI_Test", _address, _address, _address)
_improbe = _function("MPI_Improbe", _int, _int, _handle, _address, _address, _address)
_get_count = _function("MPI_Get_count", _address, _handle, _address)
_mrecv = _function("MPI_Mrecv", _address, _int, _handle, _address, _address)
_wtime = _function("MPI_Wtime", result=types.float64)
_sched_yield = _function("sched_yield")


def _place_of_source() -> int:
    """Where in a status the sender's rank stands, in words of 32 bits: MPIs differ."""
    status, rank = MPI.Status(), 0x5EED
    status.Set_source(rank)
    words = (ctypes.c_int * (MPI._sizeof(status) // 4)).from_address(MPI._addressof(status))
    return list(words).index(rank)


_SOURCE_AT = _place_of_source()

Words = NDArray[np.int64]


@njit(cache=True, nogil=True)
def send(words: Words, buffer: Bytes, dest: int, tag: int) -> int:
    """Start to send, from compiled code; 0, or FAILED, or UNDER_WAY, for `Direct.sent` to take up
    before the next call."""
    at = words.ctypes.data
    error = _isend(
        buffer.ctypes.data, buffer.shape[0], words[_BYTE], dest, tag, words[_COMM],
        at + _WORD * _REQUEST,
    )  # fmt: skip
    if error != 0:
        words[_ERROR] = error
        return FAILED
    words[_FLAG] = 0
    # As in `Sending.done`: a send to the dead counts as done.
    error = _test(at + _WORD * _REQUEST, at + _WORD * _FLAG, at + _WORD * _STATUS)
    return 0 if error != 0 or words[_FLAG] != 0 else UNDER_WAY


@njit(cache=True, nogil=True)
def receive(
    words: Words, into: Bytes, source: int, tag: int, patience_s: float, share: bool
) -> int:
    """Wait for a message so long, from compiled code. Its length, NOTHING, or FAILED, for
    `Direct.received` to take up before the next call; a message that is longer than `into` is left
    to be taken."""
    at = words.ctypes.data
    until_s, looks = 0.0, 0
    while True:
        words[_FLAG] = 0
        words[_MESSAGE] = 0
        error = _improbe(
            source, tag, words[_COMM], at + _WORD * _FLAG, at + _WORD * _MESSAGE,
            at + _WORD * _STATUS,
        )  # fmt: skip
        if error != 0:
            words[_ERROR] = error
            return FAILED
        if words[_FLAG] != 0:
            break
        if patience_s <= 0.0:
            return NOTHING
        if share:
            _sched_yield()
        if looks % _LOOKS == 0:
            now_s = _wtime()
            if looks == 0:
                until_s = now_s + patience_s
            elif now_s >= until_s:
                return NOTHING
        looks += 1
    words[_COUNT] = 0
    error = _get_count(at + _WORD * _STATUS, words[_BYTE], at + _WORD * _COUNT)
    count = words[_COUNT]
    if error == 0 and count <= into.shape[0]:
        # The status is MPI's to write to again, and the sender stands in it already.
        error = _mrecv(
            into.ctypes.data, count, words[_BYTE], at + _WORD * _MESSAGE, at + _WORD * _STATUS
        )
    if error != 0:
        words[_ERROR] = error
        return FAILED
    return int(count)


@njit(cache=True, nogil=True)
def source_of(words: Words) -> int:
    """Who has sent what was received last."""
    return int(words[_STATUS:].view(np.int32)[_SOURCE_AT])


class Direct:
    """The short way of one link's messages. Not for two threads at a time.

    Raises (every method) as `Link` does.

    Attributes:
        link: whose messages these are.
        words: what `send` and `receive` are to be given.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        words = self.words = np.zeros(_STATUS + _STATUS_WORDS, np.int64)
        words[_COMM], words[_BYTE] = link.comm.handle, MPI.BYTE.handle
        self._status = words[_STATUS:].view(np.int32)

    def send(self, buffer: Bytes, dest: int, tag: int) -> bool:
        """As `Link.isend`; whether the buffer is still under way."""
        return self.sent(send(self.words, buffer, dest, tag), buffer)

    def sent(self, result: int, buffer: Bytes) -> bool:
        """Take up what `send` has come to; the link keeps the buffer alive while it is under
        way."""
        if result == UNDER_WAY:
            request = MPI.Request.fromhandle(self.words.item(_REQUEST))
            self.link.keep(Sending(request, buffer))
        elif result:
            self._fail()
        return result == UNDER_WAY

    def receive(self, into: Bytes, tag: int, patience_s: float, share: bool) -> int:
        """Wait for a message from anyone, without a pause (with `share`, others may have the core
        between two looks). Its length, or NOTHING; where `into` is too short for it, it has to be
        taken by `rest`."""
        return self.received(receive(self.words, into, ANY, tag, patience_s, share))

    def received(self, count: int) -> int:
        """Take up what `receive` has come to."""
        if count == FAILED:
            self._fail()
        return count

    @property
    def source(self) -> int:
        """Who has sent what was received last."""
        return self._status.item(_SOURCE_AT)

    def rest(self, into: Bytes) -> Bytes:
        """The message that was too long, in memory of its size."""
        try:
            MPI.Message.fromhandle(self.words.item(_MESSAGE)).Recv([into, MPI.BYTE])
        except MPI.Exception as error:
            keep_unfilled(into)
            raise translated(error) from None
        return into

    def _fail(self) -> None:
        raise translated(MPI.Exception(self.words.item(_ERROR)))
