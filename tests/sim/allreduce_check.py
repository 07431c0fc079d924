"""Schedules of the recovery protocol: drawn from a seed, run, and checked against the twin.

The promises, checked in every schedule: the result of a (stage, version, sequence) is the twin's
on every rank; a version never goes back; after a repair all loaded ranks stand at one version and
every local state has all its holders; the final states are the twin's; and the run ends, unless
more ranks were lost at once than there are replicas, or no spare is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diml.allreduce.operation import Kind
from diml.allreduce.recovery import Core
from diml.drill import POINTS, Drill, DrillPlan
from tests.sim.allreduce_network import Process, Violation
from tests.sim.allreduce_program import (
    OPS,
    Call,
    Load,
    Op,
    Plan,
    Save,
    Wish,
    beside_servers,
    random_plan,
    twin,
)  # fmt: skip
from tests.sim.allreduce_world import World
from tests.sim.registry import Verdict


class Checker:
    """Watches a world and raises Violation."""

    def __init__(self, plan: Plan, replicas: int) -> None:
        self.plan = plan
        self.replicas = replicas
        self.saves: dict[int, tuple[int, dict[int, int | None]]] = {}
        self._expect(tuple(range(plan.size)))
        self.world: World | None = None
        self._versions: dict[tuple[int, int], int] = {}
        self._newest = 0

    def _expect(
        self, origins: tuple[int, ...], start: tuple[int, Any, list[Any]] | None = None
    ) -> None:
        """Take the twin's values for these ranks, from this start on, for right."""
        given = twin(self.plan, start)
        self.results = given.results
        self.finals = dict(zip(origins, given.finals, strict=True))
        for version, (model, locals_) in given.saves.items():
            self.saves[version] = (model, dict(zip(origins, locals_, strict=True)))

    def on_result(self, process: Process, wish: Wish, value: Any) -> None:
        """A rank has finished a call."""
        core = process.core
        life = (core.origin, process.incarnation)
        if core.version < self._versions.get(life, 0):
            raise Violation(f"rank {process.rank} went back to version {core.version}")
        self._versions[life] = core.version
        self._newest = max(self._newest, core.version)
        if isinstance(wish, Call):
            key = (2, core.version, core.sequence - 1) if core.loaded else (0, 0, core.sequence - 1)
            if self.results[key][process.rank] != value:
                raise Violation(f"rank {process.rank} got a wrong result at {key}")
        elif isinstance(wish, Load):
            newest = max(p.core.version for p in self._living() if p.core.loaded)
            if core.version != newest or newest < self._newest:
                raise Violation(f"rank {process.rank} loads {core.version} instead of {newest}")
        elif isinstance(wish, Save) and core.version > len(self.plan.versions):
            raise Violation("a version too many")

    def on_repair(self) -> None:
        """Everyone came out of a repair: checkpoints are whole or absent."""
        living = self._living()
        versions = {p.core.version for p in living}
        if len(versions) != 1:
            raise Violation(f"ranks stand at versions {sorted(versions)} after a repair")
        if any(p.core.restart for p in living):
            self._on_fewer(living)
        if not living[0].core.store.committed.uses_local:
            return
        for process in living:
            core = process.core
            for owner in core.ring.held_by(process.rank):
                if core.origins[owner] not in core.store.committed.locals:
                    raise Violation(f"rank {process.rank} lacks its copy of the state of {owner}")

    def _on_fewer(self, living: list[Process]) -> None:
        """The ranks have become fewer: nothing of the version is lost, and all begin with it."""
        assert self.world is not None
        self.plan = self.world.plan
        first = living[0].core
        if any(p.core.loaded or p.core.recovering or p.core.sequence for p in living):
            raise Violation("a rank has not begun anew")
        if sorted(o for p in living for o in p.core.inherits) != sorted(first.orphans):
            raise Violation("a lost rank's state is not given to one rank")
        own = [p.core.store.committed.locals.get(p.core.origin) for p in living]
        model = first.store.model()
        if first.version > 0:
            saved_model, saved = self.saves[first.version]
            held = {p.core.origin: local for p, local in zip(living, own, strict=True)}
            for process in living:
                locals_ = process.core.store.committed.locals
                held.update({origin: locals_[origin] for origin in process.core.inherits})
            if model != saved_model or any(saved[origin] != held[origin] for origin in held):
                raise Violation(f"version {first.version} is not what was saved")
        self._expect(self.world.origins, (first.version, model, own))

    def at_end(self) -> str:
        """The run is over: was the end right? Returns how it ended."""
        world = self.world
        assert world is not None
        if world.ending is None:
            for process in world.processes:
                if process.state == "done" and process.outcome != self.finals[process.core.origin]:
                    raise Violation(f"rank {process.rank} ends with a wrong state")
            return "finished with fewer ranks" if world.lost else "finished"
        text = str(world.ending)
        if "times in a row" in text:
            return "gave up: a rank died again and again at one place"
        if "all state" in text and world.served and not world.kept:
            raise Violation(f"gave up though nothing was committed: {text}")
        if "spare" in text or "nobody" in text or "had left" in text:
            return text
        behind = [p for p in world.processes if p.state == "dead" or not p.caught_up]
        witnesses = [p for p in self._living() if p.core.loaded]
        forgetful = any(p.core.boot.forgotten or p.core.steps.forgotten for p in witnesses)
        lost = len(behind) + len(world.lost)
        if witnesses and lost <= self.replicas and not forgetful:
            raise Violation(f"gave up with {lost} ranks behind: {text}")
        return "gave up: more was lost than there are copies"

    def _living(self) -> list[Process]:
        assert self.world is not None
        return [p for p in self.world.processes if p.state != "dead"]


