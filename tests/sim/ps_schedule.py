"""One simulated run of the parameter server: a program whose reads can be judged, and its judge.

Owns the checkers. Every worker counts its own updates in a column of its own, so that each value
read tells which updates were applied: "every update exactly once", "no read staler than the
bound", "own writes are read", and, where clocks are transactions, "the state of the last closed
clock exactly" and the bits of a run without deaths. Progress: a run that can do nothing more has
finished all its workers, or has rightly been given up.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from diml.errors import GaveUp
from diml.ps import server_core, table_shard
from diml.ps.message import Address, Kind
from diml.ps.recovery import DEATHS_MAX
from diml.ps.shard import CLOCK
from diml.ps.tables import TableSpec, row_range
from tests.sim.ps_cluster import Cluster, Steps, Worker
from tests.sim.ps_copies import Copies
from tests.sim.ps_program import Program, moves, shape_of
from tests.sim.registry import Verdict

STEPS_MAX = 20_000
MARKED = (
    None, None, Kind.OPENED, Kind.UPDATE, Kind.LOCAL, Kind.GET, Kind.VALUES, Kind.PUSHED, Kind.ACK,
    Kind.COMMIT, Kind.COMMITTED, Kind.COMMITTED, Kind.SAVE,
)  # fmt: skip


class Failure(AssertionError):
    """A checker's verdict; the message repeats the seed."""


@dataclass
class Outcome:
    """What a run came to."""

    deaths: Counter[str]
    gave_up: bool = False


