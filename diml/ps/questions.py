"""A worker's questions to its servers, and the answers so far. Pure.

Owns the numbers of questions and who has yet to answer. Must not know what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diml.ps.message import Address, Kind, Message, Send
from diml.ps.reading import Reading

_NUMBERS = 2**32


@dataclass(slots=True)
class Request:
    """A question to one or more servers, and the answers so far."""

    messages: dict[int, Message]
    reading: Reading | None = None
    replies: dict[int, Message] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every server has answered."""
        return len(self.replies) == len(self.messages)


class Questions:
    """The open questions of one worker.

    Attributes:
        next: the number that the next question's messages must carry.
        open: by number, what has not been taken yet.
    """

    def __init__(self, worker: int, servers: list[Address]) -> None:
        self._worker, self._servers = worker, servers
        self.next = 0
        self.open: dict[int, Request] = {}

    def ask_all(self, message: Message) -> tuple[int, list[Send]]:
        """Ask every server the same; its number is filled in."""
        message = message._replace(worker=self._worker, request=self.next)
        return self.ask(dict.fromkeys(range(len(self._servers)), message))

    def ask(
        self, asked: dict[int, Message], reading: Reading | None = None
    ) -> tuple[int, list[Send]]:
        """Remember a question by server; its messages carry the number `next`."""
        request = self.next
        self.next = (request + 1) % _NUMBERS
        self.open[request] = Request(asked, reading)
        return request, [Send(self._servers[server], asked[server]) for server in asked]

    def skip(self) -> None:
        """The next question was asked, and answered, without a message (`diml.ps.quick`)."""
        self.next = (self.next + 1) % _NUMBERS

    def answer(self, server: int, message: Message) -> None:
        """Take an answer. One to a question that was given up is dropped."""
        if message.request in self.open:
            self.open[message.request].replies[server] = message

    def done(self, request: int) -> bool:
        """Whether every server has answered."""
        return self.open[request].done

    def give_up(self, kinds: frozenset[Kind]) -> None:
        """Count questions of these kinds as done, without any answer."""
        for asked in self.open.values():
            if any(message.kind in kinds for message in asked.messages.values()):
                asked.messages, asked.replies = {}, {}

    def silent(self, request: int) -> list[int]:
        """Servers that have not answered."""
        asked = self.open[request]
        return [server for server in asked.messages if server not in asked.replies]

    def take(self, request: int) -> Request:
        """The question with its answers; it is over."""
        return self.open.pop(request)
