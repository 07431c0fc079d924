"""Matrix factorization by coordinate descent: python -m diml.jobs.ccd.

A second model-parallel program beside the Lasso. Owns the command line and the files; the model is
`diml.strads.ccd`'s. Its λ counts once for each row and column, not for each entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import diml
from diml.data import fingerprint
from diml.data.files import check_same_files
from diml.data.outputs import check_writable
from diml.data.triplets import Triplets, read_triplets
from diml.jobs.flags import JobParser, at_least, check_files, job_parser, parse, real, run_job
from diml.jobs.mf_files import factor_files, write_factors
from diml.strads import policy_by_name, run
from diml.strads.ccd import Factorization


def parser() -> JobParser:
    """The job's command line."""
    made = job_parser("ccd", "Matrix factorization M ~ L R by cyclic coordinate descent.")
    add = made.add_argument
    add("--datafile", required=True, metavar="FILE", help="`row col value` lines or MatrixMarket")
    add("--K", type=at_least(1), default=10, help="the rank (default 10)")
    add("--num_iterations", type=at_least(1), default=20, help="passes (default 20)")
    add("--lambda", type=real(least=0), default=0.1, help="the regularizer (default 0.1)")
    add("--output_prefix", metavar="PREFIX", help="write PREFIX.L, PREFIX.R (or a .npz or .h5)")
    add("--one_based", action="store_true", help="ids in text files begin at 1")
    made.tuning.add_argument(
        "--checkpoint_work",
        type=at_least(1),
        default=10_000_000,
        help="values between checkpoints (default 1e7)",
    )
    return made


def main(arguments: Sequence[str]) -> int:
    flags = parse(parser(), arguments)
    names = factor_files(flags.output_prefix) if flags.output_prefix else []
    for name in names:
        check_writable(name)
    check_files(flags, names, (flags.datafile,))
    with diml.init(flags=vars(flags)) as job:
        check_same_files(job, flags.datafile)
        entries: Triplets = read_triplets(
            flags.datafile, job.rank, job.size, one_based=flags.one_based
        )
        sizes = np.array([entries.n_rows, entries.n_cols], np.int64)
        rows, cols = (int(size) for size in job.allreduce(sizes, "max"))
        count = int(job.allreduce(np.array([len(entries)], np.int64), "sum")[0])

        mine = fingerprint.of_entries(entries.rows, entries.cols, entries.values)
        data = fingerprint.together(fingerprint.of_all(job, mine))
        job.identify(data=f"{rows}x{cols} {data}", K=flags.K, decay=vars(flags)["lambda"])

        def tell(passes: int, square: float, objective: float) -> None:
            if job.rank == 0:
                rmse = np.sqrt(square / max(count, 1))
                job.log(f"pass {passes}  rmse {rmse:.6f}  objective {objective:.6f}")

        program = Factorization(
            entries,
            (rows, cols),
            flags.K,
            decay=vars(flags)["lambda"],
            passes=flags.num_iterations,
            seed=job.settings.seed,
            listener=tell,
        )
        policy = policy_by_name("cyclic", program.variables, block=1)
        run(job, program, policy=policy, checkpoint_work=flags.checkpoint_work)
        if job.rank == 0 and flags.output_prefix:
            write_factors(flags.output_prefix, [program.L.T], [program.R.T])
    return 0


if __name__ == "__main__":
    run_job(main)
