"""The Lasso over MPI: python -m diml.jobs.lasso.

Owns the command line (STRADS's names of flags are accepted), the order of the steps and what worker
0 reports. Files in are `diml.data.design`'s, files out `lasso_output`'s, the rest `diml.strads`'s.

With --cv F the λ is chosen first: folds are shared out over the workers, then all fit the answer.

λ is on scikit-learn's scale: ½n⁻¹‖y − Xβ − b‖² + λ‖β‖₁. STRADS minimises ½(‖y − Xβ‖² + λ‖β‖₁), so
its λ divided by 2n is this one.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import diml
from diml.data import design_planted, fingerprint
from diml.data.design import read_design
from diml.data.files import check_same_files
from diml.data.outputs import check_writable
from diml.errors import Misuse
from diml.jobs.account import Account
from diml.jobs.flags import JobParser, at_least, check_files, job_parser, parse, real, run_job
from diml.jobs.lasso_model import Labels, write_coefficients
from diml.jobs.lasso_output import Log, write_cv, write_path
from diml.report.progress import Progress
from diml.strads import POLICIES, Policy, policy_by_name, solve_lasso
from diml.strads.columns import Columns, SparseColumns, columns_from, columns_of
from diml.strads.lasso import warm_up
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_cv import contiguous_folds, cross_validate, lambda_grid
from diml.strads.lasso_problem import Grid, Round, Stop

GENERATED: dict[str, Callable[..., design_planted.Planted]] = {
    "text": design_planted.text_like,
    "neighbours": design_planted.neighbour_correlated,
    "expression": design_planted.expression_like,
    "tall": design_planted.tall,
}
# What STRADS had flags for and DiML has not: MPI ranks take the place of its processes.
_WITHOUT_EFFECT = (
    "machfile", "scheduler", "threads_per_scheduler", "threads",
    "ring4scheduler", "topology", "nzcount",
)  # fmt: skip


def parser() -> JobParser:
    """The job's command line."""
    made = job_parser("lasso", "The Lasso by scheduled coordinate descent, with a certificate.")
    add, tune = made.add_argument, made.tuning.add_argument
    add("--data_xfile", "--x", metavar="FILE", help="X: libsvm, MatrixMarket, .npz or HDF5")
    add("--data_yfile", "--y", metavar="FILE", help="y, where it is not in X's file")
    add("--generate", choices=list(GENERATED), help="generated data instead of files")
    add("--lambda", type=real(above=0), help="λ, on scikit-learn's scale")
    add("--lambda_ratio", type=real(above=0), help="λ as a part of λmax (default 0.1)")
    add("--path", type=at_least(2), metavar="N", help="N values from λmax down to that λ")
    add("--cv", type=at_least(2), metavar="F",
        help="choose λ by F-fold cross-validation on a path of --path (100) values from λmax down "
        "to --lambda_ratio (0.001) of it; each worker then reads all of X")  # fmt: skip
    add("--loss", choices=("squared", "logistic"), default="squared",
        help="squared (default); logistic: y holds two classes, the larger predicted")  # fmt: skip
    add("--l1_ratio", type=real(above=0, most=1), default=1.0, metavar="R",
        help="elastic net: λ(R‖β‖₁ + ½(1−R)‖β‖²) (default 1)")  # fmt: skip
    add(
        "--tol",
        type=real(above=0),
        default=1e-6,
        help="gap ≤ tol·‖y‖²/n, logistic: tol·log 2 (default 1e-6)",
    )
    add("--no_intercept", action="store_true", help="no b")
    add("--standardize", action="store_true", help="penalise by columns' standard deviations")
    add(
        "--output",
        "--outputfile_coeff",
        metavar="FILE",
        help="coefficients: .npz, else MatrixMarket",
    )
    add("--path_output", metavar="FILE", help="the path, .npz")
    add("--cv_output", metavar="FILE", help="λ and the error of each fold at it, .npz")
    add("--log", metavar="FILE", help="a CSV line for each measurement")
    add("--max_seconds", type=real(above=0), help="stop with what there is by then")
    add("--policy", choices=list(POLICIES), help="who is updated next (default working-set)")
    add("--data", choices=("sharded", "replicated"), default="sharded",
        help="a worker holds its own columns (default), or all of X")  # fmt: skip
    tune("--max_iter", type=at_least(1), default=1_000_000, help="rounds for a λ (default 1e6)")
    tune("--schedule_size", type=at_least(1), default=32, help="variables in a block (default 32)")
    tune("--exact", action="store_true", help="published policies: update one after the other")
    tune("--infthreshold", "--rho", type=real(above=0, most=1), default=0.1,
         help="correlation that priority+dependency avoids (default 0.1)")  # fmt: skip
    tune("--pipeline", type=at_least(0), default=0,
         help="published policies: results that a block may lack (default 0)")  # fmt: skip
    tune("--candidates", type=at_least(0), default=0, help="draws for a block (default 2 blocks)")
    tune("--weight_sampling", type=_yes, help="STRADS: true is --policy priority")
    tune("--check_interference", type=_yes, help="STRADS: both true is priority+dependency")
    tune("--logfreq", type=at_least(1), default=1, help="rounds between log lines (default 1)")
    tune("--samples", type=at_least(0), default=0, help="rows that X must have (0: any)")
    tune("--columns", type=at_least(0), default=0, help="columns that X must have (0: any)")
    tune("--algorithm", choices=("lasso", "logistic"), help="STRADS: logistic is --loss logistic")
    tune("--checkpoint_work", type=at_least(1), default=2_000_000_000,
         help="entries visited between two checkpoints (default 2e9)")  # fmt: skip
    for name in _WITHOUT_EFFECT:
        tune(f"--{name}", help="STRADS: accepted, without effect")
    return made


