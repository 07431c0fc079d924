"""The block file behind what a job was given: named by the user, or made beside the text.

Owns when a text is converted and whether a file that is there still fits it. Must not know how.
Invariant: among all processes of a host one converts; the others wait for it and take its file.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from diml.data.blockfile import BlockFile, is_block_file
from diml.data.convert import Order, convert, name_and_length
from diml.data.files import files_of
from diml.data.offsets import Offsets
from diml.errors import Misuse

SUFFIX = ".blocks.h5"


def given_blocks(datafile: str, offsetsfile: str | None) -> BlockFile | None:
    """The block file that was named as the data, or as their index; None if neither is one.

    Raises Misuse for one that is damaged, or was made of other data.
    """
    if is_block_file(datafile):
        if offsetsfile is not None:
            raise Misuse(f"{datafile} has its own index: leave out --offsetsfile")
        return BlockFile(datafile)
    if offsetsfile is None or not is_block_file(offsetsfile):
        return None
    file = BlockFile(offsetsfile)
    made_of, asked = file.facts.source, name_and_length(files_of(datafile))
    if made_of != asked:
        raise Misuse(f"{offsetsfile}: made of {made_of}, not of {asked}: convert it again")
    return file


def made_blocks(order: Order) -> BlockFile:
    """Convert, unless a file that fits the order and is younger than its source is there.

    Raises Misuse for bad input, or where the directory cannot be written to.
    """
    lock = order.target.with_name(f".{order.target.name}.lock")
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise Misuse(
            f"{order.target}: cannot write it ({error.strerror}): convert the data to another "
            "place with `diml convert`, and give that file"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return _fitting(order) or convert(order)
    finally:
        os.close(descriptor)


def beside(
    datafile: str,
    *,
    test_fraction: float,
    seed: int,
    format: str,
    one_based: bool,
    offsets: Offsets | None,
    memory_bytes: int,
) -> Order:
    """The order to convert a text into a file beside it. Raises Misuse for several files."""
    if files_of(datafile) != [datafile]:
        raise Misuse(
            f"--memory-limit: {datafile} is not one file: convert it first with `diml convert`"
        )
    return Order(
        datafile,
        Path(datafile + SUFFIX),
        test_fraction=test_fraction,
        seed=seed,
        format=format,
        one_based=one_based,
        offsets=offsets,
        memory_bytes=memory_bytes,
    )


def _fitting(order: Order) -> BlockFile | None:
    """The file that is there, if converting would make the same one."""
    try:
        if order.target.stat().st_mtime_ns < os.stat(order.source).st_mtime_ns:
            return None
        file = BlockFile(order.target)
    except (OSError, Misuse):
        return None
    facts = file.facts
    wanted = name_and_length([order.source]), order.seed, order.test_fraction, order.one_based
    found = facts.source, facts.seed, facts.test_fraction, facts.one_based
    return file if found == wanted else None
