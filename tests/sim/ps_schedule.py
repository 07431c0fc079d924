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
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from diml.errors import GaveUp
from diml.ps import table_shard
from diml.ps.consistency import Consistency, parse_consistency
from diml.ps.message import Address
from diml.ps.recovery import DEATHS_MAX
from diml.ps.tables import TableSpec
from tests.sim.ps_cluster import Cluster, Steps, Worker
from tests.sim.registry import Verdict

STEPS_MAX = 20_000


class Failure(AssertionError):
    """A checker's verdict; the message repeats the seed."""


@dataclass(frozen=True)
class Shape:
    """What a seed draws: sizes, model, and how often processes die."""

    workers: int
    servers: int
    spares: int
    replicas: int
    consistency: Consistency
    clocks: int
    rows: int
    kills: int
    interrupt: float
    on_wire: bool
    cache_rows: int | None
    sparse: bool
    durable: bool
    neighbours: bool


def shape_of(rng: random.Random) -> Shape:
    """Draw a run; whole kinds of trouble are absent in some of them."""
    staleness = rng.choice((0, 0, 0, 1, 2, 4))
    models = (None, None, None, "asp") if staleness == 0 else (None, f"essp({staleness})")
    model = rng.choice(models)
    spares = rng.choice((0, 1, 2, 3, 5))
    return Shape(
        workers=rng.randint(1, 3),
        servers=rng.choice((1, 1, 2, 3, 4)),
        spares=spares,
        replicas=rng.choice((0, 1, 1, 1, 2)),
        consistency=parse_consistency(model, 0 if model else staleness),
        clocks=rng.randint(1, 5),
        rows=rng.randint(4, 9),
        kills=rng.randint(0, 3) if spares else 0,
        interrupt=rng.choice((0.0, 0.0, 0.05)),
        on_wire=rng.random() < 0.1,
        cache_rows=rng.choice((None, None, 0, 3)),
        sparse=rng.random() < 0.3,
        durable=rng.random() < 0.3,
        neighbours=rng.random() < 0.5,
    )


@dataclass
class Outcome:
    """What a run came to."""

    model: NDArray[np.float32] | None
    deaths: Counter[str] = field(default_factory=Counter)
    gave_up: bool = False


