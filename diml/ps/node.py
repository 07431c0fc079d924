"""One process's part in the parameter server, driven over the world's link.

Owns the serving loop, the repair hook, and the making of a worker's client. Must not know how
anything is decided: the cores say what to send. Every process of a job with servers has a Node
from the start, whatever its role, so that the hook is collective over all.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from diml.checkpoint.codec import decode, encode
from diml.errors import GaveUp, Misuse, PeerFailed
from diml.ps.buffers import keep_freed_memory
from diml.ps.client import ParameterServer
from diml.ps.client_core import ClientCore
from diml.ps.consistency import parse_consistency
from diml.ps.filters import parse_filters
from diml.ps.message import Address, Bytes
from diml.ps.node_core import NodeCore
from diml.ps.port import LocalPort
from diml.ps.recovery import Plan, make_plan
from diml.ps.session import Session
from diml.ps.shard import Shard
from diml.ps.world_port import WorldPort
from diml.world.link import Link
from diml.world.membership import Role
from diml.world.world import World

_TRANSFER_TAG = 2
_PIECE_BYTES = 1 << 30
_PATIENCE_S = 0.05
# Messages after which a server replicates and acknowledges even though more are waiting.
_FLUSH_AFTER = 64


class Node:
    """This process's part, in whatever role it has."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._port = WorldPort(world)
        self._client: ParameterServer | None = None
        self._client_core: ClientCore | None = None
        self._asked: tuple[Any, ...] = ()
        # The clock that this process holds, and by point of a drill the last one that it passed.
        self._closed = 0
        self._passed: dict[str, int] = {}
        self._replicated = True
        keep_freed_memory()
        members = world.membership
        self._workers, self._servers = len(members.workers), len(members.servers)
        self._core = NodeCore(
            self._place(),
            self._workers,
            self._servers,
            len(members.spares),
            world.settings.ps_replicas,
            joined_later=members.epoch > 0,
        )
        if self._servers:
            world.at_repair.append(self._repair)

    def _place(self) -> Address:
        return Address(self._world.role.value, self._world.rank)

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

    def client(
        self,
        staleness: int = 0,
        consistency: str | None = None,
        reject_nonfinite: bool = False,
        row_cache_size: int | None = None,
        filters: Sequence[str] = (),
    ) -> ParameterServer:
        """This worker's parameter server, the same object at every call.

        Args:
            staleness: clocks by which a read may miss the updates of the others.
            consistency: bsp, ssp(s), essp(s) or asp; by default bsp at staleness 0, else ssp.
            reject_nonfinite: refuse updates with NaN or infinity.
            row_cache_size: keep up to so many rows of each table (0: all) from one read to the
                next, as long as the bound allows. None: none, but all under essp.
            filters: of "keys", "half", and "snappy" or "lz4": see `diml.ps.filters`.

        Raises:
            Misuse: it was opened in another way before, or the job has no server.
        """
        asked = (staleness, consistency, reject_nonfinite, row_cache_size, tuple(filters))
        if self._client is None:
            self._port.filters.wanted = parse_filters(filters)
            self._client = self._new_client(*asked[:4])
            self._asked = asked
            self._client.open()
            self._warn_unreplicated()
        elif asked != self._asked:
            raise Misuse(f"parameter_server was opened with {self._asked}, now with {asked}")
        return self._client

    def _new_client(
        self,
        staleness: int,
        consistency: str | None,
        reject_nonfinite: bool,
        row_cache_size: int | None,
    ) -> ParameterServer:
        world = self._world
        if not self._servers and self._workers > 1:
            raise Misuse(
                f"{self._workers} workers and no parameter server: start one process more and "
                "give --servers 1"
            )
        model = parse_consistency(consistency, staleness)
        if row_cache_size is not None and row_cache_size < 0:
            raise Misuse(f"a row cache of {row_cache_size} rows cannot be")
        core = ClientCore(world.rank, max(1, self._servers), model, row_cache_size)
        self._client_core = core
        port = self._port if self._servers else LocalPort()
        session = Session(port, core, world.settings.deadline_s, world.drill, world.calls)
        seed = world.settings.seed
        return ParameterServer(session, self._workers, seed, reject_nonfinite, world.event)

    def close(self) -> None:
        """A worker's orderly end: every update acknowledged. Idempotent."""
        if self._client is not None:
            self._client.close()
            self._tell_traffic()

    def _tell_traffic(self) -> None:
        sent = self._port.filters
        self._world.event(
            "traffic", by="servers", plain_bytes=sent.plain_bytes, wire_bytes=sent.wire_bytes
        )

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
        since_flush = 0
        while True:
            found = port.receive(0.0) if since_flush < _FLUSH_AFTER else None
            if found is None:
                since_flush = 0
                sends = core.flush()
                if sends:
                    port.post(sends)
                    self._strike("inside")
                found = port.receive(_PATIENCE_S)
            if found is not None:
                since_flush += 1
                sends = core.handle(*found)
                moved = self._moved()
                port.post(sends)
                if moved:
                    self._strike("after")
            elif port.told_to_leave():
                self._tell_traffic()
                self._world.leave_as_told()
                return

    def _moved(self) -> bool:
        """Whether the clock that this process holds has moved on; drills strike on the way."""
        if not self._world.settings.drills:
            return False
        shard = self._core.server.shard if self._core.server else None
        for copy in self._core.copies.values():
            shard = shard or copy
        before, self._closed = self._closed, shard.closed if shard else 0
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
        place = self._place()
        reports = link.allgather_objects(self._core.report(place, self._client_core))
        if sum(report.place.role == "worker" for report in reports) != self._workers:
            raise GaveUp("the parameter server cannot go on with fewer workers")
        plan = make_plan(reports, world.settings.ps_replicas)
        self._core.go_back(plan)
        received = self._transfer(link, plan)
        # Only when all copies have arrived may anyone drop what it held before.
        link.barrier()
        self._core.finish(plan, link.rank, received)
        if self._core.server is not None:
            self._closed = self._core.server.shard.closed
        self._warn_unreplicated()
        world.event(
            "ps_repair", closed=plan.closed, transfers=len(plan.transfers), resume=plan.resume
        )
        if self._client_core is not None:
            self._port.post(self._client_core.recovered(plan))

    def _transfer(self, link: Link, plan: Plan) -> dict[int, Shard]:
        """Send and receive the copies that the plan wants moved."""
        for transfer in plan.transfers:
            if transfer.source == link.rank:
                _send_bytes(link, encode(self._core.tree_of(transfer.shard)), transfer.dest)
        return {
            transfer.shard: Shard.from_tree(decode(self._receive_bytes(link, transfer.source)))
            for transfer in plan.transfers
            if transfer.dest == link.rank
        }

    def _receive_bytes(self, link: Link, source: int) -> Bytes:
        """The buffer that `_send_bytes` sent. Raises PeerFailed."""
        (size,) = self._expect(link, source).view(np.int64)
        buffer = np.empty(int(size), np.uint8)
        for start in range(0, int(size), _PIECE_BYTES):
            piece = self._expect(link, source)
            buffer[start : start + len(piece)] = piece
        return buffer

    def _expect(self, link: Link, source: int) -> Bytes:
        """The next message of a transfer; the repair's own deadline ends a wait for ever."""
        while True:
            message = link.receive(source, _TRANSFER_TAG, timeout_s=1.0)
            if message is not None:
                return message.data


def _send_bytes(link: Link, buffer: Bytes, dest: int) -> None:
    """Start to send a buffer of any length: its size, then pieces that MPI can count."""
    link.isend(np.array([len(buffer)], np.int64).view(np.uint8), dest, _TRANSFER_TAG)
    for start in range(0, len(buffer), _PIECE_BYTES):
        link.isend(buffer[start : start + _PIECE_BYTES], dest, _TRANSFER_TAG)
