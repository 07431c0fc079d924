"""The flags that every job takes, and the way in and out of a job's `main`.

Owns the command line: Petuum's spelling and hyphens are one (`--num_iterations` is
`--num-iterations`), a bad flag is a Misuse of one line, help and errors come from one rank though
all of them parse. Must not know what any job does. Starts no MPI.

    def main(arguments: Sequence[str]) -> int | None:
        parser = job_parser("mf", "Matrix factorization ...")
        parser.add_argument("--K", type=at_least(1), default=10, help="...")
        parser.tuning.add_argument("--block_rows", type=at_least(1), default=8192, help="...")
        flags = parse(parser, arguments)
        with diml.init(flags=vars(flags)) as job:
            ...

    if __name__ == "__main__":
        run_job(main)
"""

from __future__ import annotations

import argparse
import atexit
import gc
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from diml.config import OPTIONS, Option
from diml.data.outputs import Name, check_apart
from diml.ending import INTERRUPTED, output_refused
from diml.errors import DimlError, Misuse
from diml.world.launch import say_once, speaks


class JobParser(argparse.ArgumentParser):
    """A parser whose mistakes are Misuse. Everyday flags go in by `add_argument`, knobs by
    `tuning.add_argument`; the flags of the run itself are there already."""

    def __init__(self, job: str, description: str) -> None:
        super().__init__(
            prog=f"python -m diml.jobs.{job}", description=description, allow_abbrev=False
        )
        self.running = self.add_argument_group("the run")
        self.tuning = self.add_argument_group("tuning knobs")
        for option in OPTIONS:
            _add(self.running if option.everyday else self.tuning, option)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = [name for action in self._actions for name in action.option_strings]
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(as_declared(given, known), namespace)

    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        if speaks(os.environ):
            super()._print_message(message, file)


def job_parser(job: str, description: str) -> JobParser:
    """The parser of `python -m diml.jobs.JOB` with the flags that every job takes."""
    return JobParser(job, description)


def parse(parser: JobParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Raises Misuse for an unknown flag or a bad value."""
    return parser.parse_args(arguments)


def check_files(flags: argparse.Namespace, writes: Iterable[Name], reads: Iterable[Name]) -> None:
    """`check_apart` of what a job reads and writes, and of what any job may be told to write."""
    prometheus, events = (
        getattr(flags, name) or os.environ.get(f"DIML_{name.upper()}") or None
        for name in ("prometheus", "events")
    )
    check_apart((*writes, prometheus), reads, (events,))


def as_declared(arguments: Sequence[str], known: Sequence[str]) -> list[str]:
    """Spell the names of flags as they were declared, whether they came with `-` or with `_`.

    Values stay as they are, and so does all that follows a lone `--`.
    """
    declared = {name.replace("_", "-"): name for name in known}
    spelled: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return [*spelled, *arguments[position:]]
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            word = declared.get(name.replace("_", "-"), name) + equals + value
        spelled.append(word)
    return spelled


def at_least(least: int) -> Callable[[str], int]:
    """A flag's type: a whole number from `least` on."""

    def read(text: str) -> int:
        if not re.fullmatch("-?[0-9]+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return read


def real(
    *, above: float | None = None, least: float | None = None, most: float | None = None
) -> Callable[[str], float]:
    """A flag's type: a finite number, > `above`, >= `least`, <= `most` where these are given."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        if above is not None and number <= above:
            raise argparse.ArgumentTypeError(f"{text!r} is not above {above:g}")
        if least is not None and number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is below {least:g}")
        if most is not None and number > most:
            raise argparse.ArgumentTypeError(f"{text!r} is above {most:g}")
        return number

    return read


def size(text: str) -> int:
    """A flag's type: bytes, as 1000000, 200MB, 1.5GB or 64MiB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(?:([kKMGT])(i?)B?|B)?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, like 200MB")
    number, unit, binary = match.groups()
    power = " kMGT".index((unit or " ").replace("K", "k"))
    return int(float(number) * (1024 if binary else 1000) ** power)


def run_job(
    main: Callable[[Sequence[str]], int | None], *, hosts_programs: bool = False
) -> NoReturn:
    """Run a job's `main` on the command line and leave with its exit status.

    What goes wrong before `diml.init` (flags, mostly) goes wrong on all ranks alike: each leaves
    with the error's status, one says why. What goes wrong after it is `diml.init`'s to report.

    A job closes the files that it writes. So the interpreter need not look for garbage in all that
    has been imported when it ends, an eighth of a second of each rank with numba, unless programs
    of others have run in it.
    """
    if not hosts_programs:
        atexit.register(gc.freeze)
    try:
        status = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except DimlError as error:
        say_once(f"diml: {error}", os.environ)
        status = error.exit_status
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as error:
        if (refused := output_refused(error)) is None:
            raise
        say_once(f"diml: {refused}", os.environ)
        status = 1
    sys.exit(status)


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    """One setting as a flag. Values of no flag are None, so that a variable can be asked next."""
    default: dict[str, Any] = {"dest": option.setting, "default": None, "help": option.help}
    if option.metavar == "1 or 0":
        group.add_argument(option.flag, action="store_true", **default)
        return
    action = "append" if option.setting == "drills" else "store"
    group.add_argument(option.flag, action=action, metavar=option.metavar, **default)
