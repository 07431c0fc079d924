"""What worker 0 says while matrix factorization runs: the loss file, the progress, the end.

Owns the words. Must not know how evaluations come about, nor which engine trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from diml.jobs.mf_evaluation import Evaluation
from diml.jobs.mf_output import LossFile
from diml.report.progress import Progress

# A held-out RMSE up to so many times the planted noise meets the noise floor: what is estimated
# from finite data can come near the noise, not down to it.
FLOOR_MARGIN = 1.05


class Report:
    """What worker 0 says while the job runs: the loss file, the progress line, and the end."""

    def __init__(self, losses: Path | None, updates: int, progress: Progress) -> None:
        """`updates` is the number of training entries."""
        self._updates = updates
        self._losses = LossFile(losses) if losses else None
        self._progress = progress
        self._told = 0
        self.last: Evaluation | None = None

    def tell(self, evaluations: Sequence[Evaluation], pace: Mapping[str, str]) -> None:
        """Report those of the evaluations that have come since the last call; `pace` is shown
        beside the newest."""
        for evaluation in evaluations[self._told :]:
            if self._losses is not None:
                self._losses.append([evaluation])
            self.last = evaluation
            shown = {"train_RMSE": evaluation.train_rmse, "held-out_RMSE": evaluation.test_rmse}
            shown = {name: value for name, value in shown.items() if not math.isnan(value)}
            rate = {"rate": f"{self.rate:.3g} M/s"}
            newest = pace if evaluation is evaluations[-1] else {}
            self._progress.update(evaluation.iteration, **shown, **rate, **newest)
        self._told = len(evaluations)

    @property
    def rate(self) -> float:
        """Million updates a second up to the last evaluation."""
        if self.last is None or self.last.seconds <= 0:
            return 0.0
        return self._updates * self.last.iteration / self.last.seconds / 1e6

    def close(self) -> None:
        """End the progress line and the loss file."""
        self._progress.__exit__(None, None, None)
        if self._losses is not None:
            self._losses.close()

    def summary(
        self, workers: int, noise: float | None, repairs: Sequence[float], ended: str
    ) -> str:
        """The result in words. `repairs` are the seconds that each took, `ended` is why training
        stopped early, if it did."""
        assert self.last is not None
        end = self.last
        lines = [f"train RMSE     {end.train_rmse:.4g}"]
        if not math.isnan(end.test_rmse):
            lines.append(f"held-out RMSE  {end.test_rmse:.4g}")
        work = f"{end.iteration} iterations of {self._updates:,} entries in {end.seconds:.2f} s"
        lines.append(f"updates        {self.rate:.3g} M/s ({work}, {workers} workers)")
        if noise and not math.isnan(end.test_rmse):
            ratio = end.test_rmse / noise
            met = "met" if ratio <= FLOOR_MARGIN else "NOT met"
            floor = f"{met}: held-out RMSE is {ratio:.3f} x the planted noise {noise:g}"
            lines.append(f"noise floor    {floor} (at most {FLOOR_MARGIN} x)")
        if ended:
            lines.append(f"ended early    {ended}")
        if repairs:
            took = ", ".join(f"{1000 * seconds:.0f} ms" for seconds in repairs)
            lines.append(f"recovery       {len(repairs)} x, the job was whole again after {took}")
        return "\n".join(lines)
