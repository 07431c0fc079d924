"""Who is inside which DiML call: what tells a rank that waits from one that is late or stuck.

Owns a board in shared memory with one record a process of this host, and what to conclude from
it. The main thread only sets attributes; its process's watchdog publishes them at every tick.
Must not know what the calls do.

Invariants: a rank inside a DiML call is never fenced (if all are inside and nothing moves, they
have called different things, which is a mismatch); time is counted in the watcher's own ticks,
so that a suspended job is not taken for a late one. The board's memory has no name, so that nothing
is left behind, whoever dies when.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass

_RECORD = struct.Struct("<qqqqq")  # heartbeat, serial, inside, busy ticks left, length of the site
_SITE_BYTES = 216
_TICKS_AN_EVENT = 4
_STRIDE = _RECORD.size + _SITE_BYTES


@dataclass(frozen=True, slots=True)
class Standing:
    """What a process has published of itself.

    Attributes:
        heartbeat: ticks that its watchdog has made.
        serial: calls that it has begun.
        inside: whether it is in a call now.
        busy: whether it has asked for more time (`job.busy`).
        site: the call it is in, or was in last, as text.
    """

    heartbeat: int
    serial: int
    inside: bool
    busy: bool
    site: str


class Calls:
    """The call that this process is in; written by its main thread, read by its watchdog."""

    __slots__ = ("busy_ticks", "inside", "serial", "short", "site")

    def __init__(self) -> None:
        self.serial = 0
        self.inside: object = False
        self.busy_ticks = 0
        self.site: object = ""
        # Of calls so short that they only set `inside`, and that to something of their own: how
        # many there were, this one included, and the site of the last if nothing came after it.
        self.short: Callable[[object], tuple[int, object]] = lambda inside: (0, None)

    def now(self) -> tuple[int, bool, str]:
        """Number of calls that were begun, whether one is under way, and the site of the last."""
        inside = self.inside
        count, site = self.short(inside)
        return self.serial + count, bool(inside), str(site or self.site)

    def begin(self, site: object) -> None:
        """The main thread enters a call that may wait for others; `site` is shown by `str`."""
        self.site = site
        self.serial += 1
        self.inside = True

    def end(self) -> None:
        """The call is over; the user's program computes."""
        self.inside = False


class Activity:
    """How much of its time a process waits in calls, sampled by its watchdog for the event log."""

    def __init__(self, event: Callable[..., None], calls: Calls) -> None:
        self._event = event
        self._calls = calls
        self._ticks = self._waiting = 0

    def beat(self, inside: bool) -> None:
        """One tick; an event every fourth."""
        self._ticks += 1
        self._waiting += inside
        if self._ticks == _TICKS_AN_EVENT:
            self._event(
                "activity", ticks=self._ticks, waiting=self._waiting, calls=self._calls.now()[0]
            )
            self._ticks = self._waiting = 0


class Board:
    """The records of this host's processes, in shared memory."""

    def __init__(self, descriptor: int, slots: int) -> None:
        self.descriptor = descriptor
        self.slots = slots
        self._memory = mmap.mmap(descriptor, slots * _STRIDE)
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def create(cls, slots: int = 1) -> Board:
        """A new board, without a name: nobody else sees it who is not told of its descriptor."""
        descriptor = os.memfd_create("diml-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, slots * _STRIDE)
        return cls(descriptor, slots)

    @classmethod
    def open(cls, pid: int, descriptor: int) -> Board:
        """A board of another process. Raises OSError if it cannot be reached."""
        mine = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        return cls(mine, os.fstat(mine).st_size // _STRIDE)

    def publish(self, slot: int, heartbeat: int, calls: Calls) -> None:
        """Write this process's record."""
        serial, inside, text = calls.now()
        site = text.encode()[:_SITE_BYTES]
        record = _RECORD.pack(heartbeat, serial, int(inside), calls.busy_ticks, len(site))
        start = slot * _STRIDE
        self._memory[start : start + len(record) + len(site)] = record + site

    def read(self, slot: int) -> Standing:
        """A neighbour's record."""
        start = slot * _STRIDE
        heartbeat, serial, inside, busy, length = _RECORD.unpack_from(self._memory, start)
        text = start + _RECORD.size
        site = self._memory[text : text + length].decode(errors="replace")
        return Standing(heartbeat, serial, bool(inside), busy > 0, site)


class LateJudge:
    """Pure: from the workers' standings at each tick, who is late and whether nothing moves.

    A worker is late when it has been outside every call, without a new one, for as many ticks as
    a peer has waited in one; or when nothing is heard of it for so long, since a call into C that
    keeps the interpreter stops its watchdog too. Ticks are the judge's own.
    """

    def __init__(self, deadline_ticks: int) -> None:
        self._deadline_ticks = deadline_ticks
        self._seen: dict[int, tuple[int, bool]] = {}
        self._ticks: dict[int, int] = {}
        self._heard: dict[int, tuple[int, int]] = {}

    def tick(
        self, standings: dict[int, Standing], elsewhere: bool = False
    ) -> tuple[list[int], bool]:
        """The uids that are late now; and whether all wait in calls that have all outlived it, for
        one another or for those whom nobody here can see (`elsewhere`: there are such)."""
        for uid, standing in standings.items():
            state = (standing.serial, standing.inside)
            if self._seen.get(uid) != state or standing.busy:
                self._seen[uid] = state
                self._ticks[uid] = 0
            else:
                self._ticks[uid] += 1
            heartbeat, silent = self._heard.get(uid, (-1, 0))
            moves = heartbeat != standing.heartbeat or standing.busy
            self._heard[uid] = (standing.heartbeat, 0 if moves else silent + 1)
        for uid in set(self._seen) - set(standings):
            del self._seen[uid], self._ticks[uid], self._heard[uid]
        overdue = {uid for uid in standings if self._ticks[uid] >= self._deadline_ticks}
        heard = {uid for uid in overdue if self._heard[uid][1] < self._deadline_ticks}
        waiting = {uid for uid in heard if standings[uid].inside}
        if not waiting:
            return [], False
        late = sorted(overdue - waiting)
        others = elsewhere or len(waiting) > 1
        return late, not late and waiting == set(standings) and others
