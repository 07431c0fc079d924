"""A worker's conversation with its servers: every send, every wait, every deadline.

Owns waiting. Must not know what tables are. A call that meets a death recovers and goes on: the
hook of `diml.ps.node` sends again what has to be, so whoever waits here just keeps waiting.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from diml.errors import DeadlineExceeded, Misuse, PeerFailed
from diml.ps.client_core import ClientCore
from diml.ps.message import Address, Bytes, Rows, Send, text_of
from diml.ps.port import UNASKED, Port
from diml.ps.quick import Quick

_WHO_TIMEOUT_S = 5.0
_ONLY_SERVER = Address("server", 0)

Drill = Callable[[int, int, str], None]


class Calls(Protocol):
    """Who is told that this process waits for others (`diml.world.calls`)."""

    serial: int

    def begin(self, site: object) -> None:
        """A wait begins."""

    def end(self) -> None:
        """It is over."""


class Session:
    """The worker's core, and its way to the servers. `with session:` is one public call.

    Attributes:
        seen: how many reads have seen which staleness.
        turn: threads of the worker take turns.
        over: whether the job is.
    """

    def __init__(
        self, port: Port, core: ClientCore, deadline_s: float, drill: Drill | None, calls: Calls
    ) -> None:
        """`drill`: None where none is due in this run."""
        self.core = core
        self._wire = port.wire
        self._port, self._deadline_s, self._drill = port, deadline_s, drill
        self._waits = calls
        self._revoked_by_none = False
        # Calls of the program since its clock began: the sequence of a drill.
        self._calls = 0
        self._began_at = 0
        self.seen: Counter[int] = Counter()
        self.turn = threading.RLock()
        self.over = False

    def __enter__(self) -> Session:
        """A public call begins: threads of one worker take turns. Raises Misuse after the job."""
        if self.over:
            raise Misuse("the job is over: its `with` block has been left")
        self.turn.acquire()
        if self._drill is not None:
            self._began_at = self.core.clock
            self._drill(self._began_at, self._calls, "entry")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """It ends; after one that ended a clock, calls are counted anew."""
        if kind is None and self._drill is not None:
            self._drill(self._began_at, self._calls, "after")
            self._calls = self._calls + 1 if self.core.clock == self._began_at else 0
        self.turn.release()

    def post(self, sends: list[Send]) -> None:
        """Send; after a death the hook has sent again what was not."""
        try:
            self._port.post(sends)
        except PeerFailed:
            self._recover()

    def strike_inside(self) -> None:
        """The place of a drill inside a call: all is sent, nothing has been answered."""
        if self._drill is not None:
            self._drill(self.core.clock, self._calls, "inside")

    def read(self, quick: Quick, ids: ArrayLike, what: str) -> Rows | None:
        """Rows by the short way, as far as it leads: if another message comes, or none soon, or
        somebody has died, by the long way from there. None, and nothing is asked, if all of it must
        go the long way. Raises DeadlineExceeded and Misuse."""
        wire, core = self._wire, self.core
        assert wire is not None
        with self.turn:
            plain = quick.ready(ids)
            if plain is None or self.over:
                return None
            self._waits.serial += 1
            room, failed = np.empty(quick.room_bytes, np.uint8), False
            clock, n, request = core.clock, core.n, core.questions.next
            try:
                slowest, mark, its_n = wire.exchange(quick, plain, room, clock, n, request)
                if slowest >= 0:
                    rows, staleness = quick.shown(room, slowest, mark, its_n)
                    self.seen[staleness] += 1
                    return rows
                if slowest == UNASKED:
                    return None
            except PeerFailed:
                failed = True
            # From here on the core knows the question, so that a repair asks it again.
            core.get(quick.spec, quick.ids)
            if failed:
                self._recover()
            self.answered(request, what)
            rows, staleness = core.rows_of(request)
            self.seen[staleness] += 1
            return rows

    def update(self, quick: Quick, buffer: Bytes) -> bool:
        """Take an update by the short way; False, and nothing is done, if the job is over."""
        with self.turn:
            if not self.over:
                self.core.update_framed(quick.spec, buffer)
        return not self.over

    def end_clock(self) -> bool:
        """End a clock by the short way; False, and nothing is done, if it takes the long way."""
        wire = self._wire
        if wire is None or self._drill is not None or self.over:
            return False
        with self.turn:
            core = self.core
            framed = core.finish_framed() if core.all_acknowledged else None
            if framed is None:
                return False
            try:
                wire.send_framed(_ONLY_SERVER, framed)
            except PeerFailed:
                self._recover()
        return True

    def ask(self, request: int, sends: list[Send], what: str) -> None:
        """Send a question and wait for all its answers. Raises DeadlineExceeded."""
        self.post(sends)
        self.strike_inside()
        self.answered(request, what)

    def answered(self, request: int, what: str) -> None:
        """Wait for all answers to a question. Raises DeadlineExceeded."""
        questions = self.core.questions
        asked = questions.open[request]
        if not asked.done:
            self.wait(lambda: asked.done, what, lambda: questions.silent(request))

    def wait(self, ready: Callable[[], bool], what: str, silent: Callable[[], list[int]]) -> None:
        """Take what comes until `ready`. `silent` says which servers are waited for.

        Raises DeadlineExceeded, naming who is late and at which clock.
        """
        if ready():
            return
        self._waits.begin(what)
        begun = time.monotonic()
        while not ready():
            self._take(1.0)
            waited_s = time.monotonic() - begun
            # A revoked link and nobody dead: the watchdog has found everyone waiting for ever.
            stuck = self._revoked_by_none and waited_s > self._deadline_s / 2
            if (stuck or waited_s > self._deadline_s) and not ready():
                raise DeadlineExceeded(self._late(what, silent(), waited_s))
        self._waits.end()

    def take_all(self) -> None:
        """Handle what has come already."""
        while self._take(0.0):
            pass

    def _take(self, timeout_s: float) -> bool:
        """Handle the next message; False if none came in time. Recovers from a death."""
        try:
            found = self._port.receive(timeout_s)
        except PeerFailed:
            self._recover()
            return True
        if found is not None:
            self.core.handle(found[0].number, found[1])
        return found is not None

    @property
    def has_wire(self) -> bool:
        """Whether calls can go the short way, which has no place inside for a drill to strike."""
        return self._wire is not None and self._drill is None

    def _recover(self) -> None:
        self._revoked_by_none = not self._port.recover()

    def _late(self, what: str, servers: list[int], waited_s: float) -> str:
        """An error's words: what the silent servers wait for, as far as they still say."""
        where = f"{what} of worker {self.core.worker} at clock {self.core.clock}"
        request, sends = self.core.ask_who_is_late(servers)
        self.post(sends)
        end = time.monotonic() + min(_WHO_TIMEOUT_S, self._deadline_s)
        while not self.core.questions.done(request) and time.monotonic() < end:
            self._take(0.1)
        answers = self.core.questions.take(request).replies
        words = [f"server {s} waits for {text_of(answers[s])}" for s in sorted(answers)]
        words += [f"server {s} does not answer" for s in servers if s not in answers]
        return f"{where} waited {waited_s:.1f} s: {'; '.join(words)}"
