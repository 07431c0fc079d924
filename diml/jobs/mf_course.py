"""What matrix factorization on the parameter server does in which clock.

Owns the numbers. Pure: what is done follows from the clock alone, so that a replacement which
starts anew goes on where the dead worker was. For staleness s, and T the clock after the last
block of the last iteration:

    .. T - 1        a block each; where an iteration begins, the one before is evaluated first
    T .. T + s - 1  nothing, so that every update of the training is in what is read next
    T + s           the last evaluation; L goes into a table where it is asked for
    .. T + 2 s      nothing, for the same reason

Nobody waits at a barrier: after clock T + 2 s a `get` has everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from diml.data.partition import balanced


@dataclass(frozen=True)
class Course:
    """How long it goes, and when it is evaluated. See the module's text for the clocks.

    A run that goes on from a checkpoint begins at `start_clock`, where `start_iteration`
    iterations are done, however these were cut into clocks.
    """

    iterations: int
    blocks: int
    staleness: int
    eval_every: int = 1
    start_clock: int = 0
    start_iteration: int = 0

    @property
    def trained(self) -> int:
        """The first clock after the training."""
        return self.start_clock + (self.iterations - self.start_iteration) * self.blocks

    @property
    def last_evaluation(self) -> int:
        """The clock in which the result is evaluated and handed over."""
        return self.trained + self.staleness

    @property
    def end(self) -> int:
        """The clock from which on every read has everything."""
        return self.last_evaluation + self.staleness + 1

    def ending(self, clock: int) -> Course:
        """The course that ends with the iteration that is under way in this clock."""
        begun = self.start_iteration - (self.start_clock - clock) // self.blocks
        return replace(self, iterations=min(begun, self.iterations))

    def iteration(self, clock: int) -> int:
        """Iterations that are done where a clock begins."""
        return self.start_iteration + (clock - self.start_clock) // self.blocks

    def begins(self, clock: int) -> bool:
        """Whether an iteration begins with this clock, or the training has just ended."""
        return clock <= self.trained and (clock - self.start_clock) % self.blocks == 0

    def resumed(self, clock: int, iteration: int) -> Course:
        """The course from a checkpoint on, which may be past what is asked for now."""
        most = max(self.iterations, iteration)
        return replace(self, iterations=most, start_clock=clock, start_iteration=iteration)

    def evaluated(self, clock: int) -> int | None:
        """The iteration (1-based) that is evaluated at the start of this clock, if one is."""
        if clock == self.last_evaluation:
            return self.iterations
        iteration = self.iteration(clock)
        due = self.begins(clock) and iteration % self.eval_every == 0
        return iteration if due and 0 < iteration < self.iterations else None

    def readable(self, clock: int, after: int) -> list[int]:
        """The iterations above `after` whose evaluations who reads in this clock has whole."""
        whole = min(self.iteration(clock - self.staleness - 1), self.iterations - 1)
        first = after // self.eval_every + 1
        due = [i * self.eval_every for i in range(first, whole // self.eval_every + 1)]
        return due + [self.iterations] * (clock >= self.end and after < self.iterations)


def blocks_within(rows_max: int, col_entries: npt.NDArray[np.int64], least: int) -> int:
    """Into how many blocks columns must be cut so that none has more than `rows_max` of them.

    Args:
        col_entries: int64 (n_cols,), by which blocks are balanced.
        least: as many blocks at least.
    """
    blocks = max(least, -(-len(col_entries) // rows_max))
    while np.bincount(balanced(col_entries, blocks)).max() > rows_max:
        blocks += blocks // 4 + 1
    return blocks
