"""A worker's part in durable checkpoints: the meeting, the stop in good order, and what was there.

Owns the worker's side of `diml.ps.saving`. Must not know files: `Durable` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diml.checkpoint.codec import decode, encode
from diml.checkpoint.keeper import StopRequest
from diml.errors import Misuse, Resumable
from diml.ps.durable import Durable
from diml.ps.message import Flag, Ids, Kind, Message, blob_rows
from diml.ps.saving import STOP
from diml.ps.session import Session
from diml.ps.snapshot import Origin
from diml.world import marker

_POLL_S = 0.05

End = Callable[[int, str], BaseException]


class Resumed:
    """The checkpoint that this run goes on from.

    Attributes:
        clock: where the run goes on.
        workers: how many wrote it.
    """

    def __init__(self, session: Session, origin: Origin) -> None:
        self._session = session
        self.clock, self.workers = origin.clock, origin.workers

    def local(self, worker: int) -> Any:
        """The state that a worker of that run gave to the checkpoint, or None."""
        if not 0 <= worker < self.workers:
            raise Misuse(f"the checkpoint is of workers 0..{self.workers - 1}, not {worker}")
        with self._session as session:
            core = session.core
            home = worker % core.servers
            ask = Message(Kind.RECALL, core.worker, n=worker, request=core.questions.next)
            request, sends = core.questions.ask({home: ask})
            session.ask(request, sends, f"recalling the state of worker {worker}")
            values = core.questions.take(request).replies[home].values
        return decode(values.reshape(-1), copy=True) if values.size else None

    @property
    def locals(self) -> list[Any]:
        """The states of all its workers, by number."""
        return [self.local(worker) for worker in range(self.workers)]


class Saves:
    """One worker's durable checkpoints."""

    def __init__(
        self,
        session: Session,
        durable: Durable,
        stop: StopRequest | None,
        facts: Mapping[str, str],
        end: End,
    ) -> None:
        self._session, self._durable, self._stop = session, durable, stop
        self._facts, self._end = dict(facts), end
        self._kept = np.empty(0, np.int64)
        if stop is not None:
            marker.say("ready")

    @property
    def resumed(self) -> Resumed | None:
        """What this run goes on from."""
        origin = self._durable.origin
        return Resumed(self._session, origin) if origin is not None else None

    def checkpoint(self, local: Any) -> None:
        """Come to a checkpoint; returns at once unless one is due."""
        session, core = self._session, self._session.core
        stop = Flag.STOP if self._stop is not None and self._stop.name else Flag.NONE
        with session:
            ask = Message(
                Kind.CHECK, core.worker, core.clock, flags=stop, request=core.questions.next
            )
            request, sends = core.questions.ask({0: ask})
            session.ask(request, sends, "checkpoint()")
            replies = core.questions.take(request).replies
            decision, repairs = (replies[0].n if replies else 0), core.repairs
        if not decision:
            return
        state = local() if callable(local) else local
        blob = None if state is None else encode(state, "local")
        with session:
            # After a repair nobody comes to a checkpoint that was decided before it.
            session.post(core.send_held())
            if core.repairs == repairs and self._meet(decision, blob) and decision & STOP:
                self._stop_job()

    def save_now(self, write: Sequence[bool]) -> bool:
        """Meet without asking whether it is time; returns once all is written, and whether."""
        with self._session:
            decision = sum(2 << number for number, wanted in enumerate(write) if wanted)
            if not self._meet(decision, None) or not self._written():
                return False
            clock = self._session.core.clock
            pairs = zip(self._kept.tolist(), write, strict=True)
            return all(kept == clock for kept, wanted in pairs if wanted)

    def _meet(self, decision: int, blob: Any) -> bool:
        """Go to every server, and wait until all workers have; False if a repair came between."""
        session, core = self._session, self._session.core
        home = core.worker % core.servers
        asked = {}
        for server in range(core.servers):
            about = {"facts": self._facts, "local": blob if server == home else None}
            asked[server] = Message(
                Kind.SAVE, core.worker, core.clock, decision, ids=self._kept,
                values=blob_rows(encode(about, "about")), request=core.questions.next,
            )  # fmt: skip
        request, sends = core.questions.ask(asked)
        session.ask(request, sends, "checkpoint()")
        return self._heard(request)

    def _heard(self, request: int) -> bool:
        """Take answers that say how far each server has written."""
        replies = self._session.core.questions.take(request).replies
        if not replies:
            return False
        kept: Ids = np.min([reply.ids for reply in replies.values()], axis=0)
        if kept.any() and not np.array_equal(kept, self._kept):
            marker.say("version", int(kept.max()))
        self._kept = kept
        return True

    def _stop_job(self) -> None:
        """End the job once the checkpoint of this clock is on every server's disk; if one cannot
        write it, go on."""
        core = self._session.core
        if self._written() and self._durable.on_disk(self._kept) == core.clock:
            words = f"stopped in good order; clock {core.clock} is kept, to go on from"
            raise self._end(Resumable.exit_status, f"diml: {words}")

    def _written(self) -> bool:
        """Wait until no server is writing any more; False if a repair came between."""
        session, core = self._session, self._session.core
        busy = True
        while busy:
            time.sleep(_POLL_S)
            request, sends = core.questions.ask_all(Message(Kind.CHECK, flags=Flag.EXACT))
            session.ask(request, sends, "the last checkpoint")
            replies = core.questions.open[request].replies
            busy = any(reply.n for reply in replies.values())
            if not self._heard(request):
                return False
        return True
