"""What a model-parallel program supplies, and the loop that runs it: schedule, push, pull.

    class Means(Program):                                  # a program of your own
        variables = 1000
        def push(self, block): return self.rows[:, block].sum(axis=0)      # this worker's part
        def pull(self, block, total): self.mean[block] = total / self.n    # from all workers
        def finished(self): return self.rounds >= 100

    diml.strads.run(job, Means(...), policy="cyclic")

In each round the policy picks a block of variables that may be updated together, `push` computes
this worker's part of the update from its own data, the parts are combined (summed, or gathered in
rank order), and `pull` applies the result. All workers run the same schedule: the policy is pure,
seeded, and fed with combined results only, so there is no scheduler whose death loses anything.

Owns the interface and the loop. Must not know what is learned, nor how collectives recover.
Invariants: whatever steers the schedule is the same on all workers; all state that outlives a
round is in `model()`; a checkpoint comes after a fixed amount of work, never after a time, so
that a run with deaths takes the same steps as one without.
"""

from __future__ import annotations

import time
from collections import deque
from copy import deepcopy
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diml.checkpoint.parts import Part, Parts
from diml.errors import Misuse
from diml.strads.dispatch import Segment, run_segment
from diml.strads.policy import Policy, policy_by_name, scheduled

Integers = NDArray[np.int64]

_NONE = np.empty(0, np.int64)


class Collectives(Protocol):
    """The part of a job that a model-parallel program uses (`diml.init()`, or `Alone`)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def parts(self) -> Parts: ...
    def allreduce(self, array: NDArray[Any], op: str = "sum") -> NDArray[Any]: ...
    def allgather(self, value: Any) -> Any: ...
    def broadcast(self, value: Any, root: int = 0) -> Any: ...
    def checkpoint(self, model: Any, local: Any = None, lazy: bool = False) -> None: ...
    def load_checkpoint(self) -> tuple[int, Any, Any]: ...


class Alone:
    """A job of one worker that needs no MPI: what estimators run on outside mpirun."""

    rank = 0
    size = 1
    version = 0

    def __init__(self) -> None:
        self.parts = Parts(self, outlived=False)

    def allreduce(self, array: NDArray[Any], op: str = "sum") -> NDArray[Any]:
        return array

    def allgather(self, value: Any) -> Any:
        return value if isinstance(value, np.ndarray) else [value]

    def broadcast(self, value: Any, root: int = 0) -> Any:
        return value

    def checkpoint(self, model: Any, local: Any = None, lazy: bool = False) -> None:
        self.version += 1

    def load_checkpoint(self) -> tuple[int, Any, Any]:
        return 0, None, None


class Program:
    """Base of model-parallel programs. `push` and `pull` are required, the rest has defaults.

    Attributes:
        variables: how many variables the model has; blocks are made of 0 … variables − 1.
        job: the job it runs in; set by the loop before `start`.
        combine: "sum" (parts are added) or "gather" (concatenated in rank order).
        whole: whether one worker's `push` is the whole result of a block, its data being
            replicated. Then blocks go to whoever is free, and no worker waits for another.
        rounds: rounds done; kept by the loop.
        work: work done in any unit that is the same on all workers; by default, blocks' sizes.
        now: the time (seconds, as `time.time` counts) at the latest question `finished`. Where a
            worker asks by itself (`whole`), it is worker 0's time on all of them.
    """

    variables: int
    job: Collectives
    combine = "sum"
    whole = False
    rounds = 0
    work = 0
    now = 0.0

    def start(self, saved: dict[str, Any] | None) -> None:
        """Prepare to run; `saved` is what `model()` gave at the last checkpoint, else None.

        Called again after every checkpoint, on all workers, with what was saved: anything that is
        not in it must be made anew here, so that a replacement stands where the others stand.
        """

    def schedule(self, policy: Policy) -> Integers | None:
        """The next block, the same on all workers; None ends the run. By default the policy's."""
        return policy.next_block(self)

    def push(self, block: Integers) -> NDArray[Any]:
        """This worker's part of the update of `block`, variables (k,): an array of any shape, the
        same on all workers, to be summed over them."""
        raise NotImplementedError(f"{type(self).__name__} has no push")

    def pull(self, block: Integers, result: NDArray[Any]) -> Any:
        """Apply the combined result, of the shape that `push` gave. May return how far each
        variable moved, (len(block),)."""
        raise NotImplementedError(f"{type(self).__name__} has no pull")

    def correlations(self, candidates: Integers) -> NDArray[np.float64]:
        """(k, k) |correlation| of k variables, for policies that avoid dependent ones. Raises
        Misuse where the program has none."""
        raise Misuse(f"{type(self).__name__} tells no correlations: choose another policy")

    def support(self) -> Integers:
        """The variables that are not zero, rising. For policies that grow a working set. Raises
        Misuse where the program has none."""
        raise Misuse(f"{type(self).__name__} tells no support: choose another policy")

    def violations(self, most: int) -> tuple[Integers, NDArray[np.float64]]:
        """(other variables that violate optimality, by how much each); the worst `most` of them
        must be there. For policies that grow a working set. Raises Misuse where the program has
        none."""
        raise Misuse(f"{type(self).__name__} tells no violations: choose another policy")

    def finished(self) -> bool:
        """Whether to stop; asked before every round, the same answer on all workers."""
        return False

    def model(self) -> dict[str, Any]:
        """All that a replacement needs to go on: what may go into a checkpoint, nothing else."""
        return {}

    def outcome(self) -> dict[str, Any]:
        """What a replacement needs of a run that is over, when the job has gone on since."""
        return self.model()

    def recall(self, outcome: dict[str, Any]) -> None:
        """Be as after the run that gave `outcome`. Must not call collectives: others do not."""
        self.start(outcome)


