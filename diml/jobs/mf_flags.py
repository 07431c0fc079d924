"""The command line of matrix factorization, checked.

Owns the job's flags and what follows from them before anything runs. Must not know MPI or files'
contents.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from dataclasses import dataclass
from pathlib import Path

from diml.data.planted import Planted
from diml.data.triplets import FORMATS
from diml.errors import Misuse
from diml.jobs.flags import JobParser, at_least, job_parser, real, size
from diml.jobs.mf_evaluation import Goal
from diml.jobs.mf_files import factor_files
from diml.jobs.mf_load import Source
from diml.jobs.mf_model import INITS, UPDATES, Rule

ENGINES = ("ps", "rotate")
DEFAULT_STEP = {"petuum": 0.5, "nnz": 0.5, "adagrad": 0.05}
_PLANTED = "12000x3000x2500000"


def _planted_size(text: str) -> tuple[int, ...]:
    if not re.fullmatch("[0-9]+x[0-9]+x[0-9]+", text):
        raise ArgumentTypeError(f"{text!r} is not ROWSxCOLSxENTRIES")
    return tuple(map(int, text.split("x")))


def parser() -> JobParser:
    """The job's command line."""
    made = job_parser("mf", "Matrix factorization M ~ L R by stochastic gradient descent.")
    add, tune = made.add_argument, made.tuning.add_argument
    entries = "known entries: `row col value` lines, MatrixMarket, or what `diml convert` made"
    add("--datafile", metavar="FILE", help=f"{entries}; a directory or a pattern for several files")
    own = "the data are N files in all, and --datafile names those that each node holds"
    add("--pieces", type=at_least(1), metavar="N", help=own)
    add("--offsetsfile", metavar="FILE", help="the index of the blocks of --datafile")
    limit = "resident memory of a process, like 200MB: entries beyond it stay on disk"
    add("--memory_limit", type=size, metavar="SIZE", help=limit)
    add(
        "--generate",
        type=_planted_size,
        metavar="ROWSxCOLSxENTRIES",
        nargs="?",
        const=_planted_size(_PLANTED),
        help=f"train on planted data instead (default {_PLANTED})",
    )
    add("--K", type=at_least(1), default=100, help="the rank (default 100)")
    add("--num_iterations", type=at_least(1), default=100, help="passes (default 100)")
    outputs = "write PREFIX.L, PREFIX.R (both into PREFIX if it is a .npz or .h5), PREFIX.loss"
    add("--output_prefix", metavar="PREFIX", help=outputs)
    add("--loss_file", metavar="FILE", help="where the losses go (default PREFIX.loss)")
    add("--lambda", type=real(least=0), default=0.0, help="the regularizer (default 0)")
    add("--staleness", type=at_least(0), default=0, help="clocks that a read may lack (default 0)")
    step = "x of the step x(y+t)^-z (default 0.5); adagrad: the step itself (default 0.05)"
    add("--init_step_size", type=real(above=0), help=step)
    add("--step_size_offset", type=real(above=0), default=100.0, help="y (default 100)")
    add("--step_size_pow", type=real(least=0), default=0.5, help="z (default 0.5)")
    add("--test", metavar="FILE", help="held-out entries")
    share = real(least=0, most=0.99)
    add("--test_fraction", type=share, help="hold out this share (default 0; generated: 0.05)")
    add("--bias", action="store_true", help="learn the mean and row and column biases as well")
    add("--update", choices=UPDATES, default="petuum", help="the update rule (default petuum)")
    add("--init", choices=INITS, default="scaled", help="scaled (default) or petuum: U[-1,1)")
    engine = "ps (default): R on the servers; rotate: blocks of R travel round the workers"
    add("--engine", choices=ENGINES, default="ps", help=engine)
    add("--target_rmse", type=real(above=0), help="stop once the (held-out) RMSE is that low")
    add("--patience", type=at_least(1), help="stop after so many evaluations without a lower one")
    halve = "where a step makes the loss infinite, go back and halve it"
    add("--auto_step", action="store_true", help=halve)
    add("--format", choices=FORMATS, default="auto", help="of the files (default auto)")
    add("--one_based", action="store_true", help="ids in text files begin at 1")
    tune("--eval_every", type=at_least(1), default=1, help="iterations between evaluations")
    tune("--num_clocks_per_iter", type=at_least(1), help="column blocks (default: by the data)")
    held = "rows of L and of R that a worker holds at a time: L too is on the servers then"
    tune("--ps_row_cache_size", type=at_least(0), default=0, help=f"{held} (default 0: its share)")
    threads = "compute threads of a worker; results depend on their number, not on their timing"
    tune("--client_worker_threads", type=at_least(1), default=1, help=f"{threads} (default 1)")
    tune("--planted_rank", type=at_least(1), default=8, help="of generated data (default 8)")
    tune("--planted_noise", type=real(least=0), default=0.5, help="its noise (default 0.5)")
    tune("--planted_skew", type=real(least=0), default=0.0, help="its power law (default 0)")
    return made


