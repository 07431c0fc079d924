"""What matrix factorization writes beside its factors: the loss file.

Owns its format and the check, before any work, that files can be written. Must not know where
the numbers come from.

Invariant: a loss file has one header line and each iteration once, whole lines only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TextIO

from diml.data.written import refused
from diml.jobs.mf_evaluation import Evaluation


def check_writable(paths: Iterable[Path]) -> None:
    """Raise Misuse, naming the file, for the first one that cannot be written."""
    for path in paths:
        try:
            existed = path.exists()
            with open(path, "ab"):
                pass
            if not existed:
                path.unlink()
        except OSError as error:
            raise refused(path, error) from None


class LossFile:
    """A CSV of evaluations: the columns are the fields of `Evaluation`.

    A replacement of the rank that writes it begins it again with what was evaluated before, which
    it reads from the parameter server: so each iteration stands once wherever a death came.
    """

    def __init__(self, path: Path) -> None:
        """Begin the file with its header. Raises Misuse if it cannot be written."""
        self._path = path
        try:
            self._file: TextIO = open(path, "w", encoding="ascii")  # noqa: SIM115 (see close)
        except OSError as error:
            raise refused(path, error) from None
        self._write(field.name for field in fields(Evaluation))

    def append(self, evaluations: Sequence[Evaluation]) -> None:
        """Add a line for each, flushed. Raises Misuse where the disk refuses."""
        for evaluation in evaluations:
            self._write(_cell(name, value) for name, value in asdict(evaluation).items())

    def close(self) -> None:
        """Close the file; what it has not taken has been told."""
        with suppress(OSError):
            self._file.close()

    def _write(self, cells: Iterable[str]) -> None:
        try:
            self._file.write(",".join(cells) + "\n")
            self._file.flush()
        except OSError as error:
            raise refused(self._path, error) from None


def _cell(name: str, value: float) -> str:
    """A number as it stands in the file; nothing for what was not measured."""
    if value != value and name == "test_rmse":
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if name.endswith("seconds") else f"{value:.9g}"
