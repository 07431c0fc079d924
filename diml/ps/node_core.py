"""One process's part in the parameter server: the shard it serves and the copies it keeps. Pure.

Owns what a process holds, from the start through repairs, whatever its role is at the time. Must
not know MPI: the driver carries messages and transfers, the simulator does the same in memory.
Invariant: a copy changes only by a whole commit, so it always equals some version of its shard. A
commit is acknowledged once it is here as a whole and installed when there is time: whoever asks
for the copy finds it installed. One that was handed over in memory (`Flag.HELD`), and an update on
a tape, count as here before they come to `handle` and `follow`: the driver sees to it that they do
so before a repair asks.
"""

from __future__ import annotations

from collections.abc import Callable

from diml.ps.client_core import ClientCore
from diml.ps.consistency import parse_consistency
from diml.ps.message import OF_COMMIT, Address, Bytes, Flag, Kind, Message, Send
from diml.ps.quick_serve import Desk, Follower
from diml.ps.recovery import Holding, Plan, Report, placement
from diml.ps.saving import Storage
from diml.ps.server_core import ServerCore
from diml.ps.shard import CLOCK, N, Shard, Tree

# Access by name, or to a set, costs as much as what is done with a message's kind.
_UPDATE, _GET = Kind.UPDATE, Kind.GET


