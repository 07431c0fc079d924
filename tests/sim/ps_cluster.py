"""Processes, channels and deaths for the parameter server's simulation.

Owns what MPI and the world do in a real run: messages that keep their order between two processes
and nothing else, deaths at any moment, seats refilled from spares, and the repair step by step,
which another death may interrupt anywhere. The cores that it drives are the ones that run under
mpirun. One seed draws everything.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator

import numpy as np

from diml.checkpoint.codec import encode as encode_tree
from diml.ps.client_core import ClientCore
from diml.ps.consistency import Consistency
from diml.ps.message import (
    OF_COMMIT,
    Address,
    Bytes,
    Kind,
    Message,
    Rows,
    Send,
    blob_rows,
    decode,
    encode,
    whole,
)
from diml.ps.node_core import NodeCore
from diml.ps.quick import Quick
from diml.ps.recovery import Plan, Report, make_plan
from diml.ps.shard import Shard
from diml.ps.snapshot import Tree
from diml.ps.tables import TableSpec
from tests.sim.ps_disk import Disk
from tests.sim.ps_neighbours import Shared

Steps = Generator[None, None, None]


class Died(Exception):
    """A process died in the middle of a repair, which begins anew."""


class Process:
    """A process: a node, and once it works, a client with its program."""

    def __init__(self, uid: int, node: NodeCore) -> None:
        self.uid = uid
        self.node = node
        self.worker: Worker | None = None


class Worker:
    """The blocking calls of a program, as generators that yield until an answer is there."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.core = ClientCore(number, cluster.servers, cluster.consistency, cluster.cache_rows)
        self.finished = False
        self.steps: Steps = iter(())  # type: ignore[assignment]

    def _post(self, sends: list[Send]) -> None:
        self.cluster.post(Address("worker", self.number), sends)

    def _wait(self, request: int) -> Steps:
        while not self.core.questions.done(request):
            yield

    def open(self) -> Generator[None, None, Bytes | None]:
        request, sends = self.core.open()
        self._post(sends)
        yield from self._wait(request)
        local = self.core.opened(request)
        at = 0 if local is None else local[0]
        whole = at == self.core.clock or (self.cluster.framed and at < self.core.clock)
        assert whole, f"the own state is of clock {at}, not {self.core.clock}"
        return None if local is None else local[1]

    def define(self, spec: TableSpec, cached: bool = True) -> Steps:
        request, sends = self.core.define(spec)
        self._post(sends)
        yield from self._wait(request)
        self.core.defined(spec, request, cached)

    def get(self, spec: TableSpec, ids: Rows) -> Generator[None, None, Rows]:
        request, sends = self.core.get(spec, np.unique(ids) if spec.sparse else ids)
        self._post(sends)
        yield from self._wait(request)
        if not spec.sparse:
            return self.core.rows_of(request)[0]
        cells, values, _ = self.core.cells_of(request)
        dense = np.zeros((spec.rows, spec.cols), spec.numpy_dtype)
        dense.reshape(-1)[cells] = values[:, 0]
        return dense[ids]

    def update(self, spec: TableSpec, ids: Rows, values: Rows) -> None:
        quick = Quick.of(self.core, spec) if self.cluster.framed else None
        frame = quick.update(ids, values) if quick is not None else None
        if frame is not None:
            self.core.update_framed(spec, frame)
        else:
            self.core.update(spec, *_cells(spec, ids, values))

    def push(self, spec: TableSpec, ids: Rows, values: Rows, wait: bool) -> Steps:
        stamp, sends = self.core.push(spec, *_cells(spec, ids, values))
        self._post(sends)
        while wait and not self.core.sent.has_all(stamp):
            yield

    def clock(self, local: Bytes) -> Steps:
        while not self.core.may_clock:
            yield
        framed = self.core.finish_framed() if self.cluster.framed else None
        if framed is not None:
            self._post([Send(Address("server", 0), framed.opened())])
        else:
            self._post(self.core.finish_clock(local))

    def checkpoint(self) -> Steps:
        """Come to a durable checkpoint, as `diml.ps.saves` does."""
        core = self.core
        ask = Message(Kind.CHECK, self.number, core.clock, request=core.questions.next)
        request, sends = core.questions.ask({0: ask})
        self._post(sends)
        yield from self._wait(request)
        replies, repairs = core.questions.take(request).replies, core.repairs
        decision = replies[0].n if replies else 0
        # A pause: a repair may come between the decision and the meeting.
        yield
        if not decision or core.repairs != repairs:
            return
        about = blob_rows(encode_tree({"facts": {}, "local": None}))
        save = Message(Kind.SAVE, self.number, core.clock, decision, values=about)
        request, sends = core.questions.ask_all(save)
        self._post(sends)
        yield from self._wait(request)
        core.questions.take(request)

    def barrier(self) -> Steps:
        request, sends = self.core.synchronise()
        self._post(sends)
        yield from self._wait(request)
        self.core.synchronised(request)


