"""Who runs which trial: the desk on worker 0, and a group's leader who asks it.

Owns the two messages (JSON): a leader hands in a finished row, if it has one, and asks; the answer
is the next trial, or to meet. Must not know what a trial is. The desk works in a thread of worker
0, whose main thread runs trials as all others do.

Invariants: a trial is at one group at a time; a row is on the disk before its group gets the next
trial; after a death nobody gets one, so that all come to meet and the world is repaired.
"""

from __future__ import annotations

import collections
import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

from diml.errors import DimlError, PeerFailed

_ASK, _ANSWER = 1, 2
_LOOK_S = 0.2

Row = dict[str, str]


class Desk:
    """Hands out trials and takes rows until it is closed."""

    def __init__(self, link: Any, trials: Iterable[int], record: Callable[[Row], None]) -> None:
        """Open. `link` reaches all workers and is this thread's alone; `record` keeps a row."""
        self._link, self._record = link, record
        self._trials = collections.deque(trials)
        self._running: set[int] = set()
        self._waiting: set[int] = set()
        self._ended = False
        self._over = threading.Event()
        self.problem: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="diml-sweep-desk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more questions will come. Raises what has gone wrong at the desk."""
        self._over.set()
        self._thread.join()
        if self.problem is not None:
            raise self.problem

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                message = self._link.receive(tag=_ASK, timeout_s=_LOOK_S)
                if message is not None:
                    self._take(message.source, json.loads(message.data.tobytes()))
            except PeerFailed:
                # Somebody died: after the trials that are under way all meet.
                self._end()
                with contextlib.suppress(DimlError):
                    self._link.ack_deaths()
                self._over.wait(_LOOK_S / 20)
            except Exception as error:  # a full disk; told on the main thread
                self.problem = error
                self._end()

    def _take(self, source: int, row: Row | None) -> None:
        self._running.discard(source)
        self._waiting.add(source)
        if row is not None:
            self._record(row)
        if self._trials and not self._ended:
            self._running.add(source)
            self._answer(source, self._trials.popleft())
        elif self._ended or not self._running:
            self._end()

    def _end(self) -> None:
        self._ended = True
        for source in list(self._waiting):
            self._answer(source, None)

    def _answer(self, source: int, trial: int | None) -> None:
        self._waiting.discard(source)
        with contextlib.suppress(DimlError):
            self._link.isend(json.dumps(trial).encode(), source, _ANSWER)


def next_trial(
    group: Any, row: Row | None, told: Callable[[], object] = lambda: False
) -> int | None:
    """The trial that this process's group is to run, the same on all its members; None: meet.

    Collective over the group; its leader hands in `row`, and runs nothing more once it is `told` to
    stop. Waits without using the core.
    """
    try:
        if group.link.rank != 0:
            message = group.link.receive(0, _ANSWER)
            return _read(message)
        group.everyone.isend(json.dumps(row).encode(), 0, _ASK)
        trial = _read(group.everyone.receive(0, _ANSWER))
    except PeerFailed:
        trial = None
    if told():
        trial = None
    if group.link.rank == 0:
        for member in range(1, group.link.size):
            with contextlib.suppress(DimlError):
                group.link.isend(json.dumps(trial).encode(), member, _ANSWER)
    return trial


def _read(message: Any) -> int | None:
    trial: int | None = json.loads(message.data.tobytes())
    return trial
