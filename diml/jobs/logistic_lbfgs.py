"""Logistic regression by L-BFGS on Allreduce (`--method lbfgs`; OWL-QN where --l1 is given).

Owns the loop: every worker holds the whole model and takes the same steps, because each sum over
the workers has the same bits on all of them. One iteration is one version: a worker that dies is
replaced at the iteration it was in.
"""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from diml.jobs.logistic_batch import Run
from diml.jobs.quasi_newton import State, start, step

_TOLERANCE = 1e-6


def train(run: Run, flags: Namespace) -> None:
    """Train to the end: until `--tolerance` or `--num_iterations`."""
    tolerance = _TOLERANCE if flags.tolerance is None else flags.tolerance
    version, model, _ = run.load()
    state = State.of(model) if version else start(np.zeros(run.cols), run.smooth, run.l1)
    while True:
        # First in every version, so that a replacement makes the same calls as the others.
        losses = run.losses(state.steps, state.w)
        run.tell(losses)
        if state.done or state.steps >= flags.num_iterations:
            break
        state = step(state, run.smooth, run.l1, memory=flags.memory, tolerance=tolerance)
        # States are never changed in place, so the checkpoint may keep a reference.
        run.checkpoint(state.tree(), lazy=True)
    run.finish(losses, state.w, state.done)
