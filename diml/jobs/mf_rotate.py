"""Matrix factorization by rotation: blocks of R travel round the ring of workers.

Owns what a worker does in an iteration, and its part of a checkpoint. Must not know files, flags
or MPI: it talks to `job` only. Columns are dealt out in c blocks for each of P workers; in turn t
worker p trains on block (p c + t) mod P c and gives it to worker p - 1. So no two workers ever hold
one row of L or of R, and an iteration is what one worker would do in some order of the entries:
serializable, the same bits for one seed and number of workers. (Gemulla et al. 2011, DSGD; Kim et
al. 2016, STRADS.) A block is needed c turns after it was given away: with c = 2 it travels while
both train on another one, and a worker waits only for one that is a whole turn behind.

After every iteration all blocks are where they began, and that is when a checkpoint is made, where
it is worth its time (`kept_every`): evaluations are its global state, rows of L and the blocks at
hand each worker's own.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diml.data.memory import aligned
from diml.errors import Misuse
from diml.jobs.account import Account
from diml.jobs.mf_data import Block, Facts, Share
from diml.jobs.mf_evaluation import HALVINGS_MAX, Evaluation, Goal, too_large
from diml.jobs.mf_model import Columns, Model, Rule, Sums, meeting, start_of_right

Floats = npt.NDArray[np.float32]
# Of a worker's state, what all workers have alike, or nearly so.
_COMMON = ("halvings", "origin", "eval_seconds", "now")

# Seconds: to keep a byte here and with the next worker, and to update one number of L and of R.
_KEPT_S, _UPDATE_S = 2.5e-9, 0.5e-9
_SMALL_BYTES = 1 << 20


# Blocks of columns that a worker has at the start of an iteration.
_BLOCKS_EACH = 2


class Moving(Protocol):
    """A block on its way."""

    def wait(self) -> Any: ...


class Ring(Protocol):
    """What rotation needs of a job (`diml.Job`)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    def load_checkpoint(self, any_workers: bool = False) -> tuple[int, Any, Any]: ...
    def checkpoint(self, model: Any, local: Any) -> None: ...
    def shift(self, value: Any, by: int = 1) -> Any: ...
    def start_shift(self, array: Any, by: int = 1) -> Moving: ...
    def allreduce(self, array: Any) -> Any: ...
    def event(self, what: str, **fields: Any) -> None: ...


@dataclass(frozen=True)
class Passes:
    """How long it goes. With `auto_step` every iteration is evaluated."""

    iterations: int
    eval_every: int = 1
    goal: Goal = field(default_factory=Goal)
    auto_step: bool = False

    def evaluated(self, iteration: int) -> bool:
        """Whether an iteration (1-based) is evaluated."""
        return self.auto_step or iteration % self.eval_every == 0 or iteration == self.iterations


def kept_every(facts: Facts, rule: Rule, workers: int) -> int:
    """Iterations between two checkpoints: one where they cost at most 3 % of an iteration.

    Small states are kept every time, and no more than 8 iterations are ever done again. From sizes
    alone, so that all workers agree, with what a byte kept and an update cost on today's machines.
    """
    width = 4 * (rule.k + 2)
    kept = width * (facts.n_rows + facts.n_cols) / workers
    work_s = facts.train_entries / workers * rule.k * _UPDATE_S
    if kept < _SMALL_BYTES or workers == 1:
        return 1
    return min(max(math.ceil(kept * _KEPT_S / (0.03 * work_s)), 1), 8)


def blocks_of(workers: int, most: int) -> int:
    """Into how many blocks columns are cut; `most` is how many they can be cut into."""
    return workers * _BLOCKS_EACH if 1 < workers <= most // _BLOCKS_EACH else workers


