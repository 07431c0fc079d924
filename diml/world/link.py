"""A communicator whose calls say `PeerFailed` when somebody has died.

Owns the translation of MPI's error classes and the shape of every call that DiML makes of MPI.
Must not know roles, repair or what the bytes mean. A Link is dead for good once a call on it has
raised PeerFailed: the world makes a new one.

Invariants: no call outlives a revoke, but for `agree` (an agreement cannot be interrupted); a
buffer that is being sent stays alive until MPI has let go of it.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from diml.errors import DimlError, PeerFailed
from diml.world.transfer import Receiving, Sending, keep_unfilled, showing, translated

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

ANY = MPI.ANY_SOURCE
_BYTE = MPI.BYTE
# The world's own tags; users of a link keep below 1 << 14.
LEAVE_TAG = 1 << 14

_OPS = {"sum": MPI.SUM, "prod": MPI.PROD, "max": MPI.MAX, "min": MPI.MIN, "bitor": MPI.BOR}
# Open MPI 5.0 counts elements in an int: longer arrays go in pieces of this many elements.
_PIECE = 1 << 30

# How a wait polls: yield the core while an answer may be due, then sleep longer and longer.
_YIELD_S = 300e-6
_NAP_S = 50e-6
_IDLE_AFTER_S = 10e-3
_IDLE_NAP_S = 1e-3


class Message(NamedTuple):
    """A received message: its bytes (uint8, owned by the caller), sender's link rank, tag."""

    data: Bytes
    source: int
    tag: int


