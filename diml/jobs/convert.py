"""`diml convert IN OUT.h5`: text to the blocks that matrix factorization reads from disk.

Owns the command line. The work is `diml.data.convert`'s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from diml.data.blockfile import is_block_file
from diml.data.convert import Order, convert
from diml.data.files import files_of
from diml.data.offsets import read_offsets
from diml.data.outputs import check_apart
from diml.data.triplets import FORMATS
from diml.errors import Misuse
from diml.jobs.command import Command
from diml.jobs.flags import at_least, real, size


def parser() -> Command:
    """The command's flags."""
    made = Command("convert", "Turn known entries into blocks that training reads from disk.")
    add = made.add_argument
    add("source", metavar="IN", help="text or MatrixMarket; a directory or a pattern for several")
    add("target", metavar="OUT.h5", type=Path, help="the file to make")
    add("--test", metavar="FILE", help="held-out entries, kept in the file as well")
    share = real(least=0, most=0.99)
    add("--test_fraction", type=share, default=0.0, help="hold out this share (default 0)")
    add("--seed", type=at_least(0), default=0, help="of what is held out, and of the order")
    add("--format", choices=FORMATS, default="auto", help="of the files (default auto)")
    add("--one_based", action="store_true", help="ids in text files begin at 1")
    add("--offsetsfile", metavar="FILE", help="Petuum's offsets of IN: its shape is checked")
    groups = "the most workers (default 64 to 256, by the data)"
    add("--row_groups", type=at_least(1), metavar="N", help=groups)
    blocks = "the most blocks of columns (default 16 to 256, by the data)"
    add("--col_groups", type=at_least(1), metavar="N", help=blocks)
    memory = "used for sorting (default 256MB)"
    add("--memory_limit", type=size, default=size("256MB"), metavar="SIZE", help=memory)
    return made


def main(arguments: Sequence[str]) -> int:
    """Convert; returns 0. Raises Misuse for bad flags and bad input."""
    flags = parser().parse_args(arguments)
    if is_block_file(flags.source):
        raise Misuse(f"{flags.source}: text and MatrixMarket are converted, this is HDF5 already")
    if flags.test is not None and flags.test_fraction:
        raise Misuse("--test goes without --test_fraction")
    offsets = None
    if flags.offsetsfile is not None:
        if len(files_of(flags.source)) != 1:
            raise Misuse("--offsetsfile goes with one file")
        offsets = read_offsets(flags.offsetsfile)
    check_apart((flags.target,), (flags.source, flags.test, flags.offsetsfile))
    began = time.perf_counter()
    order = Order(
        flags.source,
        flags.target,
        test=flags.test,
        test_fraction=flags.test_fraction,
        seed=flags.seed,
        row_groups=flags.row_groups,
        col_groups=flags.col_groups,
        memory_bytes=flags.memory_limit,
        format=flags.format,
        one_based=flags.one_based,
        offsets=offsets,
    )
    facts = convert(order).facts
    print(
        f"{flags.target}: {facts.n_rows:,} x {facts.n_cols:,}, {facts.entries:,} entries, "
        f"{facts.test_entries:,} held out; {facts.row_groups} x {facts.col_groups} cells; "
        f"{time.perf_counter() - began:.1f} s"
    )
    return 0