class NodeCore:
    """What one process holds.

    Attributes:
        place: its role and index now.
        server: the shard that it serves, or None.
        copies: by shard number, the replicas that it keeps.
    """

    def __init__(
        self,
        place: Address,
        workers: int,
        servers: int,
        spares: int,
        replicas: int,
        joined_later: bool = False,
        storage: Storage | None = None,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """At the start of the job every holder makes its shards. A process that joins later has
        nothing, or it would pass for a holder of rows that others have changed. `between` is called
        now and then while a commit is installed."""
        self.place = place
        self._between = between
        self.server: ServerCore | None = None
        self._desk: Desk | None = None
        self.copies: dict[int, Shard] = {}
        self._followers: dict[int, Follower] = {}
        self._parts: dict[int, list[Message]] = {}
        # By shard, whole commits that are not installed yet.
        self._arrived: dict[int, list[list[Message]]] = {}
        self._workers, self._servers, self._storage = workers, servers, storage
        # Whether a plan has known it as a worker: then it is no newcomer in the next one.
        self._known = place.role == "worker" and not joined_later
        self._lost: tuple[int, tuple[int, ...]] = (0, ())
        for shard in range(0 if joined_later else servers):
            owner, *others = placement(shard, servers, spares, replicas)
            if place == owner:
                self._serve(Shard(shard, servers, workers), tuple(others), (0,) * workers)
            elif place in others:
                self.copies[shard] = Shard(shard, servers, workers)

    def _serve(
        self,
        shard: Shard,
        replicas: tuple[Address, ...],
        resume: tuple[int, ...],
        not_before: int = 0,
    ) -> None:
        shard.forget_changes()
        self.server = ServerCore(shard, replicas, resume, self._storage, not_before)
        self._desk = Desk(self.server)

    def handle(self, sender: Address, message: Message) -> list[Send]:
        """Take one message; returns what to send."""
        kind = message.kind
        if (kind is _UPDATE or kind is _GET) and self.server is not None:
            return self.server.handle(message)
        if kind in OF_COMMIT:
            return self._replicate(sender, message)
        if kind is Kind.MIRROR:
            assert self._storage is not None, f"{self.place} got {message}"
            self._storage.mirror(message, self._servers)
            return []
        assert self.server is not None, f"{self.place} got {message}"
        if kind is Kind.COMMITTED:
            return self.server.committed(sender, message.mark)
        return self.server.handle(message)

    @property
    def desk(self) -> Desk | None:
        """Where messages can be seen to as they come, if any can now; what it leaves is for
        `handle`."""
        return self._desk if self._desk is not None and self._desk.opens else None

    def flush(self) -> list[Send]:
        """To be called when no message is waiting: start the next commit, install what came."""
        if self._arrived:
            self.settle()
        return self.server.flush() if self.server else []

    def settle(self) -> None:
        """Install the commits that have come."""
        arrived, self._arrived = self._arrived, {}
        for index, commits in arrived.items():
            for parts in commits:
                self.copies[index].install(parts, self._between)
                self._arm(self.copies[index])

    def follow(self, shard: int, tape: Bytes, upto: int) -> None:
        """Bring a copy up to what its server has written on a tape, after the commits that have
        come (see `diml.ps.handover`)."""
        self.settle()
        follower = self._followers.get(shard)
        if follower is None or follower.shard is not self.copies[shard]:
            follower = self._followers[shard] = Follower(self.copies[shard])
        while follower.follow(tape, upto):
            self._between()

    @property
    def closed(self) -> int:
        """Clocks that the shard served here has closed, else the first copy; 0 without either."""
        held = [self.server.shard] if self.server else list(self.copies.values())
        return held[0].closed if held else 0

    @property
    def may_linger(self) -> bool:
        """Whether what a flush would say can wait for the next message (see `ServerCore`)."""
        return self.server is not None and self.server.may_linger

    def _replicate(self, sender: Address, message: Message) -> list[Send]:
        parts = self._parts.setdefault(message.shard, [])
        parts.append(message)
        if message.kind is not Kind.COMMIT:
            return []
        self._arrived.setdefault(message.shard, []).append(parts)
        del self._parts[message.shard]
        if message.flags & Flag.HELD:
            return []
        done = Message(Kind.COMMITTED, shard=message.shard, mark=message.mark)
        return [Send(sender, done)]

    def _arm(self, shard: Shard) -> None:
        """Let a copy keep what going back needs, once it knows that clocks are transactions."""
        buffered = bool(shard.config) and parse_consistency(shard.config, 0).buffered
        shard.undoable = buffered and self._servers > 1
        shard.track = False

    # Repair ----------------------------------------------------------------------------------

    @property
    def held(self) -> dict[int, Shard]:
        """By number, the shards that it has, with all that has come."""
        self.settle()
        if self.server is not None:
            self.server.settle()
        own = {self.server.shard.index: self.server.shard} if self.server else {}
        return {**self.copies, **own}

    def report(self, place: Address, client: ClientCore | None = None) -> Report:
        """What this process holds and knows, under the place that it has from now on."""
        self.place = place
        held = self.held
        holdings = tuple(
            Holding(
                shard.index,
                shard.version,
                shard.closed,
                shard.revertible,
                tuple((int(row[CLOCK]), int(row[N])) for row in shard.ledger),
            )
            for shard in held.values()
        )
        clock = -1
        specs = {key: table.spec for shard in held.values() for key, table in shard.tables.items()}
        config = next((shard.config for shard in held.values() if shard.config), "")
        if client is not None and client.answered:
            specs |= client.specs
            config, clock = str(client.consistency), client.clock
        new = place.role == "worker" and client is None and not self._known
        return Report(place, holdings, tuple(specs.values()), config, clock, new, self._lost)

    def go_back(self, plan: Plan) -> None:
        """Take back the clock that is not closed everywhere, in every copy that is to stay."""
        if plan.closed is None:
            return
        for shard in self.held.values():
            if shard.closed > plan.closed and shard.revertible:
                shard.revert()

    def tree_of(self, shard: int) -> Tree:
        """A whole shard, to be sent."""
        return self.held[shard].to_tree()

    def finish(self, plan: Plan, rank: int, received: dict[int, Shard]) -> None:
        """Take up the places of the plan: `received` are the shards that came as transfers.

        Called once every transfer has arrived everywhere; what is not placed here is dropped.
        """
        held = {**self.held, **received}
        self._lost, self._known = plan.lost, self.place.role == "worker"
        self.server, self.copies, self._parts = None, {}, {}
        self._desk = None
        assert not self._arrived
        for index, ranks in enumerate(plan.placed):
            if rank not in ranks:
                continue
            shard = held.get(index)
            if shard is None or index in plan.fresh:
                shard = Shard(index, self._servers, self._workers)
            if plan.closed is not None:
                assert shard.closed == plan.closed, f"shard {index} is at {shard.closed}"
            if rank != ranks[0]:
                self._arm(shard)
                self.copies[index] = shard
                continue
            owner, *others = placement(index, self._servers, len(ranks) - 1, len(ranks) - 1)
            assert owner == self.place, f"{self.place} is to serve shard {index}"
            self._serve(shard, tuple(others), plan.resume, plan.not_before)

    def adopt(self, restored: dict[int, Shard]) -> None:
        """Take restored shards in place of new ones, before any worker has opened."""
        for index, shard in restored.items():
            if index in self.copies:
                self._arm(shard)
                self.copies[index] = shard
            else:
                assert self.server is not None, f"{self.place} has no place for shard {index}"
                resume = (shard.closed,) * shard.workers
                self._serve(shard, self.server.replicas, resume)