class Schedule:
    """A seeded run. `deadly=False` is the run without deaths that bits are compared with."""

    def __init__(self, seed: int, deadly: bool = True) -> None:
        self.seed = seed
        shape = self.shape = shape_of(random.Random(seed))
        self.rng = random.Random(f"{seed} {deadly}")
        # In some schedules it is all workers that die, all at once.
        self.all_at_once = random.Random(f"{seed} workers at once").random() < 0.2
        self.kills = shape.kills if deadly else 0
        interrupt = shape.interrupt if deadly else 0.0
        self.interrupt = interrupt
        self.cluster = Cluster(
            self.rng, shape.workers, shape.servers, shape.spares, shape.replicas,
            shape.consistency, shape.on_wire, shape.cache_rows,
            shape.neighbours, random.Random(f"{seed} by bytes").random() < 0.5,
        )  # fmt: skip
        self.count = TableSpec(
            "count", shape.rows, shape.workers, "int32", seed=seed, sparse=shape.sparse
        )
        self.model = TableSpec("model", shape.rows, 3, "float32", ("uniform", 0, 1), seed)
        self.touched = self._draw_touched()
        self.sums = np.zeros((shape.workers, shape.clocks + 1, shape.rows), np.int64)
        for worker, clock in np.ndindex(shape.workers, shape.clocks):
            np.add.at(self.sums[worker, clock], self.touched[worker][clock], 1)
        self.sums = np.cumsum(self.sums, axis=1) - self.sums
        # Clocks that any life of a worker has begun, hence may have sent.
        self.begun = [0] * shape.workers
        self.final: NDArray[np.float32] | None = None

    def _draw_touched(self) -> list[list[NDArray[np.int64]]]:
        """Rows that each worker counts in each clock: the same in every life."""
        rng = np.random.default_rng(self.seed)
        shape = self.shape
        return [
            [rng.integers(0, shape.rows, rng.integers(0, 6)) for _ in range(shape.clocks)]
            for _ in range(shape.workers)
        ]

    # The program -----------------------------------------------------------------------------

    def worker(self, number: int) -> Worker:
        worker = Worker(self.cluster, number)
        worker.steps = self._program(worker)
        return worker

    def _program(self, worker: Worker) -> Steps:
        local = yield from worker.open()
        mine = np.zeros(3, np.float32) if local is None else local.view(np.float32).copy()
        yield from worker.define(self.count)
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
        self._judge_reads(worker, everything, counts, 0, None)
        if not np.array_equal(counts.T, self.sums[:, -1]):
            raise Failure(f"seed {self.seed}: counts {counts.T} are not {self.sums[:, -1]}")
        self.final = (yield from worker.get(self.model, everything)).copy()
        worker.finished = True

    def _one_clock(self, worker: Worker, clock: int, mine: NDArray[np.float32]) -> Steps:
        """Count the drawn rows in two calls; move the model by what was read of it."""
        touched = self.touched[worker.number][clock]
        ids = np.unique(np.concatenate([touched, [clock % self.shape.rows]]))
        rows = yield from worker.get(self.model, ids)
        mine += rows.sum(axis=0)
        worker.update(self.model, ids, np.float32(0.1) * rows - np.float32(0.01) * mine)
        half = len(touched) // 2
        own = np.zeros((len(touched), self.shape.workers), np.int32)
        own[:, worker.number] = 1
        if half:
            worker.update(self.count, touched[:half], own[:half])
        if clock % 2:
            counts = yield from worker.get(self.count, ids[::-1].copy())
            self._judge_reads(worker, ids[::-1], counts, clock, touched[:half])
        if len(touched) > half:
            worker.update(self.count, touched[half:], own[half:])

    # The judge -------------------------------------------------------------------------------

    def _judge_reads(
        self, worker: Worker, ids: NDArray[np.int64], counts: NDArray[np.int32], clock: int,
        pending: NDArray[np.int64] | None,
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
                np.add.at(own, pending if pending is not None else [], 1)
                least = self.sums[other, clock][ids] + own[ids]
                # A former life may have sent what this one still holds back.
                most = most + own[ids]
            seen = counts[:, other]
            if (seen < least).any() or (seen > most).any():
                raise Failure(
                    f"seed {self.seed}: worker {worker.number} at clock {clock} read of worker "
                    f"{other} {seen}, not within {least} and {most}"
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
            return Outcome(None, Counter(cluster.deaths), gave_up=True)
        self._judge_snapshots()
        workers = [process.worker for process in cluster.seats.values() if process.worker]
        if not all(worker.finished for worker in workers):
            raise Failure(f"seed {self.seed}: nothing moves and not all have finished")
        return Outcome(self.final, Counter(cluster.deaths))

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
        if self.kills and rng.random() < 0.02:
            self._kill()
            return True
        moves = cluster.channels
        if moves and rng.random() < 0.7:
            cluster.deliver(rng.choice(list(moves)))
            return True
        if rng.random() < 0.2 and cluster.look_somewhere():
            return True
        flushes = [
            place for place, process in cluster.seats.items()
            if process.node.server is not None and not process.node.server.idle
        ]  # fmt: skip
        if flushes and rng.random() < 0.5:
            cluster.flush(rng.choice(flushes))
            return True
        runnable = [p.worker for p in cluster.seats.values() if p.worker and not p.worker.finished]
        if runnable:
            worker = rng.choice(runnable)
            if rng.random() * cluster.slowness[worker.number] < 1:
                next(worker.steps, None)
        return bool(moves or runnable or flushes)

    def _kill(self) -> None:
        """One to three deaths at once, or those of all workers, as far as there are spares for
        the seats."""
        cluster = self.cluster
        self.kills -= 1
        workers = [place for place in sorted(cluster.seats) if place.role == "worker"]
        if self.all_at_once and not self._too_many(workers):
            cluster.kill(workers, "of all")
            cluster.repair(self.worker, self.interrupt)
            return
        count = min(self.rng.choice((1, 1, 1, 2, 3)), len(cluster.seats))
        victims = self.rng.sample(sorted(cluster.seats), count)
        while victims and self._too_many(victims):
            victims.pop()
        if victims:
            cluster.kill(victims, "at work")
            cluster.repair(self.worker, self.interrupt)

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
    shape = shape_of(random.Random(seed))
    model = shape.consistency.model
    if outcome.gave_up:
        return Verdict(f"{model}: given up, a shard had no holder left", outcome.deaths)
    return Verdict(f"{model}: every update once, no stale read", outcome.deaths)


def check(seed: int, trace: list[str] | None = None) -> Outcome:
    """Run the schedule of a seed, and where clocks are transactions compare bits with its twin.
    In every other one all rows are gathered as late as those of large messages."""
    late = mock.patch.object(table_shard, "LEAST_BYTES", 0)
    with late if seed % 2 else contextlib.nullcontext():
        return _check(seed, trace)


def _check(seed: int, trace: list[str] | None) -> Outcome:
    schedule = Schedule(seed)
    schedule.cluster.trace = trace
    if trace is not None:
        trace.append(str(schedule.shape))
    outcome = schedule.run()
    if schedule.shape.consistency.buffered and outcome.model is not None:
        twin = Schedule(seed, deadly=False).run()
        assert twin.model is not None
        if outcome.model.tobytes() != twin.model.tobytes():
            raise Failure(f"seed {seed}: the bits differ from those of the run without deaths")
    return outcome
