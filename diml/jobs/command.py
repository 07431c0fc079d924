"""Command lines of what `diml` does without MPI: convert, predict, recommend.

Owns the spelling: as for jobs, `-` and `_` are one in the names of flags, and a mistake is a Misuse
of one line. Must not know what any command does.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from diml.errors import Misuse
from diml.jobs.flags import as_declared


class Command(argparse.ArgumentParser):
    """The parser of `diml NAME`."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"diml {name}", description=description, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = [name for action in self._actions for name in action.option_strings]
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(as_declared(given, known), namespace)

    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} (see {self.prog} --help)")
