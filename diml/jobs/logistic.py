"""Logistic regression three ways: python -m diml.jobs.logistic.

Minimises mean_i log(1 + exp(-y_i x_i·w)) + λ₁‖w‖₁ + λ₂‖w‖²/2 over a libsvm file. Owns the command
line and the files; the course of the training is logistic_train's for the methods on the
parameter server, and logistic_lbfgs's and logistic_admm's for those on collectives.

`--method async-sgd` is the loop of ps-lite: read a minibatch, pull the keys that it needs, push
the gradient summed over it; the server steps with its own η(t) at every push. `--method sync-sgd`
is the same loop with a server that steps once a round, on the sum over all workers.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import diml
from diml.data import fingerprint
from diml.data.files import check_same_files
from diml.data.outputs import check_writable
from diml.errors import Misuse
from diml.jobs import logistic_admm, logistic_compare, logistic_lbfgs
from diml.jobs.account import Account
from diml.jobs.flags import JobParser, at_least, check_files, job_parser, parse, real, run_job
from diml.jobs.logistic_batch import Run, tell_test
from diml.jobs.logistic_data import Examples, load, share_of, widened
from diml.jobs.logistic_model import Model, model_file, write_model
from diml.jobs.logistic_train import Course, Losses, Training
from diml.ps.client import ParameterServer
from diml.ps.filters import NAMES as FILTERS
from diml.ps.kv import KeyValues
from diml.report.progress import Progress

ON_SERVERS = ("async-sgd", "sync-sgd")
ON_COLLECTIVES: dict[str, Callable[[Run, Namespace], None]] = {
    "lbfgs": logistic_lbfgs.train,
    "admm": logistic_admm.train,
}
METHODS = (*ON_SERVERS, *ON_COLLECTIVES)
# By rule, the step size where none is given.
RULES = {"sgd": 5.0, "adagrad": 1.0, "adarevision": 0.1, "ftrl": 0.1}
_COLUMNS = "epoch,seconds,train_loss,objective,train_accuracy,test_loss,test_accuracy,eval_seconds"


def parser() -> JobParser:
    """The job's command line."""
    made = job_parser("logistic", "L1/L2 logistic regression, on servers or collectives.")
    add, tune = made.add_argument, made.tuning.add_argument
    add("--datafile", metavar="FILE", required=True, help="examples in libsvm format, two labels")
    add("--test", metavar="FILE", help="held-out examples")
    add("--method", choices=METHODS, default="async-sgd", help="default async-sgd")
    add("--batch_size", type=at_least(1), default=200, help="SGD: examples of a minibatch (200)")
    add("--num_epochs", type=at_least(1), default=10, help="SGD: passes over the examples (10)")
    add("--num_iterations", type=at_least(1), default=500, help="lbfgs, admm: at most (500)")
    add("--staleness", type=at_least(0), help="async: clocks that a read may lack (no bound)")
    add("--l1", type=real(least=0), default=0.0, help="weight λ1 on the mean loss (default 0)")
    add("--l2", type=real(least=0), default=0.0, help="weight λ2 on the mean loss (default 0)")
    add("--rule", choices=RULES, default="adagrad", help="the server's update rule (adagrad)")
    steps = "of the rule: adagrad 1, sgd 5 (x of x(y+t)^-z), others 0.1"
    add("--init_step_size", type=real(above=0), help=steps)
    tune("--step_size_offset", type=real(least=0), default=100.0, help="sgd: y (100)")
    tune("--step_size_pow", type=real(least=0), default=0.5, help="sgd: z (0.5)")
    tolerance = real(least=0, most=1)
    tune("--tolerance", type=tolerance, help="when to stop: lbfgs (1e-6), admm (1e-4)")
    tune("--memory", type=at_least(1), default=10, help="lbfgs: pairs of differences kept (10)")
    tune("--rho", type=real(above=0), default=1e-3, help="admm: first weight of agreeing (1e-3)")
    add(
        "--client_worker_threads", type=at_least(1), default=1,
        help="SGD: threads that share a worker's minibatch (1)",
    )  # fmt: skip
    tune(
        "--filter", choices=FILTERS, action="append", default=[],
        help="SGD: cut traffic by cached keys, half precision, compression; repeatable",
    )  # fmt: skip
    add("--intercept", action="store_true", help="learn a constant term as well")
    outputs = "write the model as PREFIX.w (as PREFIX if it is a .npz or .h5), and PREFIX.loss"
    add("--output_prefix", metavar="PREFIX", help=outputs)
    all_ways = "one table of the three ways, each with and without a death (start it alone)"
    add("--compare", metavar="DIR", nargs="?", const="compare", help=all_ways)
    tune("--workers", type=at_least(1), help="compare: workers of each run (the cores)")
    tune("--target", type=real(above=0), default=0.02, help="compare: loss above the best (0.02)")
    return made


