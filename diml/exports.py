"""How far a run is, for other programs to watch: TensorBoard and Prometheus.

Owns what becomes of an event there. Fed with the events of this process by `diml.events`; only
the worker that tells the progress writes anything, so one process of the run does. Must not know
ranks' communication nor jobs. A file that cannot be written ends the export with one line on
stderr, never the run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diml.errors import Misuse

Sink = Callable[[Mapping[str, Any]], None]
_WRITE_EVERY_S = 1.0


def sinks_of(tensorboard: Path | None, prometheus: Path | None) -> list[Sink]:
    """The exports that were asked for. Raises Misuse where they cannot be."""
    sinks: list[Sink] = []
    if tensorboard is not None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise Misuse("--tensorboard needs tensorboardX: pip install 'diml[tensorboard]'")
        there = next(one for one in (tensorboard, *tensorboard.absolute().parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise Misuse(f"--tensorboard {tensorboard}: no directory can be made there")
        sinks.append(_guarded("--tensorboard", TensorBoard(tensorboard)))
    if prometheus is not None:
        if not prometheus.parent.is_dir():
            raise Misuse(f"--prometheus {prometheus}: no such directory")
        if prometheus.exists() and not prometheus.is_file():
            raise Misuse(f"--prometheus {prometheus}: it is no ordinary file")
        sinks.append(_guarded("--prometheus", Prometheus(prometheus)))
    return sinks


def _guarded(name: str, sink: Sink) -> Sink:
    """The same sink, given up with one line at its first error."""
    failed = False

    def write(event: Mapping[str, Any]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            sink(event)
        except OSError as error:
            failed = True
            print(f"diml: {name} ends here: {error.strerror}", file=sys.stderr, flush=True)

    return write


class TensorBoard:
    """Numbers of the progress and seconds of each repair as scalars, by step.

    Each is on disk when the call returns. (tensorboardX's own SummaryWriter hands its events to a
    thread through a queue between processes: what it holds would be lost at the exit.)
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: Any = None
        self._step = 0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        if event["what"] == "progress":
            self._step = int(event["done"])
            self._write(event["time"], numbers(event["values"]))
        elif event["what"] == "repair" and self._file is not None:
            self._write(event["time"], [("repair seconds", float(event["seconds"]))])
        elif event["what"] == "leave" and self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, wall_time: float, scalars: Sequence[tuple[str, float]]) -> None:
        # Imported here: only the worker that tells the progress needs it.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(self._directory / "events"))
        for name, value in scalars:
            told = summary.scalar(name, value, display_name=name)
            self._file.write_event(Event(wall_time=wall_time, step=self._step, summary=told))
        self._file.flush()


class Prometheus:
    """The newest numbers as a text file in Prometheus's exposition format, for the textfile
    collector of its node exporter; replaced as a whole, at most once a second until the end."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._progress: Mapping[str, Any] | None = None
        self._repairs, self._repair_s = 0, 0.0
        self._written = -float("inf")

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        what = event["what"]
        if what == "progress":
            self._progress = event
        elif what == "repair":
            self._repairs += 1
            self._repair_s += float(event["seconds"])
        if self._progress is None or what not in ("progress", "repair", "leave"):
            return
        last = what == "leave" or self._progress["done"] >= self._progress["total"]
        if last or self._clock() - self._written >= _WRITE_EVERY_S:
            self._written = self._clock()
            self._write(self._progress)

    def _write(self, event: Mapping[str, Any]) -> None:
        run = f'run="{_label(str(event["run"]))}"'
        lines = [
            *_metric("done_steps", "gauge", "Steps finished.", [(run, event["done"])]),
            *_metric("total_steps", "gauge", "Steps of the whole run.", [(run, event["total"])]),
            *_metric("progress_timestamp_seconds", "gauge", "When it was told.",
                     [(run, event["time"])]),
            *_metric("repairs_total", "counter", "Repairs of the world.", [(run, self._repairs)]),
            *_metric("repair_seconds_total", "counter", "Time in repairs.",
                     [(run, self._repair_s)]),
            *_metric("value", "gauge", "Numbers that the job tells, by name.", [
                (f'{run},name="{_label(name)}"', value)
                for name, value in numbers(event["values"])
            ]),
        ]  # fmt: skip
        beside = self._path.with_name(self._path.name + ".part")
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(beside, self._path)


def numbers(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The values that are numbers, underscores of their names as spaces."""
    return [
        (name.replace("_", " "), float(value))
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _metric(name: str, kind: str, about: str, samples: list[tuple[str, int | float]]) -> list[str]:
    head = [f"# HELP diml_{name} {about}", f"# TYPE diml_{name} {kind}"]
    return [*head, *(f"diml_{name}{{{labels}}} {value!r}" for labels, value in samples)]


def _label(text: str) -> str:
    """As a label's value has to be written."""
    return re.sub(r'[\\"]', r"\\\g<0>", text).replace("\n", "\\n")