def run(
    job: Collectives,
    program: Program,
    *,
    policy: str | Policy = "working-set",
    pipeline: int = 0,
    checkpoint_work: int = 2_000_000_000,
    name: str = "",
) -> None:
    """Run `program` to its end. Called by all workers of the job.

    Its checkpoints are those of a part of the job (`job.parts`), so one job may run several
    programs and keep state of its own beside them.

    Args:
        policy: a name (`diml.strads.policy.POLICIES`) or an object.
        pipeline: how many blocks may be in flight when the next one is picked and pushed: a block
            is computed from a model that lacks the latest `pipeline` results, as in STRADS. Blocks
            in flight share no variable, and under priority+dependency no correlated ones. Blocks
            overlap in time where a worker computes a whole one (`whole`); where each needs all
            workers they go one after the other, and the pipeline is that delay alone.
        checkpoint_work: checkpoint whenever `program.work` has grown by this much.
        name: of its part in the job's state; by default its number among the job's parts.

    Raises:
        Misuse: no such policy, or one that the program cannot serve, or a working set (whose
            blocks each need the result of the one before) with a pipeline, or a block that is not
            distinct variables of the program.
    """
    if isinstance(policy, str):
        policy = policy_by_name(policy, program.variables)
    if pipeline and policy.update == "solve":
        raise Misuse("--pipeline goes with the published policies, not with working-set")
    part = job.parts.part(name)
    if part.finished:
        program.rounds, program.work = part.outcome["rounds"], part.outcome["work"]
        program.recall(part.outcome["program"])
        return
    if program.whole and job.size > 1:
        program.job = Alone()
        _run_dispatched(job, program, policy, Segment(pipeline, checkpoint_work), part)
    else:
        program.job = job
        _run_together(job, program, policy, Segment(pipeline, checkpoint_work), part)
    part.finish({"program": program.outcome(), "rounds": program.rounds, "work": program.work})


def _run_together(
    job: Collectives, program: Program, policy: Policy, segment: Segment, part: Part
) -> None:
    """All workers push each block."""
    _start(program, policy, part.saved)
    marked = program.work
    flight: deque[tuple[Integers, NDArray[Any]]] = deque()
    while not _finished(program):
        policy.in_flight = np.concatenate([_NONE, *(block for block, _ in flight)])
        block = scheduled(program, policy)
        if block is None:
            break
        mine = program.push(block)
        result = job.allreduce(mine, "sum") if program.combine == "sum" else job.allgather(mine)
        flight.append((block, result))
        program.rounds += 1
        if len(flight) > segment.pipeline:
            _pull(program, policy, flight)
        if program.work - marked >= segment.work:
            while flight:
                _pull(program, policy, flight)
            marked = program.work
            part.checkpoint(_state(program, policy))
            _start(program, policy, part.saved)


def _run_dispatched(
    job: Collectives, program: Program, policy: Policy, segment: Segment, part: Part
) -> None:
    """Each block goes to the next worker that is free; see `diml.strads.dispatch`."""
    saved = part.saved
    if saved is None:
        _start(program, policy, None)
        # Worker 0's on all: each has begun by its own clock.
        saved = job.allgather(_state(program, policy) if job.rank == 0 else None)[0]
    while True:
        begin = partial(_start, program, policy, saved)
        saved, finished = run_segment(
            job, program, policy, segment, begin, partial(_state, program, policy)
        )
        if finished:
            break
        part.checkpoint(saved)
    _start(program, policy, saved)


def _finished(program: Program) -> bool:
    program.now = time.time()
    return program.finished()


def _state(program: Program, policy: Policy) -> dict[str, Any]:
    return {
        "program": program.model(),
        "policy": policy.state(),
        "rounds": program.rounds,
        "work": program.work,
    }


def _pull(program: Program, policy: Policy, flight: deque[tuple[Integers, NDArray[Any]]]) -> None:
    block, result = flight.popleft()
    policy.moved(block, program.pull(block, result))


def _start(program: Program, policy: Policy, saved: Any) -> None:
    if saved is not None:
        program.rounds = saved["rounds"]
        program.work = saved["work"]
        policy.restore(saved["policy"])
    # A copy: after a death a segment begins again with what was saved, as it was.
    program.start(None if saved is None else deepcopy(saved["program"]))