def rule_options(flags: Namespace, examples_a_step: int) -> dict[str, Any]:
    """The rule's numbers, for gradients that are sums over so many examples.

    Step sizes and penalties are given for the mean over a step's examples, so that they mean the
    same whatever the batch size: the step of a sum is so much shorter, a penalty so much heavier.
    """
    penalties = {"l1": flags.l1 * examples_a_step, "l2": flags.l2 * examples_a_step}
    step = flags.init_step_size or RULES[flags.rule]
    if flags.rule == "sgd":
        schedule = {
            "step_size_offset": flags.step_size_offset,
            "step_size_pow": flags.step_size_pow,
        }
        return {"step_size": step / examples_a_step, **schedule, **penalties}
    if flags.rule == "adagrad":
        return {"step_size": step, **penalties}
    if flags.rule == "ftrl":
        return {"alpha": step, **penalties}
    if flags.l1 or flags.l2:
        raise Misuse("--rule adarevision takes neither --l1 nor --l2")
    return {"step_size": step}


class Output:
    """Worker 0's files: PREFIX.loss, a flushed line an epoch, and the model at the end.

    `times` are `seconds` and `eval_seconds` of the last line.
    """

    def __init__(self, prefix: str | None, train: Examples, intercept: bool) -> None:
        self._prefix = prefix
        self._facts: Any = (intercept, train.labels, train.base)
        self.epochs_written = 0
        self.times = (0.0, 0.0)

    def begin(self, fresh: bool) -> None:
        """Open the losses: anew, or to go on with those of a run that this one continues."""
        if self._prefix is None:
            return
        path = Path(f"{self._prefix}.loss")
        try:
            if fresh or not path.exists():
                path.write_text(_COLUMNS + "\n", encoding="ascii")
            whole = [line for line in path.read_text("ascii").splitlines(True) if "\n" in line]
            if whole and whole[0] != _COLUMNS + "\n":
                raise Misuse(f"--output_prefix: {path} has other columns: give another prefix")
            path.write_text("".join(whole), encoding="ascii")
            self._file = path.open("a", encoding="ascii")
        except OSError as error:
            raise Misuse(f"--output_prefix: cannot write {path}: {error.strerror}") from None
        self.epochs_written = len(whole) - 1
        if self.epochs_written:
            cells = whole[-1].split(",")
            self.times = float(cells[1]), float(cells[-1])

    def write(self, losses: Losses) -> None:
        """One epoch's line."""
        if self._prefix is None:
            return
        numbers = (losses.train_loss, losses.objective, losses.train_accuracy)
        held_out = (losses.test_loss, losses.test_accuracy)
        cells = [f"{x:.9g}" for x in numbers]
        cells += ["" if math.isnan(x) else f"{x:.9g}" for x in held_out]
        seconds, evaluating = f"{losses.seconds:.4f}", f"{losses.eval_seconds:.4f}"
        self._file.write(",".join([str(losses.epoch), seconds, *cells, evaluating]) + "\n")
        self._file.flush()

    def finish(self, weights: NDArray[Any]) -> None:
        """The model; with an intercept that is its last weight."""
        if self._prefix is not None:
            write_model(self._prefix, Model(np.asarray(weights, np.float64), *self._facts))


def _read(flags: Namespace) -> tuple[Examples, Examples | None]:
    """Train and test examples with one number of columns."""
    train = load(Path(flags.datafile), flags.intercept)
    if flags.test is None:
        return train, None
    test = load(Path(flags.test), flags.intercept, like=train)
    cols = max(train.X.shape[1], test.X.shape[1])
    return widened(train, cols, flags.intercept), widened(test, cols, flags.intercept)