def _yes(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in ("true", "1")


def policy_name(flags: Namespace) -> str:
    """The policy that the flags ask for, STRADS's among them."""
    if flags.policy is not None:
        return str(flags.policy)
    if flags.weight_sampling is None and flags.check_interference is None:
        return "working-set"
    if not flags.weight_sampling:
        return "random"
    return "priority+dependency" if flags.check_interference else "priority"


def check(flags: Namespace) -> None:
    """Check the flags against each other and the outputs. Raises Misuse."""
    if flags.algorithm == "logistic":
        flags.loss = "logistic"
    if (flags.data_xfile is None) == (flags.generate is None):
        raise Misuse("give either --data_xfile FILE or --generate NAME")
    if vars(flags)["lambda"] is not None and flags.lambda_ratio is not None:
        raise Misuse("give --lambda or --lambda_ratio, not both")
    if flags.path_output is not None and flags.path is None:
        raise Misuse("--path_output goes with --path")
    if flags.cv is not None and vars(flags)["lambda"] is not None:
        raise Misuse("--cv chooses lambda: give --lambda_ratio for the end of its path")
    if flags.cv is not None and policy_name(flags) != "working-set":
        raise Misuse("--cv goes with the policy working-set")
    if flags.cv_output is not None and flags.cv is None:
        raise Misuse("--cv_output goes with --cv")
    if flags.path_output is not None and flags.cv is not None:
        raise Misuse("--cv ends with one lambda: there is no path to write")
    writes = (flags.output, flags.path_output, flags.cv_output, flags.log)
    for name in writes:
        check_writable(None if name is None else Path(name))
    check_files(flags, writes, (flags.data_xfile, flags.data_yfile))


def grid_of(flags: Namespace) -> Grid:
    """The values of λ; with --path evenly on a log scale, λmax first."""
    lam = vars(flags)["lambda"]
    ratio = flags.lambda_ratio or 0.1
    if flags.path is None:
        return Grid(lambdas=(lam,)) if lam is not None else Grid(ratios=(ratio,))
    if lam is not None:
        return Grid(lambdas=(lam,), path=flags.path)
    return Grid(ratios=tuple(np.geomspace(1.0, min(ratio, 1.0), flags.path)))


def needs_all(flags: Namespace) -> bool:
    """Whether each worker reads all of X."""
    return flags.data == "replicated" or flags.cv is not None


def load(
    flags: Namespace, rank: int, size: int, seed: int
) -> tuple[Columns, Columns | None, NDArray[np.float64]]:
    """(this worker's columns, all columns where each worker needs them, y)."""
    if flags.generate is not None:
        planted = GENERATED[flags.generate](seed=seed)
        held, y = columns_of(planted.X, rank, size), planted.y
        copy = columns_of(planted.X) if needs_all(flags) else None
    elif needs_all(flags):
        part, y = read_design(flags.data_xfile, flags.data_yfile)
        copy = columns_from(part)
        held = copy.part(rank, size)
    else:
        part, y = read_design(flags.data_xfile, flags.data_yfile, rank, size)
        held, copy = columns_from(part), None
    for name, found in (("samples", held.rows), ("columns", held.total)):
        asked = vars(flags)[name]
        if asked and asked != found:
            raise Misuse(f"--{name} says {asked}, but X has {found}")
    return held, copy, y


def signs(y: NDArray[np.float64]) -> tuple[NDArray[np.float64], Labels]:
    """Two classes as −1 (the smaller number) and 1, and what they were. Raises Misuse for any other
    number of them."""
    classes = np.unique(y)
    if len(classes) != 2:
        raise Misuse(f"--loss logistic needs two classes in y, which has {len(classes)} values")
    return np.where(y == classes[1], 1.0, -1.0), (float(classes[0]), float(classes[1]))


def validated(job: diml.Job, flags: Namespace, held: Columns, y: NDArray[np.float64],
              penalty: dict[str, Any]) -> Grid:  # fmt: skip
    """The λ of least error over the folds, all of whose columns this worker holds."""
    X = held.matrix()
    ratios = np.geomspace(1.0, flags.lambda_ratio or 1e-3, flags.path or 100)
    lambdas = lambda_grid(X, y, ratios, **penalty)
    folds = contiguous_folds(len(y), flags.cv)
    stop = Stop(flags.tol, flags.max_iter, flags.max_seconds)
    errors = job.parts.once(
        "cv", lambda: cross_validate(X, y, lambdas, folds, stop, job=job, **penalty)
    )
    means = errors.mean(axis=0)
    best = int(np.argmin(means))
    if job.rank == 0:
        job.log(f"{flags.cv} folds: least error {means[best]:.6g} at lambda {lambdas[best]:.6g}, "
                f"{best + 1} of {len(lambdas)}")  # fmt: skip
        job.event("result", values={"cv_error": means[best], "lambda": lambdas[best]})
        if flags.cv_output:
            write_cv(Path(flags.cv_output), lambdas, errors)
    return Grid(lambdas=(float(lambdas[best]),))


def _fingerprint(job: diml.Job, held: Columns, y: NDArray[np.float64]) -> str:
    """Of X and y, the same on all workers and for any number of them."""
    if isinstance(held, SparseColumns):
        mine = fingerprint.of_csr(held.indptr, held.indices, held.data, held.first)
    else:
        mine = fingerprint.of_dense(held.X.T, held.first)
    response = fingerprint.of_dense(y, held.total)
    return fingerprint.together([*fingerprint.of_all(job, mine), response])


def _policy(flags: Namespace, variables: int, seed: int) -> Policy:
    name = policy_name(flags)
    if name == "working-set":
        return policy_by_name(name, variables)
    options: dict[str, Any] = {"block": flags.schedule_size, "seed": seed, "exact": flags.exact}
    if name == "priority+dependency":
        options |= {"candidates": flags.candidates, "rho": flags.infthreshold}
    return policy_by_name(name, variables, **options)


class Watch:
    """What becomes of each measurement: the log, the progress, and this worker's account."""

    def __init__(self, job: diml.Job, flags: Namespace, progress: Progress, total: int) -> None:
        self._total = total
        self._last: Round | None = None
        self._workers = job.size
        self._progress = progress
        self._account = Account(job, "columns")
        self._log = None
        if flags.log and job.rank == 0:
            self._log = Log(Path(flags.log), flags.logfreq)

    def __call__(self, line: Round) -> None:
        if self._log is not None:
            self._log(line)
        self._progress.update(line.solved, gap=line.gap, nonzeros=line.nonzeros)
        self._last = line
        self._account.units = line.visits // self._workers
        self._account.tell()

    def close(self) -> None:
        """Say that all is done, and write the last of the account."""
        if self._last is not None:
            last = self._last
            self._progress.update(self._total, gap=last.gap, nonzeros=last.nonzeros)
        self._account.tell(last=True)


def report(program: LassoBase, say: Any) -> None:
    """Say what was found, at the last λ."""
    last = program.solutions[-1]
    if len(program.solutions) > 1:
        say(f"{len(program.solutions)} values of lambda from {program.solutions[0].lam:.6g}")
    say(
        f"lambda {last.lam:.6g}  objective {last.objective:.9g}  gap {last.gap:.3g}  "
        f"kkt {last.kkt:.3g}  non-zeros {len(last.ids)} of {program.variables}  "
        f"rounds {program.rounds}  column visits {program.visits}"
    )
    for at, size in program.divergences:
        say(f"diverged at round {at} with blocks of {size}: went back and halved them")
    missed = [answer.lam for answer in program.solutions if not answer.converged]
    if missed:
        say(f"the gap did not reach the tolerance at {len(missed)} values of lambda")


def main(arguments: Sequence[str]) -> int:
    flags = parse(parser(), arguments)
    check(flags)
    with diml.init(flags=vars(flags)) as job:
        seed = job.settings.seed
        check_same_files(job, flags.data_xfile, flags.data_yfile)
        held, copy, y = load(flags, job.rank, job.size, seed)
        labels = None
        if flags.loss == "logistic":
            y, labels = signs(y)
        warm_up(held)
        penalty = {
            "loss": flags.loss,
            "intercept": not flags.no_intercept,
            "standardise": flags.standardize,
            "l1_ratio": flags.l1_ratio,
        }
        job.identify(
            data=f"{held.rows}x{held.total} {_fingerprint(job, held, y)}",
            grid=grid_of(flags),
            folds=flags.cv,
            policy=policy_name(flags),
            **penalty,
        )
        grid = grid_of(flags)
        if flags.cv is not None:
            grid = validated(job, flags, copy or held, y, penalty)
        total = 1 if flags.cv is not None else flags.path or 1
        with Progress.of(job, "lambdas", total) as progress:
            watch = Watch(job, flags, progress, total)
            program = solve_lasso(
                held,
                y,
                grid,
                Stop(flags.tol, flags.max_iter, flags.max_seconds),
                job=job,
                policy=_policy(flags, held.total, seed),
                pipeline=flags.pipeline,
                checkpoint_work=flags.checkpoint_work,
                listener=watch,
                copy=copy if flags.data == "replicated" else None,
                **penalty,
            )
            watch.close()
        if program.flat:
            raise Misuse("X is all zero (or constant, with an intercept): there is nothing to fit")
        if job.rank == 0:
            report(program, job.log)
            last = program.solutions[-1]
            found = {"objective": last.objective, "lambda": last.lam, "gap": last.gap}
            job.event("result", values={**found, "nonzeros": len(last.ids)})
            if flags.output:
                base = held.base if isinstance(held, SparseColumns) else 1
                write_coefficients(Path(flags.output), last, held.total, base, labels)
            if flags.path_output:
                write_path(Path(flags.path_output), program.solutions, held.total)
    return 0


if __name__ == "__main__":
    run_job(main)
