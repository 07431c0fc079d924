"""Named parts of one job's state, so that several ways to train live in one job.

A job has one sequence of checkpoints and loads once. Where a program does several things one after
the other (scale the data, train embeddings, run a STRADS program, run another), each is a part:

    scale = job.parts.once("scale", lambda: job.allreduce(top, "max"))    # computed once
    mine = job.parts.part("mine")                                         # a loop of your own
    for step in range(0 if mine.saved is None else mine.saved["step"], steps):
        ...
        mine.checkpoint({"step": step + 1, "w": w})
    mine.finish({"w": w})
    diml.strads.run(job, program)             # a part too, named by its order among the runs

A checkpoint of one part commits all parts, for it clears the log that a replacement would replay
the earlier ones from; the end of a part is such a checkpoint. A replacement runs the program from
the top: a finished part hands out what it ended with, the part that was under way its last
checkpoint, and nothing is done twice. So where a part trains on the parameter server, whose calls
do not serve a replay, there is nothing before it to replay.

Owns the names and what is kept under them. Must not know what the state means. Invariants: all
workers name the same parts in the same order; between the first part and the last checkpoint
every collective belongs to a part, else a replacement would make it alone. What is kept is a copy,
and what is given out is one: a program goes on to change its arrays, and the next part's
checkpoint commits this one's state as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from diml.checkpoint import codec
from diml.errors import Misuse

_KEY = "diml.parts"


class Keeping(Protocol):
    """What is lent: a job's checkpoints."""

    def checkpoint(self, model: Any, local: Any = None, lazy: bool = False) -> None: ...
    def load_checkpoint(self) -> tuple[int, Any, Any]: ...


class Parts:
    """The parts of one job; `job.parts`."""

    def __init__(self, job: Keeping, outlived: bool = True) -> None:
        """`outlived`: somebody may read what is kept after this program, so it is copied."""
        self._job, self._outlived = job, outlived
        self._states: dict[str, dict[str, Any]] | None = None
        self._named: set[str] = set()

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute()` gave the first time; it may call collectives.

        The value is the same on all workers, and such as checkpoints hold. An empty name is
        made up, as `part` does.
        """
        part = self.part(name)
        if not part.finished:
            part.finish(compute())
        return part.outcome

    def part(self, name: str = "") -> Part:
        """The part of that name; without one, named by the number of parts before it.

        Raises:
            Misuse: the name was given out before, or the program keeps checkpoints of its own.
        """
        if self._states is None:
            self._states = self._load()
        name = name or f"part {len(self._named)}"
        if name in self._named:
            raise Misuse(f"the job has a part {name!r} already")
        self._named.add(name)
        return Part(self, self._states.setdefault(name, {}))

    def commit(self) -> None:
        """Checkpoint all parts."""
        self._job.checkpoint({_KEY: self._states})

    def copy(self, state: Any) -> Any:
        """A state as a replacement is given it. Raises Misuse for what checkpoints cannot hold."""
        return codec.decode(codec.encode(state), copy=True) if self._outlived else state

    def _load(self) -> dict[str, dict[str, Any]]:
        _, model, _ = self._job.load_checkpoint()
        if model is None:
            return {}
        if not (isinstance(model, dict) and _KEY in model):
            raise Misuse("the checkpoint was made by job.checkpoint, not by parts of the job")
        states: dict[str, dict[str, Any]] = model[_KEY]
        return states


class Part:
    """One part's state.

    Attributes:
        saved: what its last checkpoint held; None before the first.
        finished: whether it has come to its end. outcome: what it ended with.
    """

    def __init__(self, parts: Parts, state: dict[str, Any]) -> None:
        self._parts = parts
        self._state = state

    @property
    def saved(self) -> Any:
        return self._parts.copy(self._state.get("saved"))

    @property
    def finished(self) -> bool:
        return "outcome" in self._state

    @property
    def outcome(self) -> Any:
        return self._parts.copy(self._state["outcome"])

    def checkpoint(self, state: Any) -> None:
        """Commit this state, the same on all workers, with all other parts."""
        self._state["saved"] = self._parts.copy(state)
        self._parts.commit()

    def finish(self, outcome: Any) -> None:
        """Commit what came out, the same on all workers, with all other parts."""
        kept = self._parts.copy(outcome)
        self._state.pop("saved", None)
        self._state["outcome"] = kept
        self._parts.commit()
