"""The job as its program sees it: one object for all three ways, from `init` to the end.

Owns roles at start-up (a server and a spare stay inside `init`), the way out, and how an error of
one rank becomes one message and one exit status of all. Must not know how anything is recovered:
that is the world's, the engine's and the parameter server's.

Invariant: no rank leaves the `with` block before every worker has finished, unless all leave.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from diml.checkpoint.parts import Parts
from diml.config import settings_from
from diml.ending import INTERRUPTED, verdict, watch_exit
from diml.errors import DimlError, JobEnded, Misuse, PeerFailed, Shrunk

if TYPE_CHECKING:
    from mpi4py import MPI

    from diml.allreduce.engine import Engine
    from diml.ps.client import ParameterServer
    from diml.ps.node import Node
    from diml.ps.unserved import WithoutServers
    from diml.world.world import World

T = TypeVar("T")
_COLLECTIVES = (
    *("allreduce", "broadcast", "allgather", "shift", "start_shift", "barrier"),
    *("checkpoint", "load_checkpoint", "parameter_server"),
)
_current: Job | None = None


def init(
    *, comm: MPI.Intracomm | None = None, flags: Mapping[str, Any] | None = None, **arguments: Any
) -> Job:
    """Take this process's place in the job. Collective over all processes of mpirun.

    A worker gets its `Job`. A server serves and a spare waits inside this call; a spare that takes
    a dead worker's seat returns from it as that worker, and the others leave the program from
    here with status 0 when the workers are done.

    Args:
        comm: run on this communicator instead of COMM_WORLD. It stays the caller's.
        flags: values by setting name from a command line (`vars` of a parsed one will do).
        arguments: any field of `diml.config.Settings` (spares=1, servers=1, seed=7, ...). A flag
            wins over the environment (DIML_SPARES and so on), that over an argument. In a single
            process the arguments `servers` and `spares` do not count: it is its own server.

    Raises:
        SystemExit: 2 for impossible settings; 0 on servers and spares when the job is done; the
            job's status when a rank's error ends it; 1 if a process is lost before the job has
            begun (`diml run` starts it again). One line says why.
        Misuse: `init` was called twice in this process.
    """
    if _current is not None:
        raise Misuse("diml.init was called twice in one process")
    from diml.world import marker, mpi_params
    from diml.world.launch import TRIAL, say_once, singleton
    from diml.world.orphan import Guard, StartGuard, was_spawned

    alone = singleton(os.environ)
    # MPI has not started yet: from here on others can end a process that hangs in it.
    guard = Guard() if was_spawned() and TRIAL not in os.environ else None
    servers_default = arguments.pop("servers", None) or 0
    if alone and comm is None:
        arguments.pop("spares", None)
    try:
        settings = settings_from(os.environ, flags or {}, arguments)
        watch: Guard | StartGuard | nullcontext[None] = guard or nullcontext()
        if guard is None and TRIAL not in os.environ:
            watch = StartGuard(settings.deadline_s, os.environ)
        with mpi_params.alone(os.environ) if alone else mpi_params.eager(os.environ), watch:
            from diml.world.start import start, start_spawned
        if guard is not None:
            # Everything is imported before the wait, so that it costs nothing in the repair.
            import diml.allreduce.engine

            if settings.servers if settings.servers is not None else servers_default:
                import diml.ps.node  # noqa: F401

            world = start_spawned(settings)
            # It has a watchdog now, and its leader's death is the world's business.
            guard.dismiss()
            return _seated(world, joins=True)
        world = start(settings, servers_default, comm)
    except Misuse as error:
        say_once(f"diml: {error}", os.environ)
        raise SystemExit(error.exit_status) from None
    except PeerFailed as error:
        say_once(f"diml: {error}", os.environ)
        raise SystemExit(75 if os.environ.get(marker.FOLDER) else 1) from None
    return _seated(world)


def _seated(world: World, joins: bool = False) -> Job:
    """The Job of this process once it is a worker; does not return where it never becomes one."""
    global _current
    from diml.allreduce.engine import Engine
    from diml.ps.unserved import WithoutServers
    from diml.world.launch import say_once
    from diml.world.membership import Role

    engine = Engine(world)
    node: Node | WithoutServers = WithoutServers(world, engine)
    if world.membership.servers:
        from diml.ps.node import Node

        node = Node(world, engine, engine.durability.stop)
    engine.durability.companion = node
    try:
        if joins:
            world.join()
        else:
            node.begin()
        while world.role is not Role.WORKER:
            if node.serve() == "leave":
                raise SystemExit(0)
    except KeyboardInterrupt:
        raise world.end(INTERRUPTED, "") from None
    except Misuse as error:
        say_once(f"diml: {error}", os.environ)
        raise SystemExit(error.exit_status) from None
    _current = Job(world, engine, node)
    watch_exit(current)
    return _current


def _refuse(*_: object, **__: object) -> NoReturn:
    raise Misuse("the job is over: its `with` block has been left")


def current() -> Job | None:
    """The job of this process, once `init` has returned."""
    return _current


def put_aside(job: Job | None) -> Job | None:
    """Make another job, or none, this process's own, for an outer job that lends its ranks to
    inner ones, each of which calls `init`; returns the one before."""
    global _current
    before, _current = _current, job
    return before


class Job:
    """A worker's view of the job. Made by `init`; used as a context manager."""

    def __init__(self, world: World, engine: Engine, node: Node | WithoutServers) -> None:
        self._world = world
        self._engine = engine
        self._node = node
        self.allreduce = engine.allreduce
        self.broadcast = engine.broadcast
        self.allgather = engine.allgather
        self.shift, self.start_shift = engine.shift, engine.start_shift
        self.barrier = engine.barrier
        self.checkpoint = engine.checkpoint
        self.load_checkpoint = engine.load_checkpoint
        self.parts = Parts(self)
        self._open = True

    def __reduce__(self) -> tuple[Callable[[], Job | None], tuple[()]]:
        """A copy of a job is the job itself, and a pickled one the job it is unpickled in."""
        return current, ()

    @property
    def rank(self) -> int:
        """Logical rank of this worker, 0..size-1; stable for the whole run."""
        return self._world.rank

    @property
    def size(self) -> int:
        """Number of workers (servers and spares are not counted)."""
        return len(self._world.membership.workers)

    @property
    def version(self) -> int:
        """Number of committed checkpoints."""
        return self._engine.version

    @property
    def incarnation(self) -> int:
        """How often this rank has died before this process took its place."""
        return self._world.incarnation

    @property
    def epoch(self) -> int:
        """How often the world has been repaired."""
        return self._world.epoch

    @property
    def repairs(self) -> tuple[float, ...]:
        """Seconds of each repair that this process took part in."""
        return tuple(self._world.repairs)

    @property
    def inherited(self) -> dict[int, Any]:
        """After a shrink: local states of lost ranks that this worker is to take care of.

        By the rank that each had when the job began, as of the version that `load_checkpoint`
        returned; empty from the next checkpoint on. Each lost state is given to one worker.
        """
        return self._engine.inherited

    def elastic(self, train: Callable[[], T]) -> T:
        """Run `train` to its end, again from its load_checkpoint whenever ranks are lost for good.

        For `--on-failure shrink`, in the manner of Horovod's elastic training: `train` reads
        `job.rank` and `job.size` anew, fetches its part of the data, calls `load_checkpoint` and
        goes on. Collective; all workers return after the last one is through.
        """
        while True:
            try:
                result = train()
                self._engine.meet()
                return result
            except Shrunk as shrunk:
                self.parts = Parts(self)
                if self.rank == 0:
                    self.log(f"{shrunk.size} workers go on without {list(shrunk.lost)}")

    @property
    def comm(self) -> Any:
        """An mpi4py communicator of the workers, ordered by rank. It changes at a repair."""
        assert self._world.workers is not None
        return self._world.workers.comm

    @property
    def world(self) -> World:
        """Links and repairs, for a way to train that sends messages of its own (`diml.strads`)."""
        return self._world

    def repair(self, error: PeerFailed) -> None:
        """Repair the world after a call on `world`'s links has failed: what collectives do by
        themselves. All workers come out of it, in a repair of their own calls or in this one.

        Raises Shrunk if the job goes on with fewer workers.
        """
        self._engine.repair(error)

    @property
    def settings(self) -> Any:
        """The settings of the run (`diml.config.Settings`)."""
        return self._world.settings

    def identify(self, **facts: object) -> None:
        """Tell durable checkpoints of this job from those of others; before `load_checkpoint`, and
        before `parameter_server`.

        Args:
            facts: the same on all workers, a fingerprint of the data set for one. A run goes on
                only from a checkpoint with equal facts, of the same program and seed. Where they
                differ between workers, the next checkpoint raises Mismatch, or the end of the job.
        """
        self._engine.identify(facts)
        self._node.identify(facts)

    def log(self, text: str) -> None:
        """Print one line, once, from the rank that says it (nothing with --quiet)."""
        if not self._world.settings.quiet:
            print(f"[{self.rank}] {text}", flush=True)

    def event(self, what: str, **fields: Any) -> None:
        """Write one line into the event log, if the job keeps one."""
        self._world.event(what, **fields)

    def busy(self, seconds: float) -> None:
        """Say that this rank will not call DiML for so long, and is neither late nor hung.

        The watchdogs of its host hear of it. Where all workers of another host wait for it longer
        than `--deadline`, that is to be set longer.
        """
        self._world.busy(seconds)

    def gather_once(self, array: NDArray[Any]) -> NDArray[Any] | None:
        """Everybody's flat arrays joined in rank order; None where somebody has died by now.

        Unlike `allgather` it keeps nothing for a replacement, so it suits what is large and can be
        had in another way, as input that each worker has read a part of. Whoever gets None takes
        that other way; a replacement always does. Raises Shrunk as all collectives do.
        """
        world = self._world
        if world.epoch or world.incarnation or world.workers is None:
            return None
        world.calls.begin("gather_once")
        try:
            counts = world.workers.allgather_objects(array.size)
            joined = np.empty(sum(counts), array.dtype)
            world.workers.allgatherv(np.ascontiguousarray(array), joined, counts)
            return joined
        except PeerFailed as error:
            # At once: it may be no death, but the others have ended the job for what came of it.
            self.repair(error)
            return None
        finally:
            world.calls.end()

    def parameter_server(self, staleness: int = 0, **options: Any) -> ParameterServer:
        """The parameter server, the same object at every call; see `diml.ps.options.Options`.

        Raises Misuse for an option that there is not, or another value than it was opened with.
        """
        return self._node.client(staleness=staleness, **options)

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._open:
            return
        self._open = False
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self._finish()
        else:
            self._fail(error)

    def _finish(self) -> None:
        """Leave in good order; until all have, this rank still helps the others to recover."""
        try:
            self._retrying(self._last_steps)
        except (DimlError, KeyboardInterrupt) as error:
            self._fail(error)
        for name in _COLLECTIVES:
            setattr(self, name, _refuse)

    def _last_steps(self) -> None:
        self._node.close()
        self._engine.finish()
        self._world.leave()

    def _retrying(self, attempt: Callable[[], None]) -> None:
        while True:
            try:
                attempt()
                return
            except PeerFailed:
                self._world.recover()

    def _fail(self, error: BaseException) -> NoReturn:
        """End the whole job for this error: its reason printed once, one status for all."""
        if isinstance(error, JobEnded):
            raise error
        raise self._world.end(*verdict(error, self._world))
