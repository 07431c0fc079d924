"""What is known of a model of matrix factorization after an iteration, and when that is enough.

Owns one line of the loss file and the rules by which training ends early. Pure: every worker that
knows the same evaluations comes to the same end. Must not know how the sums are gathered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diml.errors import DimlError
from diml.jobs.mf_data import Facts
from diml.jobs.mf_model import Sums

HALVINGS_MAX = 30


@dataclass(frozen=True)
class Evaluation:
    """One line of the loss file. Errors are root mean squares; NaN where nothing is held out.

    `seconds` is wall time of the training on worker 0, evaluations (`eval_seconds`) not counted.
    `loss` is the sum of squared training errors, `objective` that and the regularizer.
    """

    iteration: int
    seconds: float
    train_rmse: float
    test_rmse: float
    objective: float
    loss: float
    eval_seconds: float

    @classmethod
    def of(
        cls, iteration: int, sums: Sums, facts: Facts, decay: float, times: tuple[float, float]
    ) -> Evaluation:
        """From the sums over all workers. `times` are seconds and eval_seconds."""
        train, test = facts.train_entries, facts.test_entries
        return cls(
            iteration,
            times[0],
            (sums.squares / train) ** 0.5,
            (sums.held_out / test) ** 0.5 if test else math.nan,
            sums.squares + decay * sums.penalty,
            sums.squares,
            times[1],
        )

    @property
    def finite(self) -> bool:
        """Whether the model is made of numbers still."""
        return math.isfinite(self.loss)

    @property
    def rmse(self) -> float:
        """What training is judged by: the held-out RMSE, else that of the training entries."""
        return self.train_rmse if math.isnan(self.test_rmse) else self.test_rmse


@dataclass(frozen=True)
class Goal:
    """When to stop before the last iteration.

    Attributes:
        target_rmse: stop once the RMSE (held-out, if there is any) is that low; None: never.
        patience: stop after so many evaluations without a new lowest RMSE; None: never.
    """

    target_rmse: float | None = None
    patience: int | None = None

    def reached(self, evaluations: Sequence[Evaluation]) -> str:
        """Why training ends with the last of these evaluations; empty to go on."""
        if not evaluations:
            return ""
        last = evaluations[-1]
        if self.target_rmse is not None and last.rmse <= self.target_rmse:
            return f"the RMSE is {last.rmse:.4g}, at most {self.target_rmse:g} as asked for"
        if self.patience is not None:
            best = min(evaluations, key=lambda evaluation: evaluation.rmse)
            waited = sum(evaluation.iteration > best.iteration for evaluation in evaluations)
            if waited >= self.patience:
                return (
                    f"no lower RMSE than the {best.rmse:.4g} of iteration {best.iteration} in "
                    f"{waited} evaluations"
                )
        return ""


def too_large(evaluation: Evaluation, halvings: int = 0) -> DimlError:
    """The error for a model that is not finite, after so many halvings of the step."""
    if halvings:
        return DimlError(
            f"the loss is {evaluation.loss} after iteration {evaluation.iteration}, still so with "
            f"the step halved {halvings} times: begin with a lower --init_step_size"
        )
    return DimlError(
        f"the loss is {evaluation.loss} after iteration {evaluation.iteration}: lower the step "
        "size (divide --init_step_size by 10), or let --auto_step do it"
    )