def draw_drills(rng: random.Random, plan: Plan, points: tuple[str, ...], count: int) -> DrillPlan:
    """Deaths at coordinates that the program passes (if it lives to see them)."""
    stages = [(0, len(plan.boot)), *((v, len(ops)) for v, (ops, _) in enumerate(plan.versions))]
    stages.append((len(plan.versions), len(plan.tail)))
    drills = []
    for _ in range(count):
        version, length = rng.choice(stages)
        lives = rng.choice((0, 0, 0, 1, 1, 2))
        rank, point = rng.randrange(plan.size), rng.choice(points)
        drills.append(Drill(rank, version, rng.randint(0, length), lives, point))
        if rng.random() < 0.3 and plan.size > 1:
            # A neighbour goes at the same place.
            other = (rank + 1) % plan.size
            drills.append(Drill(other, version, drills[-1].sequence, lives, point))
    return DrillPlan(drills)


def run_schedule(
    seed: int, trace: list[str] | None = None, make_core: Callable[..., Core] = Core
) -> Verdict:
    """Run the schedule of a seed. Raises Violation if a promise is broken."""
    rng = random.Random(seed)
    size = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 8))
    plan = random_plan(rng, size)
    replicas = rng.choice((0, 1, 2, 2, 3))
    hosts = tuple(f"host{rng.randrange(rng.choice((1, 2, 3)))}" for _ in range(size))
    # A swarm: each schedule knows only some of the ways to die.
    points = tuple(rng.sample(POINTS, rng.randint(1, len(POINTS))))
    drills = draw_drills(rng, plan, points, rng.choice((0, 1, 2, 3, 5)))
    kills = {rng.randint(1, 60 * size) for _ in range(rng.choice((0, 0, 1, 2, 4)))}
    served = random.Random(f"{seed} served").random() < 0.25
    if served:
        plan = beside_servers(plan)
    checker = Checker(plan, replicas)
    world = World(
        plan,
        rng,
        hosts=hosts,
        replicas=replicas,
        budget_bytes=rng.choice((16, 32, 1 << 30)),
        spares=rng.choice((1, 3, 100)),
        shrink=rng.random() < 0.2 and not served,
        drills=drills,
        kills=kills,
        make_core=make_core,
        on_result=checker.on_result,
        on_repair=checker.on_repair,
        trace=trace,
        served=served,
    )
    checker.world = world
    world.play(steps_max=4000 * size)
    return Verdict(checker.at_end(), world.deaths)