class Schedule:
    """A seeded run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = self.rng = random.Random(seed)
        shape = self.shape = shape_of(rng)
        # In some schedules it is all workers that die, all at once.
        self.all_at_once = rng.random() < 0.2
        # The clocks from which on processes may die, the next one first.
        self.kills = sorted(rng.randint(0, shape.clocks) for _ in range(shape.kills))
        self.chance = rng.choice((0.003, 0.01, 0.03))
        # That chance where servers stand at different clocks of a worker, if that is aimed at.
        self.uneven = rng.choice((None, None, 0.02, 0.1))
        # A kind of message around which processes die more often.
        self.marked = rng.choice(MARKED)
        # Who does nothing for a while, and from whom to whom nothing comes, unless all others wait.
        self.stalled: Address | None = None
        self.held_up: tuple[Address, Address] | None = None
        self.cluster = Cluster(
            rng, shape.workers, shape.servers, shape.spares, shape.replicas,
            shape.consistency, shape.on_wire, shape.cache_rows,
            shape.neighbours, rng.random() < 0.5 or shape.tapes,
        )  # fmt: skip
        self.count = TableSpec(
            "count", shape.rows, shape.workers, "int32", seed=seed, sparse=shape.sparse
        )
        init = ("uniform", 0, 1)
        self.model = TableSpec("model", shape.rows, 3, "float32", init, seed, shape.rule)
        assert self.count.id < self.model.id
        self.plan = Program(shape, seed)
        self.sums = self.plan.sums
        self.states = self.plan.states(self.model) if shape.consistency.buffered else None
        # Clocks that any life of a worker has begun, hence may have sent.
        self.begun = [0] * shape.workers
        # Those that a former life has begun.
        self.former = [0] * shape.workers

    # The program -----------------------------------------------------------------------------

    def worker(self, number: int) -> Worker:
        self.former[number] = self.begun[number]
        worker = Worker(self.cluster, number)
        worker.steps = self._program(worker)
        return worker

    def _program(self, worker: Worker) -> Steps:
        local = yield from worker.open()
        mine = np.zeros(3, np.float32) if local is None else local.view(np.float32).copy()
        yield from worker.define(self.count, cached=not self.shape.pushes)
        yield from worker.define(self.model)
        for clock in range(worker.core.clock, self.shape.clocks):
            self.begun[worker.number] = max(self.begun[worker.number], clock + 1)
            yield from self._one_clock(worker, clock, mine)
            yield from worker.clock(mine.copy().view(np.uint8))
            if self.shape.durable:
                yield from worker.checkpoint()
        yield from worker.barrier()
        everything = np.arange(self.shape.rows)
        counts = yield from worker.get(self.count, everything)
        nothing = np.zeros(self.shape.rows, np.bool_)
        self._judge_reads(worker, everything, counts, everything[:0], nothing)
        if not np.array_equal(counts.T, self.sums[:, -1]):
            raise Failure(f"seed {self.seed}: counts {counts.T} are not {self.sums[:, -1]}")
        self._judge_model(worker, everything, (yield from worker.get(self.model, everything)))
        worker.finished = True

    def _one_clock(self, worker: Worker, clock: int, mine: NDArray[np.float32]) -> Steps:
        """Count the drawn rows in two calls; move the model by what was read of it."""
        touched = self.plan.touched[worker.number][clock]
        ids = self.plan.moved(worker.number, clock)
        rows = yield from worker.get(self.model, ids)
        self._judge_model(worker, ids, rows)
        # A clock of one call may be one message.
        half = len(touched) // 2 if not self.cluster.framed or clock % 3 == 0 else 0
        own = np.zeros((len(touched), self.shape.workers), np.int32)
        own[:, worker.number] = 1
        if self.shape.pushes and half:
            yield from worker.push(self.count, touched[:half], own[:half], wait=clock % 2 == 0)
        elif half:
            worker.update(self.count, touched[:half], own[:half])
        if clock % 2 or self.states is None:
            ahead = self._ahead(worker.number, clock)
            wanted = np.arange(self.shape.rows) if self.states is None else ids[::-1].copy()
            counts = yield from worker.get(self.count, wanted)
            self._judge_reads(worker, wanted, counts, touched[:half], ahead)
        if len(touched) > half:
            worker.update(self.count, touched[half:], own[half:])
        moved = moves(rows, mine)
        # Where reads may differ, so may what is done with them: another life sends less or more.
        # It comes last of its clock: tables go by their ids.
        often = (0, 0, 0, 1) if self.cluster.framed else (0, 1, 1, 3)
        times = 1 if self.states is not None else self.rng.choice(often)
        for _ in range(times):
            worker.update(self.model, ids, moved)

    def _ahead(self, worker: int, clock: int) -> NDArray[np.bool_]:
        """By row, whether its server has all of this clock from a former life of the worker."""
        ahead = np.zeros(self.shape.rows, np.bool_)
        for process in self.cluster.seats.values():
            if process.node.server is not None:
                shard = process.node.server.shard
                low, high = row_range(self.shape.rows, shard.index, shard.shards)
                ahead[low:high] = shard.ledger[worker, CLOCK] > clock
        return ahead

    # The judge -------------------------------------------------------------------------------

    def _judge_reads(
        self, worker: Worker, ids: NDArray[np.int64], counts: NDArray[np.int32],
        pending: NDArray[np.int64], ahead: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Compare what was read with what may have been applied."""
        clock = worker.core.clock
        staleness = self.shape.consistency.staleness
        bounded = self.shape.consistency.model != "asp"
        for other in range(self.shape.workers):
            least = self.sums[other, max(0, clock - staleness) if bounded else 0][ids]
            most = self.sums[other, min(self.begun[other], self.shape.clocks)][ids]
            if self.shape.consistency.buffered:
                most = least = self.sums[other, clock][ids]
            if other == worker.number:
                own = np.zeros(self.shape.rows, np.int64)
                np.add.at(own, pending, 1)
                least = self.sums[other, clock][ids] + own[ids]
                # A former life may have sent what this one has only begun to.
                most = most + np.where(ahead, 0, own)[ids]
                if clock >= self.former[other]:
                    most = least
            seen = counts[:, other]
            if (seen < least).any() or (seen > most).any():
                raise Failure(
                    f"seed {self.seed}: worker {worker.number} at clock {clock} read of worker "
                    f"{other} {seen}, not within {least} and {most}"
                )

    def _judge_model(self, worker: Worker, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Where clocks are transactions: the bits of a run without deaths."""
        clock = worker.core.clock
        if self.states is not None and rows.tobytes() != self.states[clock].values[ids].tobytes():
            raise Failure(
                f"seed {self.seed}: worker {worker.number} at clock {clock} read {rows}, "
                f"not {self.states[clock].values[ids]}"
            )

    # The run ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Play until nothing moves; raises Failure when a checker objects."""
        cluster = self.cluster
        for place, process in cluster.seats.items():
            if place.role == "worker":
                process.worker = self.worker(place.number)
        try:
            for _ in range(STEPS_MAX):
                if not self._step():
                    break
            else:
                raise Failure(f"seed {self.seed}: no end after {STEPS_MAX} steps")
        except GaveUp:
            if not self._nobody_holds() and not self._worn_out():
                raise Failure(
                    f"seed {self.seed}: given up although all rows have holders"
                ) from None
            return Outcome(Counter(cluster.deaths), gave_up=True)
        self._judge_snapshots()
        cluster.hold()
        self._judge_copies(Copies(cluster), last=True)
        workers = [process.worker for process in cluster.seats.values() if process.worker]
        if not all(worker.finished for worker in workers):
            raise Failure(f"seed {self.seed}: nothing moves and not all have finished")
        return Outcome(Counter(cluster.deaths))

    def _judge_copies(self, copies: Copies, last: bool) -> None:
        """All copies of a shard are one, as of a clock, and at the end of a run also as of the
        clock before."""
        try:
            copies.one_each()
            copies.own_states_kept()
            if self.states is not None:
                copies.at_clock(self.model, self.states)
                if last and copies.take_back():
                    self._judge_copies(copies, last=False)
        except AssertionError as error:
            raise Failure(f"seed {self.seed}: {error}") from None

    def _judge_snapshots(self) -> None:
        """A durable checkpoint of a clock has all updates of the clocks before it, and no other."""
        for clock, tree in self.cluster.kept:
            for item in tree["tables"]:
                if TableSpec.from_json(item["spec"]).id != self.count.id:
                    continue
                wanted = self.sums[:, clock, item["low"] : item["high"]].T
                found = np.zeros(wanted.shape, np.int64)
                if self.count.sparse:
                    first = item["low"] * self.count.cols
                    found.reshape(-1)[item["keys"] - first] = item["values"][:, 0]
                else:
                    found[:] = item["values"]
                if not np.array_equal(found, wanted):
                    raise Failure(f"seed {self.seed}: a checkpoint of clock {clock} has {found}")

    def _nobody_holds(self) -> bool:
        held = {
            holding.shard
            for place, process in self.cluster.seats.items()
            for holding in process.node.report(place).holdings
        }
        return len(held) < self.shape.servers

    def _worn_out(self) -> bool:
        """Whether workers have died so often that all of them may have, at the same clocks."""
        deaths = sum(death.startswith("worker") for death in self.cluster.deaths)
        return deaths >= DEATHS_MAX * self.shape.workers

    def _step(self) -> bool:
        """One thing that may happen next; False if nothing can."""
        cluster, rng = self.cluster, self.rng
        if self._deadly and rng.random() < self._chance():
            self._kill(None)
            return True
        if self.shape.stalls and rng.random() < 0.04:
            self._stall()
        stalled, held_up = self.stalled, self.held_up
        channels = [pair for pair in cluster.channels if pair[1] != stalled and pair != held_up]
        if channels and rng.random() < 0.7:
            self._deliver(rng.choice(channels))
            return True
        if rng.random() < 0.2 and cluster.look_somewhere():
            return True
        flushes = [
            place for place, process in cluster.seats.items()
            if process.node.server is not None and not process.node.server.idle
            and place != stalled
        ]  # fmt: skip
        if flushes and rng.random() < 0.5:
            cluster.flush(rng.choice(flushes))
            return True
        runnable = [
            process.worker for place, process in cluster.seats.items()
            if process.worker and not process.worker.finished and place != stalled
        ]  # fmt: skip
        if runnable:
            worker = rng.choice(runnable)
            if rng.random() * cluster.slowness[worker.number] < 1:
                next(worker.steps, None)
        if channels or runnable or flushes:
            return True
        self.stalled = self.held_up = None
        return stalled is not None or held_up is not None

    def _stall(self) -> None:
        """Hold somebody up, or the messages from one to another, or nobody any more."""
        self.stalled = self.held_up = None
        channels = list(self.cluster.channels)
        if channels and self.rng.random() < 0.5:
            self.held_up = self.rng.choice(channels)
        elif self.rng.random() < 0.8:
            self.stalled = self.rng.choice(list(self.cluster.seats))

    @property
    def _deadly(self) -> bool:
        return bool(self.kills) and max(self.begun) >= self.kills[0]

    def _chance(self) -> float:
        """Of a death at this step."""
        if self.uneven is None:
            return self.chance
        cores = [process.node.server for process in self.cluster.seats.values()]
        clocks = {core.shard.ledger[:, CLOCK].tobytes() for core in cores if core is not None}
        return self.uneven if len(clocks) > 1 else self.chance / 10

    def _deliver(self, pair: tuple[Address, Address]) -> None:
        """Deliver a message, around which somebody may die: its sender or its receiver."""
        marked = self._deadly and self.cluster.channels[pair][0].kind is self.marked
        if not marked or self.rng.random() < 0.8:
            self.cluster.deliver(pair)
            return
        if self.rng.random() < 0.5:
            self.cluster.deliver(pair)
        self._kill(self.rng.choice(pair))

    def _kill(self, one: Address | None) -> None:
        """One to three deaths at once, or those of all workers, as far as there are spares for
        the seats; `one` or who is stalled before others."""
        cluster = self.cluster
        del self.kills[0]
        workers = [place for place in sorted(cluster.seats) if place.role == "worker"]
        if self.all_at_once and not self._too_many(workers):
            cluster.kill(workers, "of all")
            self._repair()
            return
        count = min(self.rng.choice((1, 1, 1, 2, 3)), len(cluster.seats))
        victims = self.rng.sample(sorted(cluster.seats), count)
        if one is None and self.rng.random() < 0.5:
            one = self.stalled
        if one is not None:
            victims = [one, *(victim for victim in victims[1:] if victim != one)]
        while victims and self._too_many(victims):
            victims.pop()
        if victims:
            cluster.kill(victims, "at work")
            self._repair()

    def _repair(self) -> None:
        self.stalled = self.held_up = None
        self.cluster.repair(self.worker, self.shape.interrupt)
        self._judge_copies(Copies(self.cluster), last=False)

    def _too_many(self, victims: list[Address]) -> bool:
        spares = len(self.cluster.spares()) - sum(v.role == "spare" for v in victims)
        return sum(v.role != "spare" for v in victims) > spares


_ALONE, _TOGETHER = ("at work", "in a repair"), "with others at work"
POINTS = (
    *(f"{role} {where}" for role in ("worker", "server", "spare") for where in _ALONE),
    *(f"{role} {_TOGETHER}" for role in ("worker", "server", "spare")),
    "worker with others of all",
)


def run_schedule(seed: int, trace: list[str] | None) -> Verdict:
    """The schedule of a seed, for `python -m tests.sim`."""
    outcome = check(seed, trace)
    model = shape_of(random.Random(seed)).consistency.model
    if outcome.gave_up:
        return Verdict(f"{model}: given up, a shard had no holder left", outcome.deaths)
    return Verdict(f"{model}: every update once, no stale read", outcome.deaths)


def check(seed: int, trace: list[str] | None = None) -> Outcome:
    """Run the schedule of a seed. In every other one all rows are gathered as late as those of
    large messages, in every third all updates are passed on as large ones are."""
    late = mock.patch.object(table_shard, "LEAST_BYTES", 0)
    large = mock.patch.object(server_core, "LEAST_BYTES", 0)
    nothing = contextlib.nullcontext()
    with late if seed % 2 else nothing, nothing if seed % 3 else large:
        schedule = Schedule(seed)
        schedule.cluster.trace = trace
        if trace is not None:
            trace.append(str(schedule.shape))
        return schedule.run()
