"""The reading of a durable checkpoint by all workers together, once it is chosen.

Owns who reads which piece and who is sent it. Must not know MPI, nor how a version is chosen: it is
lent the collectives that it needs. Invariant: all workers call the same collectives, whatever any
of them finds damaged; what that was stands in `Fetched.problem`, for the caller to tell all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from diml.checkpoint import codec
from diml.checkpoint.codec import Bytes
from diml.checkpoint.durable import Candidate, Vault
from diml.checkpoint.manifest import local_name
from diml.errors import CorruptState


class Collectives(Protocol):
    """The collectives of the workers, recorded and replayed after a failure."""

    def allgather(self, value: Any) -> Any: ...

    def broadcast(self, value: Any = None, root: int = 0) -> Any: ...


@dataclass(frozen=True)
class Restored:
    """The state to go on from: encoded, this rank's own local state or None."""

    version: int
    model: Bytes
    local: Bytes | None


@dataclass
class Fetched:
    """What a rank has got of a candidate, and what was wrong with what it read."""

    model: Bytes | None = None
    local: Bytes | None = None
    problem: str = ""


class Fetch:
    """One rank's part in it."""

    def __init__(
        self, collectives: Collectives, vaults: Sequence[Vault], rank: int, size: int
    ) -> None:
        self._collectives, self._vaults = collectives, vaults
        self._rank, self._size = rank, size
        self._fetched = Fetched()

    def fetch(self, candidate: Candidate) -> Fetched:
        """Read what this rank needs and hand out what others do. Once for each `Fetch`."""
        fetched = self._fetched
        if candidate.uses_local and candidate.size != self._size:
            return self._fetch_all(candidate)
        fetched.model = self._piece(candidate, "model")
        for owner in range(candidate.size if candidate.uses_local else 0):
            name = local_name(owner)
            if candidate.holders[name].process == owner:
                # Whoever needs it reads it itself.
                if owner == self._rank:
                    fetched.local = self._read(candidate, name)
                continue
            data = self._piece(candidate, name)
            if owner == self._rank:
                fetched.local = data
        return fetched

    def _fetch_all(self, candidate: Candidate) -> Fetched:
        """The model and the local states of all, on every rank."""
        fetched = self._fetched
        fetched.model = self._piece(candidate, "model")
        names = map(local_name, range(candidate.size))
        pieces = [self._piece(candidate, name) for name in names]
        states = [codec.decode(piece) for piece in pieces if piece is not None]
        fetched.local = codec.encode(states) if len(states) == candidate.size else None
        return fetched

    def _piece(self, candidate: Candidate, name: str) -> Bytes | None:
        holder = candidate.holders[name].process
        data = self._read(candidate, name) if holder == self._rank else None
        given: Bytes | None = self._collectives.broadcast(data, holder)
        return given

    def _read(self, candidate: Candidate, name: str) -> Bytes | None:
        try:
            holder = candidate.holders[name]
            return self._vaults[holder.place].read(holder.manifest, name)
        except CorruptState as error:
            self._fetched.problem = str(error)
            return None