def odd_one(rng: random.Random, plan: Plan) -> tuple[Plan, int]:
    """The program with one call changed, added or left out; and in which version that is."""
    parts = [list(ops) for ops, _ in plan.versions]
    version = rng.randrange(len(parts))
    ops = parts[version]
    place = rng.randint(0, len(ops))
    if place == len(ops) or rng.random() < 0.3:
        ops.insert(place, Op(rng.choice(OPS), 0))
    elif rng.random() < 0.5:
        del ops[place]
    elif ops[place].kind is Kind.BROADCAST:
        ops[place] = Op(Kind.BROADCAST, (ops[place].root + 1) % plan.size)
    else:
        ops[place] = Op(Kind.BROADCAST, ops[place].root)
    modes = [mode for _, mode in plan.versions]
    versions = tuple((tuple(ops), mode) for ops, mode in zip(parts, modes, strict=True))
    return replace(plan, versions=versions), version


def run_divergence(seed: int, trace: list[str] | None = None) -> str:
    """A schedule in which one rank runs another program. Raises Violation unless that is said
    before the version in question is committed."""
    rng = random.Random(seed)
    plan = random_plan(rng, rng.choice((2, 3, 4, 5)))
    if not plan.versions:
        plan = replace(plan, versions=(((Op(Kind.ALLREDUCE),), "global"),))
    odd, version = odd_one(rng, plan)
    began: dict[int, int] = {}

    def note(process: Process, wish: Wish, value: Any) -> None:
        if isinstance(wish, Load):
            began[process.rank] = process.core.version

    world = World(
        plan,
        rng,
        hosts=("host",) * plan.size,
        replicas=plan.size - 1,
        budget_bytes=1 << 30,
        spares=100,
        drills=draw_drills(rng, plan, POINTS, rng.choice((0, 0, 1, 2))),
        kills=set(),
        trace=trace,
        on_result=note,
        odd=(rank := rng.randrange(plan.size), odd),
    )
    world.play(steps_max=4000 * plan.size)
    newest = max(process.core.version for process in world.processes)
    if began.get(rank, 0) > version:
        return "the odd one died there, and was brought past it"
    if newest > version:
        raise Violation(f"version {newest} was committed behind a divergence in {version}")
    if world.ending is None:
        raise Violation("the divergence was not noticed")
    return str(world.ending)


class _Meter(World):
    """Counts traffic from the death on."""

    def _kill(self, process: Process, where: str) -> None:
        for other in self.processes:
            other.messages = other.bytes = 0
        super()._kill(process, where)


def scale(sizes: tuple[int, ...] = (16, 64, 256, 1024)) -> list[str]:
    """Traffic of the busiest rank from one death to the end of the program, by world size.

    States and results count 64 bytes each, so that what grows is the protocol's own.
    """
    lines = ["ranks   messages   bytes   messages / log2(ranks)   (busiest rank, one death)"]
    call, last = Op(Kind.ALLREDUCE), Op(Kind.BROADCAST)
    for size in sizes:
        plan = Plan(size, (call,), (((call, last), "local"), ((call, last, call), "local")), ())
        checker = Checker(plan, 2)
        world = _Meter(
            plan,
            random.Random(size),
            hosts=("host",) * size,
            replicas=2,
            budget_bytes=1 << 30,
            spares=1,
            drills=DrillPlan([Drill(size // 2, 1, 2, 0)]),
            kills=set(),
            on_result=checker.on_result,
            on_repair=checker.on_repair,
        )
        checker.world = world
        world.play(steps_max=100_000 * size)
        if checker.at_end() != "finished" or not world.deaths:
            raise Violation(f"a world of {size} ranks did not recover")
        messages = max(p.messages for p in world.processes)
        ratio = messages / (size - 1).bit_length()
        most = max(p.bytes for p in world.processes)
        lines.append(f"{size:5d} {messages:10d} {most:7d} {ratio:17.1f}")
    return lines
