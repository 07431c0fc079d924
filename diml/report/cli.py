"""`diml report`: from event logs to one page, or to one picture.

Owns the command line and the files. Starts no MPI.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diml.data.outputs import check_apart
from diml.data.written import whole
from diml.errors import Misuse
from diml.events import read_events
from diml.report.page import comparison, facts, page
from diml.report.png import draw
from diml.report.run import Run, run_of, told


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str]) -> int:
    """Read logs, write the page, say the same in words; returns 0.

    Raises Misuse naming the file (and the line) of a log that cannot be read or is none, and of
    an output that cannot be written.
    """
    parser = _Parser(prog="diml report", description="An event log as a page to look at.")
    parser.add_argument(
        "logs", nargs="+", metavar="LOG", help="files of --events; several: compare"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the page (LOG with .html)")
    parser.add_argument("--png", metavar="FILE", help="a picture for papers (needs matplotlib)")
    flags = parser.parse_args(arguments)
    runs = [(name, run_of(read_events(Path(name)))) for name in flags.logs]
    output = Path(flags.output) if flags.output else Path(flags.logs[0]).with_suffix(".html")
    check_apart((output, flags.png), flags.logs)
    text = page(runs[0][1], runs[0][0]) if len(runs) == 1 else comparison(runs)
    _write(output, text)
    _say(runs)
    print(f"written {output}")
    if flags.png:
        draw(runs, Path(flags.png))
        print(f"written {flags.png}")
    return 0


def _say(runs: Sequence[tuple[str, Run]]) -> None:
    """The facts as a table of text, then what happened to each run."""
    rows = [("", [name for name, _ in runs]), *facts(runs)]
    wide = max(len(label) for label, _ in rows)
    widths = [max(len(cells[n]) for _, cells in rows) for n in range(len(runs))]
    for label, cells in rows:
        columns = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"{label:<{wide}}  {'  '.join(columns)}".rstrip())
    for name, run in runs:
        for death in run.deaths:
            print(f"{name}: {told(death)}")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with whole(path) as (beside,):
        beside.write_text(text, encoding="utf-8")
