"""allreduce, broadcast, allgather, barrier, checkpoint, load_checkpoint: what a job calls.

Owns the calls themselves: their arguments, their MPI calls and their results. What happens after
a failure is decided by `recovery` and carried out by `driver`. Free of failures an allreduce is
one MPI call into a pooled buffer that the log keeps; no agreement, no copy.

Invariants: every result is in the log before its caller sees it; a result's memory is read-only
for the caller; `prepare` runs once for a call, and not at all if the result is replayed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from diml.allreduce import exchange
from diml.allreduce.beside import stamp
from diml.allreduce.driver import Driver
from diml.allreduce.durability import Durability
from diml.allreduce.log import COMPARE_EVERY, Log, Pool, Result, Site
from diml.allreduce.moving import Moving
from diml.allreduce.operation import (
    Array,
    Kind,
    Request,
    signature,
)
from diml.allreduce.recovery import Core
from diml.allreduce.reduce import Allreduce
from diml.allreduce.wire import pickled, travels_as_array, value_of
from diml.checkpoint import codec
from diml.checkpoint.memory import Checkpoint, Store
from diml.errors import Misuse, PeerFailed

if TYPE_CHECKING:
    from diml.world.world import World

T = TypeVar("T")


class Engine:
    """The collectives of one process. Made on every process of the job before it waits."""

    def __init__(self, world: World) -> None:
        settings = world.settings
        self._world = world
        self._pool = Pool()
        every = 1 if settings.check else COMPARE_EVERY
        budget = settings.log_budget_bytes
        store = Store(self._release)
        self._core = Core(Log(budget), Log(budget), store, settings.replicas, every)
        self._driver = Driver(world, self._core)
        self.durability = Durability(world, self._core, self._driver)
        # Drills and --check take every call the long way.
        plans = not settings.drills and not settings.check
        parts = (self._core, self._driver, self._pool)
        self._reduce = Allreduce(*parts, world.calls, self._collective, plans)
        self.allreduce = self._reduce.allreduce
        self._core.stocked = world.workers is not None and world.epoch == 0
        self._core.beside.served = bool(world.membership.servers)
        self._core.drilled = frozenset((d.rank, d.incarnation) for d in settings.drills)
        self._sit_down()
        world.at_repair.append(self._restore)

    # State -----------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Number of committed checkpoints (0 until load_checkpoint has returned)."""
        return self._core.version if self._core.loaded else 0

    def begin_clock(self, clock: int, continues: bool) -> None:
        """The program goes on at this clock of the parameter server; see `Beside.start`."""
        self._core.beside.start(clock, continues)
        stamp(self._core)
        # The next allreduce of each kind goes the long way, on which `_announce` lies.
        self._reduce.sit_down(self._world.workers)

    def end_clock(self, clock: int) -> None:
        """It has come to this clock."""
        self._core.beside.clock = clock
        stamp(self._core)

    def hear_of_state(self) -> None:
        """A server or spare is told that workers have state that no server has."""
        self._core.beside.kept = True

    @property
    def inherited(self) -> dict[int, Any]:
        """Local states of lost ranks that this worker goes on with; see `Job.inherited`."""
        core = self._core
        return {owner: _decoded(core.store.committed.locals[owner]) for owner in core.inherits}

    def _sit_down(self) -> None:
        """Note this process's rank and link, if it is a worker."""
        world = self._world
        self._reduce.sit_down(world.workers)
        if world.workers is not None:
            members = world.membership
            origins = tuple(seat.origin for seat in members.workers)
            self._core.seat(world.rank, world.hosts, world.incarnation, origins, members.lost)

    def _restore(self) -> None:
        """After each repair: newcomers get the local states that belong on them."""
        self._sit_down()
        beside = self._core.beside
        if beside.served:
            known = (beside.kept, self._core.stocked)
            beside.learn(self._world.full.allgather_objects(known))
        if self._world.workers is not None:
            self._driver.run(self._core.refresh())

    def _release(self, checkpoint: Checkpoint) -> None:
        for owner in list(checkpoint.locals):
            self._driver.buffers.give_back([checkpoint.locals.pop(owner)])
        model, checkpoint.model = [checkpoint.model], None
        self._driver.buffers.give_back(model)

    # The other collectives -------------------------------------------------------------------

    def broadcast(self, value: Any = None, root: int = 0) -> Any:
        """Give the root's value to all workers.

        Args:
            value: on the root an array or any picklable object; ignored elsewhere.
            root: the rank that has it; the same on all workers.

        Returns:
            A read-only array, or an equal object (the root gets its own back).

        Raises:
            Misuse: root is no rank, or the object cannot be pickled.
        """
        site = _site()
        if not isinstance(root, int | np.integer) or not 0 <= root < self._core.size:
            raise Misuse(f"broadcast: root {root!r} is not a rank (0..{self._core.size - 1})")
        gives = root == self._core.rank
        mine = None
        if gives:
            mine = value if travels_as_array(value) else pickled(value)
        driver, pool = self._driver, self._pool
        code = signature(Kind.BROADCAST, root)
        request = Request(Kind.BROADCAST, code, site, False, details=("root", root))
        result = self._collective(
            request, lambda: exchange.broadcast(driver.link, pool, mine, root, driver.held)
        )
        return value if gives and result.form == "object" else value_of(result)

    def allgather(self, value: Any) -> Any:
        """Gather one value from each worker.

        Returns:
            For arrays, which must agree in dtype and in all extents but the first: one read-only
            array, concatenated along the first axis in rank order (0-d arrays count as length
            1). For anything else: a list of the values by rank.

        Raises:
            Mismatch: some gave arrays and others objects, or arrays that do not fit together.
        """
        site = _site()
        mine = np.atleast_1d(value) if travels_as_array(value) else pickled(value)
        request = Request(Kind.ALLGATHER, signature(Kind.ALLGATHER), site)
        driver, pool = self._driver, self._pool
        result = self._collective(
            request, lambda: exchange.allgather(driver.link, pool, mine, driver.held)
        )
        return value_of(result)

    def shift(self, value: Any, by: int = 1) -> Any:
        """Give a value to the worker `by` ranks further on the ring of workers, and get the one
        that comes from `by` ranks before: what travels is held by one worker at a time.

        Args:
            value: an array, copied, or a picklable object. `by` is the same on all workers.

        Returns:
            An array of the caller's own, writable, or an object. What was sent stays in the
            log until the next checkpoint; a replacement replays it from there.

        Raises:
            Misuse: the job has servers: whoever waits for one cannot give its value once more.
        """
        self._refuse_shift()
        mine = np.array(value, order="C") if travels_as_array(value) else pickled(value)
        code = signature(Kind.SHIFT, by)
        request = Request(Kind.SHIFT, code, _site(), False, by, mine)
        driver = self._driver
        result = self._collective(
            request, lambda: exchange.shift(driver.link, mine, by, driver.held)
        )
        return value_of(result)

    def start_shift(self, array: Array, by: int = 1) -> Moving:
        """Begin a shift and return at once: the array travels while the caller computes.

        Args:
            array: copied; its dtype and shape are the same on all workers. `by` as for `shift`.

        Returns:
            What gives, by `wait()`, the array that comes, the caller's own. Several may be under
            way; all workers begin them, and wait for them, in one order. In the log, in drills
            and after a death a shift stands where it is waited for.

        Raises:
            Misuse: not an array, or one of objects; or as for `shift`.
        """
        self._refuse_shift()
        if not travels_as_array(array):
            raise Misuse(f"start_shift takes arrays of numbers or text, not {type(array).__name__}")
        sent, early = np.array(array, order="C"), self._core.together
        return Moving(self._driver, self._collective, sent, by, _site(), early)

    def _refuse_shift(self) -> None:
        if self._core.beside.served:
            raise Misuse("shift: not in a job with parameter servers")

    def barrier(self) -> None:
        """Wait until all workers have come here."""
        request = Request(Kind.BARRIER, signature(Kind.BARRIER), _site())

        def execute() -> Result:
            self._driver.link.barrier()
            return Result("none", None, 0)

        self._collective(request, execute)

    def meet(self) -> None:
        """A barrier that all workers pass or none, whoever dies meanwhile."""
        request = Request(Kind.BARRIER, signature(Kind.BARRIER, 1), _site())
        none = Result("none", None, 0)
        self._long_call(
            request.site, lambda: self._driver.perform(lambda: self._core.meet(request, none))
        )

    def identify(self, facts: Mapping[str, object]) -> None:
        """Tell what job this is: durable checkpoints, and the comparison of the ranks."""
        self._core.identify(facts)
        self.durability.identify(facts)

    def repair(self, error: PeerFailed) -> None:
        """A call outside of the collectives has failed: repair the world. Raises Shrunk if it
        has become smaller."""
        self._driver.fail(error)

    # Checkpoints -----------------------------------------------------------------------------

    def load_checkpoint(self, any_workers: bool = False) -> tuple[int, Any, Any]:
        """Close the part before the first version, and fetch the state if there is one.

        Args:
            any_workers: go on from a durable checkpoint of another number of workers too: then
                `local` is, on every worker, the list of all their states.

        Returns:
            (version, model, local): (0, None, None) on a fresh start. Arrays are the caller's.

        Raises:
            Misuse: called twice.
            GaveUp: the state has no holder left.
        """
        core = self._core
        if core.loaded:
            raise Misuse(
                "load_checkpoint was called twice: what a program keeps beside a STRADS program "
                "goes into a part of its own, job.parts.part(name)"
            )
        request = Request(Kind.LOAD, signature(Kind.LOAD), _site())
        self.durability.meet(self)
        begun = time.perf_counter()
        self._long_call(request.site, lambda: self._driver.perform(lambda: core.load(request)))
        held = core.store.committed
        if self._world.incarnation:
            seconds = time.perf_counter() - begun
            self._world.event("load", version=held.version, seconds=seconds)
        if held.version == 0 and (restored := self.durability.fetch(self, any_workers)):
            site = request.site
            self._long_call(site, self._announce)
            self._long_call(site, lambda: self.durability.resume(restored, site))
            held = core.store.committed
        if held.version == 0:
            self.durability.begin_anew()
            return 0, None, None
        local = held.locals.get(core.origin)
        model = self.durability.without_clock(_decoded(core.store.model()))
        return held.version, model, _decoded(local)

    def checkpoint(self, model: Any, local: Any = None, lazy: bool = False) -> None:
        """Move all workers to the next version, or none.

        Args:
            model: the global state, the same on all workers (see `diml.checkpoint.codec` for what
                it may hold).
            local: this worker's own state, or None; given on all workers or on none. It is
                copied to the next `replicas` workers of the ring.
            lazy: keep a reference to the model and copy it only if a worker has to be brought
                back. The model must then stay unchanged until the last collective before the
                next checkpoint has returned; if that one has local states, or the job is left,
                until then. Not together with `local`. Without effect under `--on-failure shrink`
                and in a job with servers.

        Raises:
            Misuse: load_checkpoint was not called, or the state holds what cannot be kept.
        """
        site, core, take = _site(), self._core, self._driver.buffers.take
        if not core.loaded:
            raise Misuse("checkpoint: call load_checkpoint first")
        if lazy and local is not None:
            raise Misuse("checkpoint: a lazy checkpoint has no local state")
        model = self.durability.with_clock(model)
        kind = Kind.CHECKPOINT if local is None else Kind.LOCAL_CHECKPOINT
        request = Request(kind, signature(kind), site)
        if lazy and self._world.settings.on_failure != "shrink" and not core.beside.served:
            codec.check(model, "model")
            kept: Any = lambda: codec.encode(model, "model")  # noqa: E731
        else:
            kept = codec.encode(model, "model", take)
        mine = None if local is None else codec.encode(local, "local", self.durability.take)
        version, sequence = core.coordinates
        self._world.drill(version, sequence)
        self.durability.ask()
        self._long_call(site, self._announce)
        self._long_call(
            site, lambda: self._driver.perform(lambda: core.checkpoint(request, kept, mine))
        )
        self._world.committed()
        self._driver.tell_traffic()
        self._pool.trim(self._world.settings.log_budget_bytes)
        self.durability.keep()

    def _announce(self) -> None:
        """Before this worker commits a version, or takes a result in the course of the servers'
        clocks: those who would outlive all workers hear of it."""
        beside = self._core.beside
        while beside.served and not beside.kept:
            try:
                self._world.say_kept()
                beside.kept = True
            except PeerFailed as error:
                self._driver.fail(error)

    def finish(self) -> None:
        """The last operation of a worker: it helps the others until all have come to it."""
        core, driver = self._core, self._driver
        driver.tell_traffic(last=True)
        request = Request(Kind.EXIT, signature(Kind.EXIT), _site())
        self._long_call(request.site, lambda: driver.perform(lambda: core.leave(request)))
        self.durability.close()

    # The long way ----------------------------------------------------------------------------

    def _collective(self, request: Request, execute: Callable[[], Result]) -> Result:
        core = self._core
        version, sequence = core.coordinates
        self._world.drill(version, sequence)
        if core.beside.clock is not None:
            self._long_call(request.site, self._announce)
        result = self._long_call(
            request.site,
            lambda: self._driver.perform(lambda: core.collective(request), execute),
        )
        # It was not struck where the result has come out of a log: then no call was made.
        self._world.drill(version, sequence, "inside")
        self._world.drill(version, sequence, "after")
        return result

    def _long_call(self, site: Site, call: Callable[[], T]) -> T:
        """Make a call that may wait for peers, visible to the watchdogs."""
        self._world.calls.begin(site)
        try:
            return call()
        finally:
            self._world.calls.end()


def _site() -> Site:
    """The call site of the public method that calls this."""
    frame = sys._getframe(2)
    return Site((frame.f_code, frame.f_lasti))


def _decoded(state: Any) -> Any:
    return None if state is None else codec.decode(state, copy=True)
