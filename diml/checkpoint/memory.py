"""The checkpoints of one rank in memory: the committed version and the one being prepared.

Owns which state is valid and when it is replaced. Must not know how states travel or what is in
them: a state is opaque here. Invariant: the committed version stays whole until `commit`, which
replaces all of it at once; a preparation that is not committed leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Checkpoint:
    """One version of the state.

    Attributes:
        version: number of checkpoints committed up to this one.
        model: the global state, or a function that makes it when it is asked for (lazy).
        locals: local states by their owner (the rank it had when the job began): this rank's and
            the replicas that it holds.
        uses_local: whether this version has local states at all (the same on every rank).
    """

    version: int = 0
    model: Any = None
    locals: dict[int, Any] = field(default_factory=dict)
    uses_local: bool = False


class Store:
    """Two versions: `committed`, and `pending` while a checkpoint is under way."""

    def __init__(self, released: Callable[[Checkpoint], None] | None = None) -> None:
        """`released` is told of each version that is no longer needed (to recycle its memory)."""
        self.committed = Checkpoint()
        self.pending: Checkpoint | None = None
        self._released = released or (lambda checkpoint: None)

    def prepare(self, model: Any, rank: int, local: Any | None) -> Checkpoint:
        """Begin the next version; an unfinished preparation is dropped."""
        self.drop()
        locals_ = {} if local is None else {rank: local}
        version = self.committed.version + 1
        self.pending = Checkpoint(version, model, locals_, local is not None)
        return self.pending

    def commit(self) -> None:
        """The pending version becomes the committed one."""
        assert self.pending is not None, "commit without a preparation"
        self._released(self.committed)
        self.committed, self.pending = self.pending, None

    def adopt(self, version: int, model: Any, uses_local: bool) -> None:
        """Take over a model that another rank has committed; local states held of it stay."""
        committed = self.committed
        kept = committed.locals if uses_local else {}
        self.committed = Checkpoint(version, model, kept, uses_local)

    def pass_over(self) -> None:
        """The others move to the next version, which has no local states; its model comes later."""
        self.committed = Checkpoint(self.committed.version + 1)

    def drop(self) -> None:
        """Forget an unfinished preparation."""
        if self.pending is not None:
            self._released(self.pending)
            self.pending = None

    def model(self) -> Any:
        """The committed model; a lazy one is made now and kept."""
        if callable(self.committed.model):
            self.committed.model = self.committed.model()
        return self.committed.model