@dataclass(frozen=True)
class Plan:
    """A checked command line."""

    source: Source
    rule: Rule
    flags: Namespace
    prefix: str | None
    loss_file: Path | None

    @property
    def goal(self) -> Goal:
        """When training may end early."""
        return Goal(self.flags.target_rmse, self.flags.patience)

    @property
    def outputs(self) -> list[Path]:
        """All files that will be written."""
        factors = factor_files(self.prefix) if self.prefix else []
        return factors + ([self.loss_file] if self.loss_file else [])


def plan_of(flags: Namespace, seed: int) -> Plan:
    """Check the flags against each other. Raises Misuse."""
    if (flags.datafile is None) == (flags.generate is None):
        raise Misuse("give either --datafile FILE or --generate")
    if flags.pieces is not None and flags.datafile is None:
        raise Misuse("--pieces goes with --datafile")
    if flags.test is not None and (flags.test_fraction is not None or flags.generate):
        raise Misuse("--test goes with --datafile and without --test_fraction")
    _check_engine(flags)
    planted, fraction = None, flags.test_fraction or 0.0
    if flags.generate:
        rows, cols, entries = flags.generate
        hidden = (flags.planted_rank, flags.planted_noise, flags.planted_skew)
        planted = Planted(rows, cols, entries, *hidden, seed)
        fraction = 0.05 if flags.test_fraction is None else fraction
    files = (flags.test, fraction, flags.format, flags.one_based)
    rule = Rule(
        k=flags.K,
        update=flags.update,
        decay=vars(flags)["lambda"],
        init_step_size=flags.init_step_size or DEFAULT_STEP[flags.update],
        step_size_offset=flags.step_size_offset,
        step_size_pow=flags.step_size_pow,
        biased=flags.bias,
        init=flags.init,
        seed=seed,
    )
    losses = flags.loss_file or (flags.output_prefix and f"{flags.output_prefix}.loss")
    stored = flags.offsetsfile, flags.memory_limit, flags.pieces
    source = Source(flags.datafile, planted, *files, seed, *stored)
    return Plan(source, rule, flags, flags.output_prefix, Path(losses) if losses else None)


def _check_engine(flags: Namespace) -> None:
    """Refuse flags that mean nothing to the engine. Raises Misuse."""
    if flags.ps_row_cache_size and flags.num_clocks_per_iter:
        raise Misuse("--ps_row_cache_size sets --num_clocks_per_iter: give one of them")
    if flags.auto_step and flags.eval_every != 1:
        raise Misuse("--auto_step evaluates every iteration: leave out --eval_every")
    if flags.engine == "ps":
        if flags.auto_step and flags.ps_row_cache_size:
            raise Misuse(
                "--auto_step keeps a copy of a worker's rows: not with --ps_row_cache_size"
            )
        return
    if flags.servers:
        raise Misuse("--engine rotate has no servers: leave out --servers")
    if flags.staleness or flags.num_clocks_per_iter:
        raise Misuse("--staleness and --num_clocks_per_iter go with --engine ps")
    if flags.ps_row_cache_size:
        raise Misuse("--ps_row_cache_size goes with --engine ps: more workers hold smaller blocks")


def servers_of(flags: Namespace) -> int:
    """Servers that the job takes of mpirun's processes where `--servers` is not given."""
    return 0 if flags.engine == "rotate" else 1
