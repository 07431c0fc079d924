"""How far a job is: a live line on a terminal, plain lines at intervals elsewhere, or nothing.

Owns the look of it, the question whether there is a terminal, and that one rank tells it. Must
not know what a job does. Writes to stderr, so that stdout holds results only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from diml.world.launch import singleton

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from diml.job import Job

_REFRESH_S = 0.1
_WIDE = 100  # columns of a terminal
_MEANS_NO_TERMINAL = ("dumb", "unknown")


class Progress:
    """The progress of one job, in steps. Use it in a `with` block.

    with Progress.of(job, "mf", total=30) as progress:
        progress.update(1, rmse=0.53, rate="23.1 M/s")
        progress.note("worker 1 died; a spare took its place in 34 ms")
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        quiet: bool = False,
        event: Callable[..., None] | None = None,
        repairs: Callable[[], Sequence[float]] | None = None,
        every_s: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            quiet: show nothing.
            event: `job.event`, to have every update in the event log as well.
            repairs: gives `job.repairs`; each new one is noted in a line of its own.
            every_s: the least time between two plain lines, in seconds.
        """
        self._title, self._total, self._quiet, self._event = title, total, quiet, event
        self._repairs = repairs
        self._noted = 0
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._width = None if quiet else terminal_width(self._stream, os.environ)
        self._between_s = every_s if self._width is None else _REFRESH_S
        self._started, self._printed = clock(), -float("inf")
        self._first: int | None = None
        self._live: RichProgress | None = None

    @classmethod
    def of(cls, job: Job, title: str, total: int) -> Progress:
        """The progress of a job: told by worker 0, on the terminal and in the event log, its
        repairs noted. The other workers' are mute."""
        speaks = job.rank == 0
        quiet = job.settings.quiet or not speaks
        event = job.event if speaks else None
        return cls(title, total, quiet=quiet, event=event, repairs=lambda: job.repairs)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: int, **values: float | str) -> None:
        """`done` of `total` steps are finished; `values` are shown in the order given.

        Cheap when called often: what comes too soon after the last line is not shown, except for
        the last step.
        """
        if self._event is not None:
            self._event("progress", done=done, total=self._total, values=values)
        if self._quiet:
            return
        self._note_repairs()
        now = self._clock()
        if self._first is None:
            # A replacement goes on in the middle: its speed is that of its own steps.
            self._first, self._started = done, now
        if now - self._printed < self._between_s and done < self._total:
            return
        self._printed = now
        if self._width is None:
            self._say(self.line(done, values, now))
        else:
            self._show(done, values)

    def note(self, text: str) -> None:
        """Print one line that stays, such as a repair."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._say(text)

    def _note_repairs(self) -> None:
        took = self._repairs() if self._repairs is not None else ()
        for number in range(self._noted, len(took)):
            which = f"repair {number + 1}" if number else "a process was lost"
            self.note(
                f"{self._title}: {which}, the job was whole again after {_brief(took[number])}"
            )
        self._noted = len(took)

    def line(self, done: int, values: Mapping[str, float | str], now: float) -> str:
        """One plain line: title, steps, values, and the time that is left."""
        share = 100 * done / self._total if self._total else 100.0
        words = [f"{self._title}: {done}/{self._total} ({share:.0f} %)", *_told(values)]
        steps = done - (self._first or 0)
        if steps > 0 and done < self._total:
            left_s = (now - self._started) / steps * (self._total - done)
            words.append(f"{_span(left_s)} left")
        return "  ".join(words)

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _show(self, done: int, values: Mapping[str, float | str]) -> None:
        # Imported here: only one rank of many shows a live line.
        from rich import progress as rich_progress
        from rich.console import Console
        from rich.table import Column

        if self._live is None:
            console = Console(file=self._stream, force_terminal=True, width=self._width)
            self._live = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(bar_width=20 if console.width >= _WIDE else 10),
                rich_progress.MofNCompleteColumn(),
                # What is left of the width is its own, and it wraps: the others stay readable.
                rich_progress.TextColumn("{task.fields[values]}", table_column=Column(ratio=1)),
                rich_progress.TimeElapsedColumn(),
                rich_progress.TimeRemainingColumn(),
                console=console,
                expand=True,
                auto_refresh=False,  # no thread beside MPI's calls
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.add_task(self._title, total=self._total, completed=done, values="")
            self._live.start()
        told = "  ".join(_told(values))
        self._live.update(self._live.task_ids[0], completed=done, values=told)
        self._live.refresh()


def terminal_width(stream: TextIO, env: Mapping[str, str]) -> int | None:
    """Columns of the terminal that a person sees `stream` on, or None if there is none.

    Under mpirun a rank's own streams tell nothing (stderr is a pipe to the launcher): the
    launcher's stderr is looked at, if the launcher is this process's parent on this host.
    """
    if env.get("TERM", "dumb") in _MEANS_NO_TERMINAL:
        return None
    with contextlib.suppress(OSError, ValueError):
        if stream.isatty():
            return os.get_terminal_size(stream.fileno()).columns or 80
        if stream is sys.stderr and not singleton(env):
            seen = os.readlink(f"/proc/{os.getppid()}/fd/2")
            if seen.startswith(("/dev/pts/", "/dev/tty")):
                terminal = os.open(seen, os.O_WRONLY | os.O_NOCTTY)
                try:
                    return os.get_terminal_size(terminal).columns or 80
                finally:
                    os.close(terminal)
    return None


def _told(values: Mapping[str, float | str]) -> list[str]:
    """Each value behind its name (underscores as spaces), numbers to four digits."""
    return [
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.4g}'}"
        for name, value in values.items()
    ]


def _brief(seconds: float) -> str:
    """A short duration: 53 ms, 1.2 s."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _span(seconds: float) -> str:
    """A duration as a person says it: 8 s, 3 min, 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
