"""The command `diml`: what is not a job itself.

Owns the names of its subcommands and their exit status. Starts no MPI in its own process.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from diml.errors import DimlError, Misuse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status; a misuse is one line on stderr and 2."""
    parser = _Parser(prog="diml", description="Distributed machine learning over MPI.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    help_ = "say what this machine offers, what is missing, and what to do about it"
    doctor = commands.add_parser("doctor", help=help_, description=help_)
    doctor.add_argument("--fix", action="store_true", help="write the MPI settings first")
    try:
        flags = parser.parse_args(arguments)
        return _doctor(fix=flags.fix)
    except DimlError as error:
        print(f"diml: {error}", file=sys.stderr)
        return error.exit_status


def _doctor(*, fix: bool) -> int:
    """Examine, print each finding as it comes; 0 if all is fine, else 1."""
    # Imported here: `diml --help` needs none of it.
    from diml.world import doctor, mpi_params

    if fix:
        prefix = doctor.settings_prefix()
        if prefix is None:
            raise Misuse("--fix writes only into this environment's own MPI, and it has none")
        for path in mpi_params.write(prefix):
            print(f"written {path}")
    problems = 0
    for finding in doctor.examine(os.environ):
        print(finding, flush=True)
        problems += not finding.fine
    print("all fine" if problems == 0 else f"{problems} to mend, see the arrows above")
    return 0 if problems == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
