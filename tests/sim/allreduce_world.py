"""A simulated world for the recovery protocol: processes, communicators, deaths and repairs.

It runs the scripts of `diml.allreduce.recovery` as the engine does, and takes every liberty that
MPI has: a collective may finish on some ranks and fail on others, a broadcast's root runs ahead,
a failure is noticed late. What it grants is what the world grants: one gate for all, and a repair
that everyone living enters and that is done again if someone dies in it. One random generator
draws everything, so a seed is a schedule.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from diml.allreduce.effects import Execute, Gate, Point
from diml.allreduce.log import Log
from diml.allreduce.recovery import Core
from diml.checkpoint.memory import Store
from diml.drill import DrillPlan
from diml.errors import GaveUp, Mismatch
from tests.sim.allreduce_calls import script_of
from tests.sim.allreduce_network import Comm, Process, Violation
from tests.sim.allreduce_program import Begin, Call, Load, Plan, Save, Wish, resized, run
from tests.sim.allreduce_served import learned, serve


class World:
    """One schedule. `play` runs it to its end; checkers hang on the hooks that it calls.

    Args:
        make_core: builds the protocol under test (mutants come in here).
        on_result: told (process, wish, value) of each finished collective.
        on_repair: told when everyone came out of a repair.
        odd: a rank that runs another program than the others.
        served: there are servers, who outlive all ranks (`tests.sim.allreduce_served`).
    """

    def __init__(
        self,
        plan: Plan,
        rng: random.Random,
        *,
        hosts: tuple[str, ...],
        replicas: int,
        budget_bytes: int,
        spares: int,
        shrink: bool = False,
        drills: DrillPlan,
        kills: set[int],
        make_core: Callable[..., Core] = Core,
        on_result: Callable[[Process, Wish, Any], None] = lambda *_: None,
        on_repair: Callable[[], None] = lambda: None,
        trace: list[str] | None = None,
        odd: tuple[int, Plan] | None = None,
        served: bool = False,
    ) -> None:
        self.odd, self.served, self.kept = odd, served, False
        self.plan, self.rng, self.hosts, self.replicas = plan, rng, hosts, replicas
        self.budget_bytes, self.spares, self.shrink = budget_bytes, spares, shrink
        self.origins, self.lost = tuple(range(plan.size)), tuple[int, ...]()
        self.drills, self.kills = drills, kills
        self.make_core, self.on_result, self.on_repair = make_core, on_result, on_repair
        self.trace = trace
        self.deaths: Counter[str] = Counter()
        self.steps = 0
        self.ending: GaveUp | Mismatch | None = None
        self.ready: list[tuple[Process, int]] = []
        self.comm = Comm(plan.size, odd is not None)
        self.processes = [self._process(rank, 0) for rank in range(plan.size)]
        for process in self.processes:
            self._ready(process)

    def _process(self, rank: int, incarnation: int) -> Process:
        core = self.make_core(
            Log(self.budget_bytes), Log(self.budget_bytes), Store(), self.replicas, 4
        )
        core.seat(rank, self.hosts, incarnation, self.origins, self.lost)
        core.stocked = incarnation == 0
        if self.served:
            serve(core)
        return Process(rank, incarnation, core, self._program(rank), self.comm)

    def _program(self, rank: int) -> Any:
        plan = self.odd[1] if self.odd is not None and self.odd[0] == rank else self.plan
        return run(plan, rank)

    # The scheduler ---------------------------------------------------------------------------

    def play(self, steps_max: int) -> None:
        """Run until all are done, a rank gives up, or nobody is left."""
        while self.ending is None and not self._over():
            if all(p.state == "dead" for p in self.processes):
                if not (self.served and self.spares):
                    self.ending = GaveUp("nobody is left")
                    return
                self._repair()
                continue
            if not self.ready and self.odd is not None and not self.comm.revoked:
                # The watchdogs see that all wait and nothing moves.
                self.comm.revoked = True
                self._everyone_may_fail(self.comm)
                continue
            if not self.ready:
                raise Violation(f"stuck: {[(p.rank, p.state, p.effect) for p in self.processes]}")
            self.steps += 1
            if self.steps > steps_max:
                raise Violation(f"no end after {steps_max} steps")
            if self.steps in self.kills:
                self._kill_someone()
                continue
            index = int(self.rng.random() * len(self.ready))
            self.ready[index], self.ready[-1] = self.ready[-1], self.ready[index]
            process, token = self.ready.pop()
            if process.token == token and process.state in ("running", "blocked", "hook"):
                self._turn(process)

    def _over(self) -> bool:
        """Whether the last gate is behind all; who dies after it is missed by nobody."""
        states = {p.state for p in self.processes}
        return "done" in states and states <= {"done", "dead"}

    def _ready(self, process: Process) -> None:
        self.ready.append((process, process.token))

    def _turn(self, process: Process) -> None:
        if process.effect is None:
            self._advance(process, None)
            return
        comm = process.comm
        if comm.able(process) and (not comm.broken or self.rng.random() < 0.5):
            value = comm.value(process)
            process.effect = None
            if process.state == "blocked":
                process.state = "running"
            self._advance(process, value)
        elif comm.broken:
            self._recover(process)

    def _kill_someone(self) -> None:
        living = [p for p in self.processes if p.state not in ("dead", "done")]
        if self.spares and self.rng.random() < 0.15:
            self.spares -= 1
            self._note("idle spare dies")
            self.deaths["idle spare"] += 1
        elif self.served and self.rng.random() < 0.3:
            self.deaths["all workers"] += 1
            for process in living:
                self._kill(process, "with all others")
        elif living:
            process = self.rng.choice(living)
            what = type(process.effect).__name__.lower() if process.effect else "computing"
            self._kill(process, f"at any time: {process.state} {what}")

    def _note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.steps} {text}")

    # One process -----------------------------------------------------------------------------

    def _advance(self, process: Process, value: Any) -> None:
        """Run a process until it waits for something."""
        while process.state not in ("dead", "done", "hooked") and self.ending is None:
            try:
                if process.script is None:
                    if not self._next_wish(process, value):
                        return
                    value = None
                effect = process.script.send(value)
            except StopIteration as end:
                value = self._finished(process, end.value)
                continue
            except (GaveUp, Mismatch) as error:
                self._note(f"rank {process.rank} gives up: {error}")
                self.ending = error
                return
            value = None
            if isinstance(effect, Point):
                self._point(process, effect.name)
            else:
                self._post(process, effect)
                return

    def _next_wish(self, process: Process, answer: Any) -> bool:
        """Fetch the program's next call and begin its script."""
        try:
            process.wish = process.program.send(answer)
            while isinstance(process.wish, Begin):
                self._begin_shift(process, process.wish)
                process.wish = process.program.send(None)
        except StopIteration as end:
            process.outcome = end.value
            process.wish = None
        if isinstance(process.wish, Load):
            process.script = self._script(process)
            return True
        if process.wish is not None:
            self._point(process, "entry")
        if process.state == "dead":
            return False
        process.script = self._script(process)
        return True

    def _begin_shift(self, process: Process, begun: Begin) -> None:
        """As `diml.allreduce.moving` does: posted now if all stand at one place."""
        if not process.core.together:
            return
        comm = process.comm
        comm.begin(process, begun, heard=not comm.broken or self.rng.random() < 0.5)
        for other in self.processes:
            if other.comm is comm and other.state == "blocked" and comm.hears(other, process):
                self._ready(other)

    def _script(self, process: Process) -> Any:
        self.kept = self.kept or isinstance(process.wish, Save)
        return script_of(process.core, process.wish, self.shrink)

    def _finished(self, process: Process, value: Any) -> Any:
        """A script is through: what the program (or the repair) gets."""
        process.script = None
        core, wish = process.core, process.wish
        if process.state == "hook":
            process.state = "hooked"
            self._note(f"rank {process.rank} is restored")
            self._meetings()
            return None
        if isinstance(wish, Call):
            self._note(f"rank {process.rank} finishes {core.sequence - 1} of v{core.version}")
            shifted = value.form == "shift"
            got = int.from_bytes(value.value, "little") if shifted else value.owner
            self.on_result(process, wish, got)
            self._point(process, "after", -1)
            return got
        if wish is None:
            process.state = "done"
            return None
        self.on_result(process, wish, None)
        if isinstance(wish, Load):
            held = core.store.committed
            return (held.version, core.store.model(), held.locals.get(core.origin))
        return None

    def _point(self, process: Process, name: str, offset: int = 0) -> None:
        version, sequence = process.core.coordinates
        at = (process.core.origin, version, sequence + offset, process.incarnation)
        if self.drills.strike(*at, name) is not None:
            self._kill(process, name)

    def _post(self, process: Process, effect: Any) -> None:
        """Make a call; the process waits for its outcome."""
        process.effect = effect
        process.token += 1
        if process.state == "running":
            process.state = "blocked"
        if isinstance(effect, Execute) and self.rng.random() < 0.5:
            # Inside the call, but nothing of it has reached the others.
            self._point(process, "inside")
            if process.state == "dead":
                return
        if isinstance(effect, Gate):
            process.state = "gated"
            self._meetings()
            return
        comm = process.comm
        was_revoked = comm.revoked
        heard = comm.post(process)
        if comm.revoked and not was_revoked:
            self._everyone_may_fail(comm)
        if isinstance(effect, Execute):
            self._point(process, "inside")
        if process.state != "dead" and (comm.broken or comm.able(process)):
            self._ready(process)
        if heard:
            for other in self.processes:
                if other.comm is comm and other.state != "dead" and comm.hears(other, process):
                    self._ready(other)

    # Deaths, gates and repairs ---------------------------------------------------------------

    def _kill(self, process: Process, where: str) -> None:
        self._note(f"rank {process.rank} (life {process.incarnation}) dies: {where}")
        self.deaths[where] += 1
        process.state = "dead"
        process.token += 1
        comm = process.comm
        comm.dead.add(process.rank)
        self._everyone_may_fail(comm)
        self._meetings()

    def _everyone_may_fail(self, comm: Comm) -> None:
        for process in self.processes:
            if process.comm is comm and process.state in ("blocked", "hook"):
                self._ready(process)

    def _recover(self, process: Process) -> None:
        """PeerFailed reaches a process: it revokes and waits for all the others."""
        self._wait(process)
        self._note(f"rank {process.rank} goes to recovery")
        comm = process.comm
        if not comm.revoked:
            comm.revoked = True
            self._everyone_may_fail(comm)
        self._meetings()

    def _wait(self, process: Process) -> None:
        process.script = process.effect = None
        process.token += 1
        process.state = "waiting"

    def _meetings(self) -> None:
        """Whatever the living have now all come to, happens."""
        living = [p for p in self.processes if p.state != "dead"]
        if not living or any(p.state in ("running", "blocked", "hook") for p in living):
            return
        whole = len(living) == len(self.processes)
        states = {p.state for p in living}
        if states == {"gated"}:
            self._note(f"the gate {'opens' if whole else 'stays shut'}")
        if states == {"gated"} and whole:
            for process in living:
                process.token += 1
                process.effect = None
                process.state = "running"
                process.caught_up = True
                self._ready(process)
        elif states == {"hooked"} and whole:
            self._note("the world is whole")
            self.on_repair()
            for process in living:
                process.state = "running"
                process.token += 1
                fresh = process.wish is None and process.outcome is None
                if process.core.restart or fresh:
                    self._begin(process)
                else:
                    process.script = self._script(process)
                self._ready(process)
        elif "done" not in states:
            for process in living:
                self._wait(process)
            self._repair()

    def _give_up_seats(self) -> None:
        """Go on without the dead for whom there is no spare; the later ranks move up."""
        dead = [p.rank for p in self.processes if p.state == "dead"]
        gone = dead[self.spares :]
        if not self.shrink or not gone or len(gone) == len(self.processes):
            return
        kept = [rank for rank in range(len(self.processes)) if rank not in gone]
        self.lost += tuple(self.origins[rank] for rank in gone)
        self.origins = tuple(self.origins[rank] for rank in kept)
        self.hosts = tuple(self.hosts[rank] for rank in kept)
        self.processes = [self.processes[rank] for rank in kept]
        self.plan = resized(self.plan, len(kept))
        for rank, process in enumerate(self.processes):
            process.rank = rank
            process.core.seat(rank, self.hosts, process.incarnation, self.origins, self.lost)
        self._note(f"going on without {gone}")

    def _begin(self, process: Process) -> None:
        """Start the program: a newcomer's, or that of a rank which is told of fewer ranks."""
        process.caught_up = process.caught_up or process.core.restart
        process.core.restart = False
        process.program = self._program(process.rank)
        process.wish = process.script = None

    def _repair(self) -> None:
        """Fill the seats and let the hooks run."""
        self._give_up_seats()
        self.comm = Comm(self.plan.size, self.odd is not None)
        for index, process in enumerate(self.processes):
            if process.state == "dead":
                if self.spares == 0:
                    self.ending = GaveUp("no spare is left")
                    return
                self.spares -= 1
                if self.rng.random() < 0.3:
                    # The spare sits on another host than the dead one.
                    hosts = [*self.hosts]
                    hosts[index] = f"host{self.rng.randrange(3)}"
                    self.hosts = tuple(hosts)
                self.processes[index] = self._process(process.rank, process.incarnation + 1)
        self._note("repair")
        if self.served and (lost := learned(self.kept, self.processes)):
            self.ending = lost
            return
        for rank, process in enumerate(self.processes):
            process.core.seat(rank, self.hosts, process.incarnation, self.origins, self.lost)
            process.comm, process.slot = self.comm, -1
            process.used = process.begun = 0
            process.state = "hook"
            process.script = process.core.refresh()
            process.token += 1
            self._ready(process)