def _identify(job: diml.Job, flags: Namespace, train: Examples) -> None:
    """Tell this run's checkpoints from those of runs on other data, or to another end."""
    X = train.X
    pieces = (
        fingerprint.of_csr(X.indptr, X.indices, X.data),
        fingerprint.of_dense(train.y, len(train.y)),
    )
    names = ("method", "l1", "l2", "intercept")
    told = {name: vars(flags)[name] for name in names}
    job.identify(data=f"{X.shape[0]}x{X.shape[1]} {fingerprint.together(pieces)}", **told)


def _train(job: diml.Job, flags: Namespace, train: Examples, test: Examples | None) -> None:
    """One worker's run."""
    sync = flags.method == "sync-sgd"
    if sync and flags.staleness:
        raise Misuse("--staleness goes with --method async-sgd: a synchronous step has none")
    model = "bsp" if sync else "asp" if flags.staleness is None else f"ssp({flags.staleness})"
    if model == "ssp(0)":
        raise Misuse("--staleness 0 is --method sync-sgd")
    batch = min(flags.batch_size, max(1, train.total // job.size))
    per_epoch = math.ceil(math.ceil(train.total / job.size) / batch)
    epochs = {"epoch": f"{per_epoch} clocks", "epochs": flags.num_epochs}
    job.identify(**epochs, batch_size=batch, rule=flags.rule)
    options: dict[str, Any] = {"reject_nonfinite": True, "filters": flags.filter}
    with job.parameter_server(consistency=model, **options) as ps:
        cols = train.X.shape[1]
        numbers = rule_options(flags, batch * ps.workers if sync else batch)
        weights: KeyValues = ps.kv("weights", cols, dtype="float64", rule=flags.rule, **numbers)
        course = Course(flags.num_epochs, per_epoch, flags.l1, flags.l2)
        speaks = ps.worker == 0
        output = Output(flags.output_prefix if speaks else None, train, flags.intercept)
        output.begin(fresh=ps.clock_now == 0)
        account = Account(job, "examples")
        training = Training(
            ps, weights, cols, train, test, course, job.settings.seed, account,
            lambda examples: share_of(examples, ps.worker, ps.workers),
            flags.client_worker_threads,
        )  # fmt: skip
        with Progress.of(job, "logistic", flags.num_epochs) as progress:
            last: list[Losses] = []

            def report(losses: Losses) -> None:
                output.write(losses)
                values = {"objective": losses.objective}
                if test is not None:
                    values |= {"test loss": losses.test_loss}
                    values |= {"test accuracy": losses.test_accuracy}
                progress.update(losses.epoch, **values, **account.pace)
                last.append(losses)

            result = training.run(report, output.epochs_written)
        if speaks:
            output.finish(result)
            _say(ps, last, tell_test(job, result, test))


def _say(ps: ParameterServer, reported: list[Losses], measured: str) -> None:
    """The result in a few words."""
    end = reported[-1] if reported else None
    if end is None:
        return
    text = f"objective {end.objective:.6g}, train accuracy {end.train_accuracy:.4f}"
    if end.objective > math.log(2):
        text += " (above ln 2, that of no model: lower --init_step_size)"
    if not math.isnan(end.test_accuracy):
        text += f", test loss {end.test_loss:.6g}, test accuracy {end.test_accuracy:.4f}"
    print(f"logistic: {ps.consistency}, {ps.workers} workers: {text}{measured}", flush=True)


def servers_for(arguments: Sequence[str]) -> int:
    """How many servers the job takes where it is not told."""
    return 1 if parse(parser(), arguments).method in ON_SERVERS else 0


def main(arguments: Sequence[str]) -> int | None:
    """Run the job on this rank."""
    flags = parse(parser(), arguments)
    if flags.compare is not None:
        return logistic_compare.compare(flags)
    writes = []
    if flags.output_prefix is not None:
        writes = [model_file(flags.output_prefix), Path(f"{flags.output_prefix}.loss")]
    for path in writes:
        check_writable(path)
    check_files(flags, writes, (flags.datafile, flags.test))
    on_collectives = ON_COLLECTIVES.get(flags.method)
    with diml.init(flags=vars(flags), servers=servers_for(arguments)) as job:
        check_same_files(job, flags.datafile, flags.test)
        train, test = _read(flags)
        _identify(job, flags, train)
        if on_collectives is None:
            _train(job, flags, train, test)
            return 0
        output = None
        if job.rank == 0:
            output = Output(flags.output_prefix, train, flags.intercept)
        with Run(job, flags, train, test, output) as run:
            on_collectives(run, flags)
    return 0


if __name__ == "__main__":
    run_job(main)