def _cells(spec: TableSpec, ids: Rows, values: Rows) -> tuple[Rows, Rows]:
    """Rows as a table takes them."""
    if not spec.sparse:
        return ids, values
    places, columns = np.nonzero(values)
    return ids[places] * spec.cols + columns, values[places, columns].reshape(-1, 1)


class Cluster:
    """All processes and what is on its way between them."""

    def __init__(
        self,
        rng: random.Random,
        workers: int,
        servers: int,
        spares: int,
        replicas: int,
        consistency: Consistency,
        on_wire: bool,
        cache_rows: int | None,
        neighbours: bool,
        by_bytes: bool,
    ) -> None:
        self.rng = rng
        # Whether servers see to messages as they come, where they can; how many they have, and how
        # many updates among them they have written on a tape.
        self.by_bytes, self.short, self.told = by_bytes, 0, 0
        # By uid of a server that has written on a tape, its shard.
        self._shard_of: dict[int, int] = {}
        # Whether all are on one host.
        self.shared = Shared() if neighbours else None
        self.workers, self.servers, self.replicas = workers, servers, replicas
        self.consistency = consistency
        # Whether workers make updates as the bytes of messages (`diml.ps.quick`). A clock that is
        # one of these has no own state with it, which here nothing that is judged depends on.
        self.framed = servers == 1 and not consistency.buffered and rng.random() < 0.5
        self.on_wire = on_wire
        self.cache_rows = cache_rows
        places = [Address("worker", i) for i in range(workers)]
        places += [Address("server", i) for i in range(servers)]
        places += [Address("spare", i) for i in range(spares)]
        self.kept: list[tuple[int, Tree]] = []
        self.seats = {
            place: Process(
                uid,
                NodeCore(place, workers, servers, spares, replicas, storage=Disk(rng, self.kept)),
            )
            for uid, place in enumerate(places)
        }
        self.channels: dict[tuple[Address, Address], deque[Message]] = {}
        self.slowness = {uid: rng.choice((1, 1, 1, 10)) for uid in range(len(places))}
        self.repairs = 0
        self.deaths: list[str] = []
        self.trace: list[str] | None = None

    # Messages --------------------------------------------------------------------------------

    def post(self, sender: Address, sends: list[Send]) -> None:
        for send in sends:
            message = whole(send.message)
            if self.shared is not None and message.kind in OF_COMMIT:
                self._replicate(self.shared, sender, send.to, message)
                continue
            if self.on_wire:
                message = decode(encode(message).copy())
            self.channels.setdefault((sender, send.to), deque()).append(message)

    def _replicate(self, shared: Shared, sender: Address, to: Address, part: Message) -> None:
        """A part of a commit: once it is whole the replica has it, or is sent it."""
        rest = shared.replicate(self.seats[sender].uid, self.seats[to].uid, part)
        if rest is None:
            return
        if not rest:
            done = Message(Kind.COMMITTED, shard=part.shard, mark=part.mark)
            self.channels.setdefault((to, sender), deque()).append(done)
        for message in rest:
            self.channels.setdefault((sender, to), deque()).append(message)

    def look(self, to: Address, giver: int) -> None:
        """Have a process look at what a neighbour has given it."""
        if self.shared is None:
            return
        node = self.seats[to].node
        places = [place for place, process in self.seats.items() if process.uid == giver]
        # A giver that has died has no place any more; nobody answers it.
        sender = places[0] if places else to
        self.shared.take(
            self.seats[to].uid,
            giver,
            lambda part: self.post(to, node.handle(sender, part)),
            lambda giver, tape, upto: node.follow(self._shard_of[giver], tape, upto),
        )

    def look_somewhere(self) -> bool:
        """Have some process look; whether there was anything to see."""
        waiting = self.shared.waiting() if self.shared is not None else []
        if not waiting:
            return False
        giver, uid = self.rng.choice(waiting)
        (place,) = [place for place, process in self.seats.items() if process.uid == uid]
        self.look(place, giver)
        return True

    def hold(self) -> None:
        """At the beginning of a repair: all take up what they were given."""
        if self.shared is None:
            return
        uids = {process.uid: place for place, process in self.seats.items()}
        for giver, uid in self.shared.waiting():
            if uid in uids:
                self.look(uids[uid], giver)

    def deliver(self, pair: tuple[Address, Address]) -> None:
        channel = self.channels[pair]
        message = channel.popleft()
        if not channel:
            del self.channels[pair]
        sender, to = pair
        if self.trace is not None:
            self._say(f"{sender.role} {sender.number} -> {to.role} {to.number}: {message}")
        process = self.seats[to]
        if to.role == "worker":
            assert process.worker is not None
            process.worker.core.handle(sender.number, message)
        else:
            # What was handed over before a message was sent comes before it.
            self.look(to, self.seats[sender].uid)
            if self.shared is not None and message.kind is Kind.UPDATE:
                message = self.shared.received(process.uid, message)
            sends = self._shortly(process.node, sender, message) if self.by_bytes else None
            self.post(to, process.node.handle(sender, message) if sends is None else sends)

    def _shortly(self, node: NodeCore, sender: Address, message: Message) -> list[Send] | None:
        """What a server answers by compiled code; None if it leaves the message."""
        desk = node.desk if message.kind in (Kind.GET, Kind.UPDATE) else None
        if desk is None:
            return None
        if desk.untold is not None and self.shared is not None:
            giver = self.seats[node.place].uid
            desk.tell_on(self.shared.tape(giver, self.seats[desk.untold].uid))
            self._shard_of[giver] = desk.shard.index
        answer = desk.take(encode(message)) if desk.opens else None
        if answer is None:
            return None
        self.short += 1
        self.told += len(desk.tape) > 0 and message.kind is Kind.UPDATE
        return [Send(sender, decode(answer.copy()))] if len(answer) else []

    def _say(self, line: str) -> None:
        if self.trace is not None:
            self.trace.append(line)

    def flush(self, place: Address) -> None:
        self.post(place, self.seats[place].node.flush())

    # Deaths ----------------------------------------------------------------------------------

    def spares(self) -> list[Address]:
        return [place for place in self.seats if place.role == "spare"]

    def kill(self, victims: list[Address], where: str) -> None:
        """End processes at once, and give their seats to spares as the membership does."""
        together = " with others" if len(victims) > 1 else ""
        self.deaths += [f"{victim.role}{together} {where}" for victim in victims]
        self._say(f"killed: {', '.join(self.deaths[-len(victims) :])}: {victims}")
        living = {p: process for p, process in self.seats.items() if p not in victims}
        pool = [living.pop(p) for p in sorted(p for p in living if p.role == "spare")]
        for victim in sorted(victims):
            if victim.role == "server":
                living[victim] = pool.pop(0)
        for victim in sorted(victims):
            if victim.role == "worker":
                living[victim] = pool.pop()
        for number, process in enumerate(pool):
            living[Address("spare", number)] = process
        self.seats = living
        self.channels = {}

    def repair(self, newcomer: Callable[[int], Worker], interrupt: float) -> None:
        """Repair until no death interrupts. `interrupt` is the chance of a death at each step."""
        while True:
            self.repairs += 1
            try:
                self._repair(newcomer, interrupt)
                return
            except Died:
                interrupt /= 2

    def _perhaps_die(self, chance: float) -> None:
        if self.spares() and self.rng.random() < chance:
            self.kill([self.rng.choice(sorted(self.seats))], "in a repair")
            raise Died

    def _repair(self, newcomer: Callable[[int], Worker], chance: float) -> None:
        self.hold()
        if self.shared is not None:
            self.shared.end()
        places = sorted(self.seats)
        reports = [self._report(place) for place in places]
        plan = make_plan(reports, self.replicas)
        self._say(str(plan))
        for place in self.rng.sample(places, len(places)):
            self.seats[place].node.go_back(plan)
            self._perhaps_die(chance)
        received: dict[Address, dict[int, Shard]] = {place: {} for place in places}
        for transfer in plan.transfers:
            tree = self.seats[places[transfer.source]].node.tree_of(transfer.shard)
            received[places[transfer.dest]][transfer.shard] = Shard.from_tree(tree)
            self._perhaps_die(chance)
        for place in self.rng.sample(places, len(places)):
            self.seats[place].node.finish(plan, places.index(place), received[place])
            self._perhaps_die(chance)
        for place in self.rng.sample(places, len(places)):
            self._resume(place, plan, newcomer)
            self._perhaps_die(chance)

    def _report(self, place: Address) -> Report:
        process = self.seats[place]
        if process.worker is None:
            return process.node.report(place)
        assert place == Address("worker", process.worker.number)
        return process.node.report(place, process.worker.core)

    def _resume(self, place: Address, plan: Plan, newcomer: Callable[[int], Worker]) -> None:
        process = self.seats[place]
        if place.role != "worker":
            return
        if process.worker is None:
            process.worker = newcomer(place.number)
        else:
            self.post(place, process.worker.core.recovered(plan))