class Link:
    """One communicator, its errors translated. Ranks are those of the communicator.

    Raises (every method but `agree` and `revoke`):
        PeerFailed: a member has died, or the communicator was revoked.
        CallFailed: any other MPI error.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        comm.Set_errhandler(MPI.ERRORS_RETURN)
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._status = MPI.Status()
        self._sendings: deque[Sending] = deque()
        self._receivings: deque[Receiving] = deque()

    # Collectives -----------------------------------------------------------------------------

    def allreduce(self, send: Array, recv: Array, op: str) -> None:
        """Elementwise reduction of C-contiguous arrays of one shape and dtype into `recv`."""
        try:
            if send.size <= _PIECE:
                self.comm.Allreduce(send, recv, _OPS[op])
            else:
                for a, b in _pieces(send, recv):
                    self.comm.Allreduce(a, b, _OPS[op])
        except MPI.Exception as error:
            raise translated(error) from None

    def reducer(
        self, op: str, dtype: np.dtype[Any], count: int
    ) -> tuple[Callable[..., None], object, object]:
        """MPI's own allreduce for arrays of one dtype and size, its type and its operation.

        To be called as `call([array, count, type], shown(result), operation)`: to be told count
        and type spares MPI's Python layer a look at each array, half the cost of a short call.
        What it raises is for `failure`. At most 2^30 elements.
        """
        assert count <= _PIECE
        return self.comm.Allreduce, MPI.Datatype.fromcode(dtype.char), _OPS[op]

    @staticmethod
    def shown(array: Array) -> list[Any]:
        """An array as MPI is to be shown it: memory, number of elements, type."""
        return [array, array.size, MPI.Datatype.fromcode(array.dtype.char)]

    @staticmethod
    def failure(error: Exception) -> DimlError | None:
        """What an error of MPI's means, or None if it is none of MPI's."""
        return translated(error) if isinstance(error, MPI.Exception) else None

    def allreduce_custom(self, send: Array, recv: Array, fn: Callable[[Array, Array], Any]) -> None:
        """Reduction with a function of two arrays, folded in rank order at rank 0.

        The order is fixed, so that all ranks hold the same bits although `fn` need be neither
        commutative nor, in floating point, associative.
        """
        total, part = (send.copy(), np.empty_like(send)) if self.rank == 0 else (send, send)
        with showing(send, recv, part):
            if self.rank == 0:
                for source in range(1, self.size):
                    self._recv_array(part, source)
                    total = np.asarray(fn(total, part), dtype=send.dtype).reshape(send.shape)
                recv[...] = total
            else:
                for (piece,) in _pieces(send):
                    self.comm.Send(piece, 0, LEAVE_TAG + 1)
            self._broadcast(recv, 0)

    def _recv_array(self, array: Array, source: int) -> None:
        for (piece,) in _pieces(array):
            self.comm.Recv(piece, source, LEAVE_TAG + 1)

    def broadcast(self, buffer: Array, root: int) -> None:
        """Copy the root's C-contiguous array into everybody's of the same shape and dtype."""
        try:
            self._broadcast(buffer, root)
        except MPI.Exception as error:
            raise translated(error) from None

    def _broadcast(self, buffer: Array, root: int) -> None:
        if buffer.size <= _PIECE:
            self.comm.Bcast(buffer, root)
        else:
            for (piece,) in _pieces(buffer):
                self.comm.Bcast(piece, root)

    def allgatherv(self, send: Array, recv: Array, counts: Sequence[int]) -> None:
        """Concatenate everybody's flat array in rank order; `counts` are elements by rank."""
        with showing(send, recv):
            if sum(counts) <= 2**31 - 1:
                self.comm.Allgatherv(send, [recv, counts])
                self._check_gathered()
            else:
                start = 0
                for root, count in enumerate(counts):
                    part = recv[start : start + count]
                    if root == self.rank:
                        part[...] = send
                    self._broadcast(part, root)
                    start += count

    def allgather_objects(self, value: Any) -> list[Any]:
        """Everybody's small object by rank (pickled; for repair and set-up, not for data)."""
        mine = np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)
        sizes = np.empty(self.size, np.int64)
        self.allgatherv(np.array([mine.size], np.int64), sizes, [1] * self.size)
        counts = sizes.tolist()
        said = np.empty(sum(counts), np.uint8)
        self.allgatherv(mine, said, counts)
        ends = np.cumsum(sizes).tolist()
        return [pickle.loads(said[end - n : end].data) for end, n in zip(ends, counts, strict=True)]

    def _check_gathered(self) -> None:
        """Raise PeerFailed if anyone has died: MPI_Allgatherv may hide it.

        Open MPI's algorithm for short messages (coll_base_allgatherv.c, "default", 5.0) drops the
        error of its inner broadcast, and returns success with nothing received. Whatever failed
        there is known to this process by now.
        """
        try:
            revoked, failed = self.comm.Is_revoked(), self.comm.Get_failed()
        except NotImplementedError:
            # Without fault tolerance an error ends the job anyway.
            return
        dead = failed.size
        if failed != MPI.GROUP_EMPTY:
            failed.Free()
        if revoked or dead:
            raise PeerFailed("a process failed in an allgather")

    def broadcast_object(self, value: Any, root: int) -> Any:
        """The root's small object (pickled; for repair and set-up, not for data)."""
        text = pickle.dumps(value, pickle.HIGHEST_PROTOCOL) if self.rank == root else b""
        size = np.array([len(text)])
        with showing(size):
            self.comm.Bcast(size, root)
        said = np.frombuffer(text, np.uint8) if text else np.empty(size[0], np.uint8)
        with showing(said):
            self.comm.Bcast(said, root)
        return pickle.loads(said.data)

    def sendrecv(self, send: Array, dest: int, recv: Array, source: int, tag: int) -> None:
        """Send one array and receive another at the same time, without deadlock on a ring.

        They may differ in size; each must have the size that its other end has.
        """
        try:
            for a, b in zip_longest(_pieces(send), _pieces(recv)):
                to, out = (dest, a[0]) if a is not None else (MPI.PROC_NULL, None)
                of, into = (source, b[0]) if b is not None else (MPI.PROC_NULL, None)
                self.comm.Sendrecv(out, to, tag, into, of, tag)
        except MPI.Exception as error:
            raise translated(error) from None

    def barrier(self) -> None:
        """Wait for all members."""
        try:
            self.comm.Barrier()
        except MPI.Exception as error:
            raise translated(error) from None

    # Point to point --------------------------------------------------------------------------

    def isend(self, buffer: Any, dest: int, tag: int = 0) -> Sending:
        """Start to send bytes; the link keeps the buffer alive until they are gone."""
        if self._sendings:
            self.still_sending()
        try:
            sending = Sending(self.comm.Isend([buffer, _BYTE], dest, tag), buffer)
        except MPI.Exception as error:
            raise translated(error) from None
        if not sending.done():
            self._sendings.append(sending)
        return sending

    def keep(self, sending: Sending) -> None:
        """Keep alive what somebody else has started to send on this link (`diml.world.direct`)."""
        self.still_sending()
        self._sendings.append(sending)

    def start_exchange(
        self, send: Array, dest: int, recv: Array, source: int, tag: int
    ) -> Receiving:
        """`sendrecv` of bytes that returns at once; to be finished before `recv` is read. The link
        keeps both buffers alive until MPI is done with them."""
        while self._receivings and self._receivings[0].done():
            self._receivings.popleft()
        receiving = self._start_receive([piece for (piece,) in _pieces(recv)], source, tag)
        for (piece,) in _pieces(send):
            self.isend(piece, dest, tag)
        return receiving

    def _start_receive(self, pieces: Sequence[Any], source: int, tag: int) -> Receiving:
        """Post a receive for each piece; all are kept alive even if MPI refuses one of them."""
        requests: list[MPI.Request] = []
        receiving = Receiving(requests, pieces)
        self._receivings.append(receiving)
        try:
            requests.extend(self.comm.Irecv(piece, source, tag) for piece in pieces)
        except MPI.Exception as error:
            raise translated(error) from None
        return receiving

    def tell(self, others: Sequence[int], word: bytes) -> None:
        """Send a word under the world's own tag; returns once each of the others has received it
        or has died."""
        try:
            requests = [self.comm.Issend([word, _BYTE], other, LEAVE_TAG) for other in others]
        except MPI.Exception as error:
            raise translated(error) from None
        sendings = [Sending(request, word) for request in requests]
        while not all(sending.done() for sending in sendings):
            os.sched_yield()
        if self.is_revoked():
            raise PeerFailed("the link was revoked before all had received the word")

    def still_sending(self) -> bool:
        """Whether anything has yet to leave. Lets go of the buffers of what has left: memory that
        is used again soon is still in the core's cache."""
        while self._sendings and self._sendings[0].done():
            self._sendings.popleft()
        return bool(self._sendings)

    def poll(
        self,
        source: int = ANY,
        tag: int = MPI.ANY_TAG,
        room: Callable[[int], Bytes] | None = None,
    ) -> Message | None:
        """The next waiting message, or None; `room` gives the memory for so many bytes."""
        status = self._status
        try:
            handle = self.comm.Improbe(source, tag, status)
            if handle is None:
                return None
            count = status.Get_count(_BYTE)
            data = np.empty(count, np.uint8) if room is None else room(count)
        except MPI.Exception as error:
            raise translated(error) from None
        try:
            handle.Recv([data, _BYTE])
        except MPI.Exception as error:
            keep_unfilled(data)
            raise translated(error) from None
        return Message(data, status.Get_source(), status.Get_tag())

    def receive_pieces(self, pieces: Sequence[Bytes], source: int, tag: int, share: bool) -> None:
        """Take one message into each of these arrays, of exactly its size, in their order. Looks
        without a pause, and makes room for others in between if `share`."""
        receiving = self._start_receive([[piece, _BYTE] for piece in pieces], source, tag)
        while not receiving.arrived():
            if share:
                os.sched_yield()
        self._receivings.remove(receiving)

    def receive(
        self, source: int = ANY, tag: int = MPI.ANY_TAG, timeout_s: float | None = None
    ) -> Message | None:
        """Wait for a message; None once `timeout_s` has passed.

        The wait yields the core at once and sleeps when nothing comes, so that a process that
        waits does not slow down the ones that compute on the same cores.
        """
        message = self.poll(source, tag)
        if message is not None:
            return message
        begun = time.monotonic()
        while True:
            waited = time.monotonic() - begun
            if timeout_s is not None and waited >= timeout_s:
                return None
            if waited < _YIELD_S:
                os.sched_yield()
            else:
                time.sleep(_NAP_S if waited < _IDLE_AFTER_S else _IDLE_NAP_S)
            message = self.poll(source, tag)
            if message is not None:
                return message

    # Failure ---------------------------------------------------------------------------------

    def is_revoked(self) -> bool:
        """Whether a member has revoked the communicator."""
        return bool(self.comm.Is_revoked())

    def ack_deaths(self) -> frozenset[int]:
        """Accept the deaths known so far: receiving from anyone works again among the living.

        Returns the ranks of all who have died on this link.
        """
        self.comm.Ack_failed()
        failed, everyone = self.comm.Get_failed(), self.comm.Get_group()
        dead = MPI.Group.Translate_ranks(failed, list(range(failed.size)), everyone)
        everyone.Free()
        if failed != MPI.GROUP_EMPTY:
            failed.Free()
        return frozenset(dead)

    def revoke(self) -> None:
        """Make every member's calls on this link end with PeerFailed."""
        try:
            self.comm.Revoke()
        except MPI.Exception as error:
            raise translated(error) from None

    def agree(self, ok: bool) -> bool:
        """The AND of the living members' values; False as well if anyone has died.

        All the living get the same answer (MPI_Comm_agree). Works on a revoked link. It waits for
        every living member and cannot be interrupted.
        """
        try:
            return bool(self.comm.Agree(1 if ok else 0))
        except MPI.Exception:
            return False

    def close(self) -> None:
        """Let go of the link; what is still being sent stays alive with the process.

        The communicator is not freed: MPI would give its context id to the next one, and a
        message that is still on its way from before the failure could be taken for a new one.
        """
        under_way: list[Sending | Receiving] = [*self._sendings, *self._receivings]
        _GRAVEYARD.extend(transfer for transfer in under_way if not transfer.done())
        self._sendings.clear()
        self._receivings.clear()


_GRAVEYARD: list[Sending | Receiving] = []


def _pieces(*arrays: Array) -> list[tuple[Array, ...]]:
    """Equal flat pieces of arrays of one size, each short enough for one MPI call."""
    flat = [a.reshape(-1) for a in arrays]
    size = flat[0].size
    starts = range(0, max(size, 1), _PIECE)
    return [tuple(a[s : s + _PIECE] for a in flat) for s in starts]
