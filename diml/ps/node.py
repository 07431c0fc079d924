"""One process's part in the parameter server, driven over the world's link.

Owns the serving loop, the repair hook, and the making of a worker's client. Must not know how
anything is decided: the cores say what to send. Every process of a job with servers has a Node
from the start, whatever its role, so that the hook is collective over all.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from diml.checkpoint.keeper import StopRequest
from diml.errors import GaveUp, Misuse, PeerFailed
from diml.ps.buffers import keep_freed_memory, wake_promptly
from diml.ps.client import ParameterServer
from diml.ps.client_core import ClientCore
from diml.ps.durable import Durable
from diml.ps.filters import parse_filters
from diml.ps.message import Address, Bytes
from diml.ps.node_core import NodeCore
from diml.ps.options import Options
from diml.ps.port import Collectives, LocalPort
from diml.ps.recovery import Plan, make_plan
from diml.ps.saves import Saves
from diml.ps.serve_loop import LINGER_S
from diml.ps.session import Session
from diml.ps.shard import Shard
from diml.ps.transfer import carry_out
from diml.ps.world_port import WorldPort
from diml.world.membership import Role
from diml.world.world import World

_PATIENCE_S = 0.05
_TELL_EVERY_S = 0.5
# Messages after which a server replicates and acknowledges even though more are waiting.
_FLUSH_AFTER = 64


class Node:
    """This process's part, in whatever role it has."""

    def __init__(
        self, world: World, collectives: Collectives, stop: StopRequest | None = None
    ) -> None:
        """`stop` remembers a signal by which the job is asked to end in good order."""
        self._world, self._collectives, self._stop = world, collectives, stop
        self._durable = Durable.of(world.settings, os.environ)
        self._facts: dict[str, object] = {}
        self._recorded: int | None = None
        self._anew = False
        self._port = WorldPort(world)
        self._client: ParameterServer | None = None
        self._client_core: ClientCore | None = None
        self._told_s = 0.0
        self._asked = Options()
        # The clock that this process holds, and by point of a drill the last one that it passed.
        self._closed = 0
        self._passed: dict[str, int] = {}
        self._replicated = True
        keep_freed_memory()
        wake_promptly()
        members = world.membership
        self._workers, self._servers = len(members.workers), len(members.servers)
        self._core = NodeCore(
            self._place(),
            self._workers,
            self._servers,
            len(members.spares),
            world.settings.ps_replicas,
            joined_later=members.epoch > 0,
            storage=self._durable,
            between=self._port.make_room,
        )
        self._port.follow = self._core.follow
        if self._servers:
            world.at_repair.append(self._repair)
        if self._durable is not None:
            before, mine = world.resumable, self._durable.resumable
            world.resumable = lambda: before() or mine()

    def _place(self) -> Address:
        return Address(self._world.role.value, self._world.rank)

    def begin(self) -> None:
        """Go on from a durable checkpoint, if there is one. Collective over all processes, before
        any serves or works. Raises Misuse, on all alike, if its directory cannot be used."""
        world, durable = self._world, self._durable
        if durable is None or not self._servers:
            return
        try:
            self._repair()
        except PeerFailed:
            # The repair does what was begun here.
            world.recover()

    def identify(self, facts: Mapping[str, object]) -> None:
        """Add facts that tell this job's checkpoints from those of others."""
        self._facts.update(facts)

    def _warn_unreplicated(self) -> None:
        """Say, once each time it comes to that, that a server's rows are in one place only."""
        world = self._world
        if not self._servers or self._client is None or world.rank:
            return
        others = len(world.membership.spares) if self._servers == 1 else self._servers - 1
        before, self._replicated = self._replicated, bool(others and world.settings.ps_replicas)
        if before and not self._replicated:
            world.event("unreplicated")
            if not world.settings.quiet:
                text = "diml: not replicated: the death of a server ends this job"
                print(text, file=sys.stderr, flush=True)

    # Workers ---------------------------------------------------------------------------------

    def client(self, **given: Any) -> ParameterServer:
        """This worker's parameter server, the same object at every call; `given`: see `Options`.

        Raises:
            Misuse: there is no such option, it was opened in another way before, the job has no
                server, or the durable checkpoint is another job's, of another number of workers,
                or not there.
        """
        options = Options.of(given)
        if self._client is None:
            self._port.filters.wanted = parse_filters(options.filters)
            alone = self._begin_alone() if not self._servers else {}
            self._refuse_origin(options.any_workers)
            self._client = self._new_client(options, alone)
            self._asked = options
            self._client.open()
            origin = self._client.resumed
            if origin is not None and not self._world.incarnation:
                self._world.event("resume", version=origin.clock)
            self._collectives.begin_clock(self._client.clock_now, self._world.incarnation > 0)
            if self._recorded is not None:
                self.go_to(self._recorded)
            elif self._anew:
                self.begin_anew()
            self._warn_unreplicated()
        self._asked.check_same(options)
        return self._client

    def _new_client(self, options: Options, alone: dict[int, Shard]) -> ParameterServer:
        world = self._world
        core = ClientCore(
            world.rank, max(1, self._servers), options.model, options.row_cache_size,
            options.significance,
        )  # fmt: skip
        self._client_core = core
        port = self._port if self._servers else LocalPort(self._durable, alone)
        drill = world.drill if world.settings.drills else None
        session = Session(port, core, world.settings.deadline_s, drill, world.calls)
        seed = world.settings.seed
        facts, saves = {name: str(value) for name, value in self._facts.items()}, None
        if self._durable is not None:
            saves = Saves(session, self._durable, self._stop, facts, world.end)
        return ParameterServer(
            session,
            self._workers,
            seed,
            options.reject_nonfinite,
            world.event,
            saves,
            self._clock_ended,
        )

    def _begin_alone(self) -> dict[int, Shard]:
        """What a worker without servers goes on with. Raises Misuse if it is not alone."""
        if self._workers > 1:
            raise Misuse(
                f"{self._workers} workers and no parameter server: start one process more and "
                "give --servers 1"
            )
        return self._durable.restore(self._world.full, ((0,),), 1) if self._durable else {}

    def _refuse_origin(self, any_workers: bool) -> None:
        """Raise Misuse if the durable checkpoint is not one that this program can go on from."""
        durable = self._durable
        if durable is None:
            return
        origin = durable.origin
        if origin is None:
            if durable.resume == "must":
                raise Misuse(
                    f"--resume must: no checkpoint in {durable.where} to go on from: "
                    f"{durable.problem}"
                )
            return
        advice = "use another directory, or --resume never"
        if difference := durable.identity(self._facts).difference(origin.identity):
            raise Misuse(
                f"{durable.where}: the checkpoint of clock {origin.clock} is another job's: "
                f"{difference} ({advice})"
            )
        if origin.uses_local and origin.workers != self._workers and not any_workers:
            raise Misuse(
                f"{durable.where}: {origin.workers} workers wrote the checkpoint, each with a "
                f"state of its own; this run has {self._workers} ({advice})"
            )

    # Beside the collectives (see `diml.allreduce.durability`) ------------------------------------

    @property
    def clock(self) -> int | None:
        """The clock of this worker's program; None where it has not opened."""
        return self._client.clock_now if self._client is not None else None

    def go_to(self, clock: int) -> None:
        """Go on at the clock that the collectives' checkpoint records, whose rows may be newer:
        updates that the servers have are acknowledged, not applied. Raises Misuse if the rows are
        older, as where a job's directories are of two runs."""
        self._recorded = clock
        if self._client is not None:
            self._client.go_to(clock)
            self._collectives.begin_clock(clock, False)

    def begin_anew(self) -> None:
        """The program was told to begin at its beginning: go on at the first clock, as if that had
        been recorded. But where it keeps a state of its own at the servers, that says where."""
        self._anew = True
        client = self._client
        if client is not None and client.local is None and self._recorded is None:
            self.go_to(client.resumed.clock if client.resumed is not None else 0)

    def save(self, write: Sequence[bool]) -> bool:
        """Bring the rows of this clock to these places; whether they are there."""
        return self._client is not None and self._client.save_now(write)

    def close(self) -> None:
        """A worker's orderly end: every update acknowledged. Idempotent."""
        if self._client is not None:
            self._client.close()
            self._tell_traffic(last=True)
        if self._durable is not None:
            self._durable.close()

    def _clock_ended(self) -> None:
        """At each clock of this worker."""
        assert self._client is not None
        self._collectives.end_clock(self._client.clock_now)
        self._world.committed()
        self._tell_traffic()

    def _tell_traffic(self, last: bool = False) -> None:
        """Write what this process has sent into the event log: now and then, and at its end."""
        now = time.monotonic()
        if not last and now - self._told_s < _TELL_EVERY_S:
            return
        self._told_s = now
        sent = self._port.filters
        held = self._client_core.held_bytes if self._client_core is not None else 0
        size = {"plain_bytes": sent.plain_bytes + held, "wire_bytes": sent.wire_bytes}
        self._world.event("traffic", by="servers", **size, short=sent.short)

    # Servers and spares ----------------------------------------------------------------------

    def serve(self) -> str:
        """Serve, or stand by: "leave" after the last gate, "seated" once the role is a worker's."""
        if not self._servers:
            self._world.wait_as_spare()
            return "leave" if self._world.role is Role.SPARE else "seated"
        # Whoever serves waits for workers: it is never the one who is late.
        self._world.calls.begin("serving the parameters")
        while self._world.role is not Role.WORKER:
            try:
                self._serve_until_told()
                return "leave"
            except PeerFailed:
                self._world.recover()
            except Exception:
                # A server that cannot go on must not be taken for a dead one and replaced.
                raise self._world.end(1, traceback.format_exc().rstrip()) from None
        self._world.calls.end()
        return "seated"

    def _serve_until_told(self) -> None:
        """Handle messages until the workers are done. Raises PeerFailed."""
        port, core = self._port, self._core
        # Messages until the next flush, which comes before that where no more come.
        left = 0
        while True:
            if left <= 0:
                self._flush()
                left = _FLUSH_AFTER
            flushed = left == _FLUSH_AFTER
            linger_s = LINGER_S if core.may_linger else 0.0
            found, seen, early = self._serve(_PATIENCE_S if flushed else linger_s, left)
            left -= seen
            if found is not None:
                left -= 1
                sends = core.handle(found[0], port.opened(*found))
                moved = self._moved()
                if sends:
                    port.post(sends)
                if moved:
                    self._strike("after")
            elif not early:
                told = port.word() if flushed and not seen else None
                if told:
                    self._collectives.hear_of_state()
                elif told is not None:
                    self._leave()
                    return
                left = 0

    def _flush(self) -> None:
        """Replicate and acknowledge what has been handled. Raises PeerFailed."""
        sends = self._core.flush()
        if sends:
            self._port.post(sends)
            self._strike("inside")
            self._world.committed()

    def _leave(self) -> None:
        """The end of a process that has served."""
        self._tell_traffic(last=True)
        if self._durable is not None:
            self._durable.close()
        self._world.leave_as_told()

    def _serve(
        self, patience_s: float, turns: int
    ) -> tuple[tuple[Address, Bytes] | None, int, bool]:
        """The next message that takes the long way, if any comes so soon; how many went the short
        way before it, and whether there may be more (see `WorldPort.serve`)."""
        desk = self._core.desk
        if desk is None:
            return self._port.receive_bytes(patience_s), 0, False
        if not self._world.settings.drills:
            return self._port.serve(desk, patience_s, turns)
        found, seen, early = self._port.serve(desk, patience_s, 1)
        if seen and self._moved():
            self._strike("after")
        return found, seen, early

    def _moved(self) -> bool:
        """Whether the clock that this process holds has moved on; drills strike on the way."""
        if not self._world.settings.drills:
            return False
        self._core.settle()
        before, self._closed = self._closed, self._core.closed
        self._strike("entry")
        return self._closed > before

    def _strike(self, point: str) -> None:
        """A drill's moment for every clock that has closed since this point was last passed."""
        if not self._world.settings.drills:
            return
        for clock in range(self._passed.get(point, 0) + 1, self._closed + 1):
            self._world.drill(clock, 0, point)
        self._passed[point] = self._closed

    # Repair ----------------------------------------------------------------------------------

    def _repair(self) -> None:
        """Bring every shard back to its holders; collective over `full`. Raises PeerFailed, and
        GaveUp (on everyone) if rows have no holder left."""
        world, link = self._world, self._world.full
        if world.epoch and self._core.server is not None:
            world.drill(self._closed, 0, "repair")
        for sender, message in self._port.held():
            self._core.handle(sender, message)
        place = self._place()
        reports = link.allgather_objects(self._core.report(place, self._client_core))
        if sum(report.place.role == "worker" for report in reports) != self._workers:
            raise GaveUp("the parameter server cannot go on with fewer workers")
        plan = make_plan(reports, world.settings.ps_replicas)
        self._core.go_back(plan)
        received = carry_out(link, plan, self._core)
        # Only when all copies have arrived may anyone drop what it held before.
        link.barrier()
        self._core.finish(plan, link.rank, received)
        if self._durable is not None:
            self._settle_origin(self._durable, any(report.config for report in reports), plan)
        if self._core.server is not None:
            self._closed = self._core.server.shard.closed
        self._warn_unreplicated()
        if world.epoch:
            moved = len(plan.transfers)
            world.event("ps_repair", closed=plan.closed, transfers=moved, resume=plan.resume)
        if self._client_core is not None:
            self._port.post(self._client_core.recovered(plan))

    def _settle_origin(self, durable: Durable, opened: bool, plan: Plan) -> None:
        """Before any worker has opened: the rows of the checkpoint to go on from. Collective."""
        if opened:
            durable.join(self._world.full)
            return
        try:
            self._core.adopt(durable.restore(self._world.full, plan.placed, self._workers))
        except Misuse as error:
            if self._world.epoch == 0:
                raise
            raise GaveUp(str(error)) from None