class Rotation:
    """One worker's training.

    Attributes:
        evaluations: so far, the same on all workers.
        ended: why training ended early, or empty.
        account: of this worker's work.
    """

    def __init__(
        self,
        job: Ring,
        facts: Facts,
        share: Share,
        rule: Rule,
        passes: Passes,
        origin: float,
        threads: int = 1,
    ) -> None:
        """`share` has as many blocks as `blocks_of` says, which list all their columns; `origin` is
        the wall-clock time (s since the epoch) from which `seconds` counts; `threads` compute
        together."""
        self._job, self._facts, self._share = job, facts, share
        self._rule, self._passes = rule, passes
        self._model = Model(rule, share, facts.mean, facts.n_rows, threads)
        # As long as the longest block needs, so that all that travel are of one length.
        width = max(len(block.cols) for block in share.blocks) * (rule.k + rule.side_cols)
        self._at_home = [share.block_at(turn) for turn in range(len(share.blocks) // job.size)]
        self._held: deque[Floats | Moving] = deque()
        for block in self._at_home:
            start = start_of_right(rule, block.cols, facts.n_cols)
            self._held.append(aligned(np.pad(start, (0, width - len(start)))))
        self._row_ids = share.row_ids.astype(np.int32)
        self._col_ids = [block.cols.astype(np.int32) for block in self._at_home]
        self._origin, self._eval_seconds = origin, 0.0
        self.account = Account(job, "updates")
        self._iteration = 0
        self._kept_every = kept_every(facts, rule, job.size)
        self.evaluations: list[Evaluation] = []
        self.ended = ""

    def run(self, report: Callable[[Sequence[Evaluation]], None]) -> None:
        """Train to the end. `report` is told of all evaluations so far, after each iteration.

        Raises DimlError where the model is no longer finite.
        """
        version, common, local = self._job.load_checkpoint(any_workers=True)
        if version:
            self._restore(common, local)
        report(self.evaluations)
        while self._iteration < self._passes.iterations and not self.ended:
            before = copy.deepcopy(self._state()) if self._passes.auto_step else None
            self._descend()
            self._iteration += 1
            if self._passes.evaluated(self._iteration):
                self._judge(self._evaluate(), before)
                report(self.evaluations)
            over = self.ended or self._iteration == self._passes.iterations
            if over or self._iteration % self._kept_every == 0:
                self._job.checkpoint(self._common(), self._state())
            self.account.tell()
        self.account.tell(last=True)

    def factors(self) -> tuple[Floats, Floats, Floats] | None:
        """(L with biases, R, side) of the whole matrix on worker 0, None elsewhere."""
        model, share = self._model, self._share
        left = np.column_stack([model.left, model.row_bias]) if self._rule.biased else model.left
        cols = np.concatenate([block.cols for block in self._at_home])
        pairs = zip(self._at_home, self._settled(), strict=True)
        columns = [self._columns(block, held) for block, held in pairs]
        right, side = (
            self._collect(
                cols, np.concatenate([getattr(c, name) for c in columns]), self._facts.n_cols
            )
            for name in Columns._fields
        )
        rows = self._collect(share.row_ids, left, self._facts.n_rows)
        if rows is None or right is None or side is None:
            return None
        return rows, right, side

    def _columns(self, block: Block, held: Floats) -> Columns:
        """The columns of a block: views, changed in place."""
        count, k, width = len(block.cols), self._rule.k, self._rule.side_cols
        right, side = np.split(held[: count * (k + width)], [count * k])
        return Columns(right.reshape(count, k), side.reshape(count, width))

    def _passing(self) -> Iterator[tuple[Block, Columns]]:
        """Each block in its turn: what is done to its columns travels on with it."""
        for turn in range(len(self._share.blocks)):
            block, held = self._share.block_at(turn), self._arrived(self._held.popleft())
            yield block, self._columns(block, held)
            self._held.append(self._job.start_shift(held, -1) if self._job.size > 1 else held)

    def _arrived(self, held: Floats | Moving) -> Floats:
        return held if isinstance(held, np.ndarray) else self.account.waiting(held.wait)

    def _settled(self) -> list[Floats]:
        """The blocks at hand, once they have arrived."""
        found = [self._arrived(held) for held in self._held]
        self._held = deque(found)
        return found

    def _descend(self) -> None:
        for block, columns in self._passing():
            self._model.descend(block, columns, self._iteration)
            self.account.units += len(block)

    def _evaluate(self) -> Evaluation:
        """The sums over all blocks and workers, all of them after the same iteration."""
        began = time.time()
        seconds = began - self._origin - self._eval_seconds
        sums = Sums(penalty=self._model.row_penalty())
        for block, columns in self._passing():
            sums = sums.plus(self._model.sums(block, columns))
        times = (seconds, self._eval_seconds) if self._job.rank == 0 else (0.0, 0.0)
        busy = self.account.busy(self._job.rank, self._job.size)
        totals = self._job.allreduce(np.array([*sums, *times, *busy]))
        self.account.compare(totals[-self._job.size :])
        *found, seconds, eval_seconds = totals[: -self._job.size].tolist()
        self._eval_seconds += time.time() - began
        decay, times = self._rule.decay, (seconds, eval_seconds)
        return Evaluation.of(self._iteration, Sums(*found), self._facts, decay, times)

    def _judge(self, evaluation: Evaluation, before: dict[str, Any] | None) -> None:
        """Go on, end, or go back to the state before this iteration with half the step."""
        if evaluation.finite:
            self.evaluations.append(evaluation)
            self.ended = self._passes.goal.reached(self.evaluations)
            return
        if before is None or self._model.halvings == HALVINGS_MAX:
            raise too_large(evaluation, self._model.halvings)
        halvings = self._model.halvings + 1
        self._iteration -= 1
        self._set_state(before)
        self._model.halvings = halvings
        self._job.event("halved", iteration=self._iteration + 1, halvings=halvings)

    # Checkpoints -----------------------------------------------------------------------------

    def _common(self) -> dict[str, Any]:
        found = np.array([astuple(evaluation) for evaluation in self.evaluations])
        return {"iteration": self._iteration, "evaluations": found, "ended": self.ended}

    def _state(self) -> dict[str, Any]:
        times = {"origin": self._origin, "eval_seconds": self._eval_seconds, "now": time.time()}
        ids = {"rows": self._row_ids, "cols": self._col_ids}
        return {**self._model.state(), "held": self._settled(), **ids, **times}

    def _set_state(self, state: dict[str, Any]) -> None:
        # What is on its way to here is waited for: so do all, and the order stays theirs.
        self._settled()
        self._model.restore(state)
        self._held = deque(aligned(held) for held in state["held"])

    def _restore(self, common: dict[str, Any], local: Any) -> None:
        """Go on from a checkpoint; raises Misuse, on all workers alike, for one of another time."""
        states = local if isinstance(local, list) else [local]
        if not all(isinstance(state["held"], list) for state in states):
            raise Misuse(
                "the checkpoint was made by an earlier version of DiML, which gave each worker one "
                "block of columns: use another --checkpoint-dir, or --resume never"
            )
        if isinstance(local, list):
            local = self._gathered(local)
        self._iteration, self.ended = common["iteration"], common["ended"]
        self.evaluations = [
            Evaluation(int(row[0]), *row[1:]) for row in common["evaluations"].tolist()
        ]
        self._set_state(local)
        self._eval_seconds = local["eval_seconds"]
        self._origin = local["origin"]
        if not self._job.incarnation:
            # The run goes on after a pause that nobody trained in.
            self._origin += time.time() - local["now"]

    def _gathered(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """This worker's state from those of a run on another number of workers."""
        mine = {**self._state(), **{name: states[0][name] for name in _COMMON}}
        for state in states:
            to, of = meeting(self._row_ids, state["rows"])
            for name in ("left", "row_bias", "row_sum"):
                mine[name][to] = state[name][of]
            for cols, held in zip(state["cols"], state["held"], strict=True):
                self._take(cols, held, mine["held"])
        return mine

    def _take(self, cols: npt.NDArray[np.int32], held: Floats, mine: list[Floats]) -> None:
        """Copy what a block of another run knows of the columns at hand."""
        count, k = len(cols), self._rule.k
        right, side = np.split(held[: count * (k + self._rule.side_cols)], [count * k])
        for block, ids, own in zip(self._at_home, self._col_ids, mine, strict=True):
            to, of = meeting(ids, cols)
            columns = self._columns(block, own)
            columns.right[to] = right.reshape(count, k)[of]
            columns.side[to] = side.reshape(count, -1)[of]

    def _collect(self, ids: npt.NDArray[np.int64], rows: Floats, total: int) -> Floats | None:
        """All workers' rows by id, on worker 0; they come round the ring one share at a time."""
        whole = np.zeros((total, rows.shape[1]), np.float32) if self._job.rank == 0 else None
        for turn in range(self._job.size):
            if turn:
                ids, rows = self._job.shift(ids, -1), self._job.shift(rows, -1)
            if whole is not None:
                whole[ids] = rows
        return whole
