"""Where the collectives and durable checkpoints meet: resuming, writing, stopping in good order.

Owns the order of these steps among the workers. What is decided is the keeper's; how state is
committed is the protocol's. Without `--checkpoint-dir` and outside of `diml run` there is no
keeper, and nothing is done.

Invariant: a version is written only after it was committed on all workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from diml.allreduce.operation import Kind, Request, signature
from diml.checkpoint.codec import Bytes
from diml.checkpoint.fetch import Collectives, Restored
from diml.checkpoint.keeper import Keeper, State, StopRequest
from diml.errors import PeerFailed, Resumable

if TYPE_CHECKING:
    from diml.allreduce.driver import Driver
    from diml.allreduce.log import Site
    from diml.allreduce.recovery import Core
    from diml.world.world import World


_CLOCK, _MODEL = "diml.ps.clock", "model"


class Companion(Protocol):
    """The parameter server beside the collectives, whose clock a checkpoint records."""

    @property
    def clock(self) -> int | None:
        """The clock of this worker's program; None where it is not in use."""

    def go_to(self, clock: int) -> None:
        """Go on at a recorded clock. Raises Misuse where the rows are older than that."""

    def begin_anew(self) -> None:
        """The program of a replacement begins at its beginning."""

    def save(self, write: Sequence[bool]) -> bool:
        """Bring the rows of this clock to these places; whether they are there."""


class Durability:
    """One worker's part.

    Attributes:
        companion: the parameter server of the job.
    """

    def __init__(self, world: World, core: Core, driver: Driver) -> None:
        self._world, self._core, self._driver = world, core, driver
        self._keeper = Keeper.of(world.settings, os.environ)
        self.companion: Companion | None = None
        if self._keeper is not None:
            world.resumable = self._keeper.resumable

    @property
    def stop(self) -> StopRequest | None:
        """What remembers a signal to end in good order."""
        return self._keeper.stop if self._keeper is not None else None

    def identify(self, facts: Mapping[str, object]) -> None:
        """Add facts that tell this job's checkpoints from those of others."""
        if self._keeper is not None:
            self._keeper.identify(facts)

    def with_clock(self, model: Any) -> Any:
        """A model as it is kept: with the parameter server's clock, where that is in use."""
        clock = self.companion.clock if self.companion is not None else None
        return model if clock is None else {_CLOCK: clock, _MODEL: model}

    def without_clock(self, kept: Any) -> Any:
        """The model that was kept; the parameter server goes on at the clock kept with it, so
        that what is done again since then is not applied again."""
        if not (isinstance(kept, dict) and _CLOCK in kept):
            return kept
        assert self.companion is not None
        self.companion.go_to(kept[_CLOCK])
        return kept[_MODEL]

    def begin_anew(self) -> None:
        """The program was told that there is no version."""
        if self.companion is not None and self._world.incarnation:
            self.companion.begin_anew()

    def meet(self, collectives: Collectives) -> None:
        """See together what there is; before the load."""
        if self._keeper is not None:
            self._keeper.meet(collectives, self._core.rank)

    def fetch(self, collectives: Collectives, any_workers: bool) -> Restored | None:
        """The state to go on from, if there is one; after a load that found nothing."""
        if self._keeper is None:
            return None
        core = self._core
        return self._keeper.restore(collectives, core.rank, core.size, any_workers)

    def resume(self, restored: Restored, site: Site) -> None:
        """Commit a state that was fetched as the first version of this run."""
        core = self._core
        kind = Kind.CHECKPOINT if restored.local is None else Kind.LOCAL_CHECKPOINT
        request = Request(kind, signature(kind), site)
        core.store.committed.version = restored.version - 1
        try:
            self._driver.run(core.checkpoint(request, restored.model, restored.local))
        except PeerFailed:
            # Some may have committed it and others not, and no log says what it was.
            words = f"a rank was lost while version {restored.version} was being resumed"
            raise self._world.end(Resumable.exit_status, f"diml: {words}") from None
        self._world.event("resume", version=restored.version)

    def ask(self) -> None:
        """Say what this worker wants, with the comparison of the checkpoint that comes now."""
        if self._keeper is not None:
            self._core.rode = []
            self._core.riding = self._keeper.wishes(self._core.rank)

    def take(self, nbytes: int) -> Bytes:
        """Memory for this worker's local state: of the node where it is kept there anyway."""
        lent = self._keeper.take(nbytes) if self._keeper is not None else None
        return self._driver.buffers.take(nbytes) if lent is None else lent

    def keep(self) -> None:
        """Do what was decided at a checkpoint that is now committed."""
        keeper, core = self._keeper, self._core
        core.riding, rode = (), core.rode
        if keeper is None or not rode:
            return
        plan, held = keeper.decide(rode), core.store.committed
        if any(plan.write) and self._rows_are_safe(plan.write):
            state = State(held.version, core.store.model, core.locals_by_rank(), held.uses_local)
            keeper.write(plan, state, core.rank, self._world.hosts)
        if plan.stop and self._all_have(lambda: keeper.finished(held.version)):
            keeper.kept(held.version)
            words = f"stopped in good order; version {held.version} is kept, to go on from"
            raise self._world.end(Resumable.exit_status, f"diml: {words}")

    def _rows_are_safe(self, write: Sequence[bool]) -> bool:
        """Bring the parameter server's rows to the disk first: they may be newer than the model
        that a run goes on from, never older."""
        companion = self.companion
        return companion is None or companion.clock is None or companion.save(write)

    def _all_have(self, finished: Callable[[], bool]) -> bool:
        """Whether all have written; not if one died meanwhile: the next checkpoint asks again."""
        mine = finished()
        # Where another one's disk never has it, that one is late.
        self._world.calls.begin("the end at a checkpoint")
        try:
            return all(self._driver.link.allgather_objects(mine))
        except PeerFailed as error:
            self._driver.fail(error)
            return False
        finally:
            self._world.calls.end()

    def close(self) -> None:
        """Let what is being written come to its end."""
        if self._keeper is not None:
            self._keeper.close()
