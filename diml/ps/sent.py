"""What a worker has sent and may have to send again. Pure.

Owns the worker's half of "exactly once": updates are retained until they cannot be needed again,
that is until their server acknowledged them, or, where clocks are transactions, until every server
has acknowledged their clock (a server that goes back a clock needs it anew). Must not know
tables, nor who waits.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from diml.ps.message import CLOCK_END, Address, Bytes, Message, Send, decode, update_key


class Framed(NamedTuple):
    """An update that is a clock, as the bytes of its message, for a time without looking at it."""

    clock: int
    n: int
    mark: int
    buffer: Bytes

    def opened(self) -> Message:
        """The message."""
        message = decode(self.buffer)
        return message._replace(clock=self.clock, n=self.n, mark=self.mark)


class Sent:
    """The updates that one worker has sent.

    Attributes:
        watermark: clocks that every server has acknowledged.
    """

    def __init__(self, servers: list[Address], buffered: bool) -> None:
        """`buffered`: clocks are transactions."""
        self._servers, self._buffered = servers, buffered
        self.watermark = 0
        self._retained: list[deque[Message | Framed]] = [deque() for _ in servers]
        # By server, the first (clock, n) that it has not acknowledged.
        self._acknowledged = [(0, 0)] * len(servers)

    def begin(self, clock: int) -> None:
        """Everything before this clock is there."""
        self._acknowledged = [(clock, 0)] * len(self._servers)
        self.watermark = clock

    def retain(self, by_server: list[list[Message]]) -> list[Send]:
        """Remember these messages by server; returns them on their way.

        What a former life of this worker has had acknowledged is acknowledged: nobody says so
        once more."""
        sends = []
        for server, messages in enumerate(by_server):
            needed = self._needed(server)
            for message in messages:
                if update_key(message) >= needed:
                    self._retained[server].append(message)
                sends.append(Send(self._servers[server], message))
        return sends

    def retain_framed(self, clock: int, n: int, buffer: Bytes) -> Framed:
        """Remember what goes to the only server."""
        framed = Framed(clock, n, self.watermark, buffer)
        self._retained[0].append(framed)
        return framed

    def _messages(self, server: int) -> list[Message]:
        """What a server may need again."""
        return [m if isinstance(m, Message) else m.opened() for m in self._retained[server]]

    def acknowledge(self, server: int, clock: int, n: int) -> None:
        """A server has all before (clock, n)."""
        acknowledged = self._acknowledged
        before, acknowledged[server] = acknowledged[server], (clock, n)
        if before[0] != clock:
            self.watermark = min(acknowledged)[0]
        if before != (clock, n):
            self._trim()

    def _trim(self) -> None:
        """Forget updates that cannot be needed again."""
        for server, retained in enumerate(self._retained):
            needed = self._needed(server)
            while retained and _key(retained[0]) < needed:
                retained.popleft()

    def _needed(self, server: int) -> tuple[int, int]:
        """The first (clock, n) that may be needed again."""
        return (self.watermark, 0) if self._buffered else self._acknowledged[server]

    def has_all(self, stamp: tuple[int, int]) -> bool:
        """Whether the update sent as (clock, n) has been acknowledged wherever it went."""
        return all(not kept or (kept[0].clock, kept[0].n) > stamp for kept in self._retained)

    @property
    def most(self) -> int:
        """Messages that one server has yet to acknowledge, at most."""
        return max(len(kept) for kept in self._retained)

    def complete(self, stamp: tuple[int, int]) -> bool:
        """Whether every server has acknowledged everything before (clock, n)."""
        return min(self._acknowledged) >= stamp

    def behind(self, stamp: tuple[int, int]) -> list[int]:
        """Servers that have not acknowledged everything before (clock, n)."""
        return [server for server, at in enumerate(self._acknowledged) if at < stamp]

    def unapplied(self, server: int, table: int, since: tuple[int, int]) -> list[Message]:
        """Updates of a table that a server had not applied when (clock, n) was its next."""
        return [
            update
            for update in self._messages(server)
            if update.table == table and (update.clock, update.n) >= since
        ]

    def again(self, ledgers: list[tuple[int, int]]) -> list[Send]:
        """After a repair: what the servers, whose next (clock, n) these are, do not have."""
        sends = []
        for server, (to, ledger) in enumerate(zip(self._servers, ledgers, strict=True)):
            messages = self._messages(server)
            sends += [Send(to, message) for message in messages if update_key(message) >= ledger]
        self._acknowledged = list(ledgers)
        self.watermark = min(ledgers)[0]
        self._trim()
        return sends


def _key(sent: Message | Framed) -> tuple[int, int]:
    """As `update_key`."""
    return (sent.clock, CLOCK_END) if isinstance(sent, Framed) else update_key(sent)
