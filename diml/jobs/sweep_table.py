"""The CSV of a sweep: one line a finished trial, on the disk before the next one is handed out.

Owns the columns and what an earlier run has left. Must not know how trials run. Invariants: a line
is written whole and synced; each trial stands once; a file of another sweep is never touched.

    trial, one column for each flag that varies, seed, the metric, seconds, status, reason, sweep

status: ok; misuse (the job refused its flags or its input); failed (any other exit status);
diverged (the metric is not finite); no metric (the job told none of this name); lost (its ranks
died each time it was tried). reason: the job's own last words. sweep: which sweep it is.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from diml.errors import Misuse

Row = dict[str, str]
OK, MISUSE, FAILED, DIVERGED, NO_METRIC, LOST = (
    "ok", "misuse", "failed", "diverged", "no metric", "lost",
)  # fmt: skip
_STATUSES = (OK, MISUSE, FAILED, DIVERGED, NO_METRIC, LOST)


class Table:
    """The file, on the process that writes it."""

    def __init__(self, path: Path, flags: Iterable[str], metric: str, sweep: str) -> None:
        """Open the file, or make it with its header.

        A last line that was cut off while it was written is removed. Raises Misuse for a file
        that cannot be read or written, and for one of another sweep.
        """
        swept = [name for name in flags if name != "seed"]
        self.columns = [
            "trial", *swept, "seed", metric, "seconds", "status", "reason", "sweep",
        ]  # fmt: skip
        if len(set(self.columns)) < len(self.columns):
            raise Misuse(f"a flag or a metric is named as one of {', '.join(self.columns)}")
        self._path, self._sweep = path, sweep
        self.rows: dict[int, Row] = {}
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            text = path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if whole:
                self._take(whole.decode("utf-8", "replace"))
            os.ftruncate(self._descriptor, len(whole))
            if not whole:
                self._write(dict(zip(self.columns, self.columns, strict=True)))
        except OSError as error:
            raise Misuse(f"--csv {path}: {error.strerror or error}") from None
        except csv.Error:
            raise Misuse(f"--csv {path}: not of this sweep: it is no CSV") from None

    def _take(self, text: str) -> None:
        """Read what an earlier run has left; raises Misuse before anything is changed."""
        lines = list(csv.reader(io.StringIO(text)))
        if lines[0] != self.columns:
            raise Misuse(f"--csv {self._path}: not of this sweep: its columns are others")
        for number, cells in enumerate(lines[1:], start=2):
            row = dict(zip(self.columns, cells, strict=False))
            fits = len(cells) == len(self.columns) and row["trial"].isdigit()
            if not fits or row["status"] not in _STATUSES:
                raise Misuse(f"--csv {self._path}, line {number}: not a trial")
            if row["sweep"] != self._sweep:
                raise Misuse(
                    f"--csv {self._path}, line {number}: of another sweep (its job, flags or seed "
                    "differ); give another file"
                )
            self.rows[int(row["trial"])] = row

    def add(self, row: Mapping[str, str]) -> bool:
        """Append a finished trial; False if it is there already. Raises OSError."""
        trial = int(row["trial"])
        if trial in self.rows:
            return False
        self._write(row)
        self.rows[trial] = dict(row)
        return True

    def _write(self, row: Mapping[str, str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row[name] for name in self.columns])
        data = line.getvalue().encode()
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
