"""A worker's account of its work for the event log: how much, how long, how much of it waiting.

Owns the `work` events of a job. Must not know what the units are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_TELL_EVERY_S = 0.1


class Logs(Protocol):
    """What has an event log: `diml.Job`."""

    def event(self, what: str, **fields: Any) -> None: ...


class Account:
    """Made by every worker when its data are in memory."""

    def __init__(self, job: Logs, unit: str) -> None:
        """`unit` names what is counted, in the plural: "examples", "rows"."""
        self._job, self._unit = job, unit
        self._begun = time.perf_counter()
        self._told = -float("inf")
        self.units = 0
        self.waited_s = 0.0

    def waiting(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Make a call that waits for others; its time counts as waiting."""
        begun = time.perf_counter()
        result = call(*arguments, **named)
        self.waited_s += time.perf_counter() - begun
        return result

    def tell(self, last: bool = False) -> None:
        """Write the account into the event log: now and then, and at the end."""
        now = time.perf_counter()
        if not last and now - self._told < _TELL_EVERY_S:
            return
        self._told = now
        self._job.event(
            "work", units=self.units, unit=self._unit,
            seconds=now - self._begun, waited_s=self.waited_s,
        )  # fmt: skip
