"""Transfers that are under way, and what an error of MPI's means.

Owns the translation of MPI's error classes, and the buffers of a transfer until MPI is done with
them. Must not know communicators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mpi4py import MPI

from diml.errors import CallFailed, DimlError, PeerFailed

# Errors that a caller can cause. Everything else is taken for a death: when a rank dies inside a
# collective, Open MPI 5.0.11 reports MPI_ERR_OTHER on some of the others.
_MISCALLED = frozenset(
    {
        MPI.ERR_ARG,
        MPI.ERR_BUFFER,
        MPI.ERR_COUNT,
        MPI.ERR_OP,
        MPI.ERR_RANK,
        MPI.ERR_ROOT,
        MPI.ERR_TAG,
        MPI.ERR_TRUNCATE,
        MPI.ERR_TYPE,
    }
)


def translated(error: MPI.Exception) -> DimlError:
    """CallFailed for what a caller can cause, PeerFailed for all else."""
    if error.Get_error_class() in _MISCALLED:
        return CallFailed(error.Get_error_string())
    return PeerFailed(error.Get_error_string())


class Sending:
    """A send under way; holds the buffer until MPI is done with it."""

    __slots__ = ("_buffer", "_request")

    def __init__(self, request: MPI.Request, buffer: object) -> None:
        self._request = request
        self._buffer = buffer

    def done(self) -> bool:
        """Whether the buffer may be used again. A send to the dead counts as done."""
        try:
            return bool(self._request.Test())
        except MPI.Exception:
            return True


class Receiving:
    """A receive under way; holds the buffer until MPI is done with it.

    It remembers its failure: MPI lets go of a request whose error it has told, and would say of the
    empty handle that all has come.
    """

    __slots__ = ("_buffer", "_failure", "_requests")

    def __init__(self, requests: list[MPI.Request], buffer: object) -> None:
        self._requests = requests
        self._buffer = buffer
        self._failure: DimlError | None = None

    def done(self) -> bool:
        """Whether the buffer is whole. After a failure it never is: MPI may still write to it."""
        try:
            return self.arrived()
        except DimlError:
            return False

    def arrived(self) -> bool:
        """Whether all has come. Raises PeerFailed or CallFailed, from then on at every call."""
        self._raise_failure()
        try:
            return bool(MPI.Request.Testall(self._requests))
        except MPI.Exception as error:
            self._failure = translated(error)
            raise self._failure from None

    def finish(self) -> None:
        """Wait until all has come. Raises as `arrived` does."""
        self._raise_failure()
        try:
            for request in self._requests:
                request.Wait()
        except MPI.Exception as error:
            self._failure = translated(error)
            raise self._failure from None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


@contextlib.contextmanager
def showing(*buffers: object) -> Iterator[None]:
    """A block that shows these to MPI. If it fails they are kept as long as the process lives: MPI
    may still write to them. Errors of MPI's come out translated."""
    try:
        yield
    except MPI.Exception as error:
        keep_unfilled(buffers)
        raise translated(error) from None
    except PeerFailed:
        keep_unfilled(buffers)
        raise


_UNFILLED: list[object] = []


def keep_unfilled(buffer: object) -> None:
    """Keep memory whose message has failed as long as the process lives: MPI may still write to
    it."""
    _UNFILLED.append(buffer)
