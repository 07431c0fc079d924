"""Blocks handed out one by one: a worker that finishes gets the next block at once.

For programs that can push a whole block on one worker (its data are replicated). Worker 0
schedules, the others compute; with pipeline d up to d + 1 blocks are under way. Block t is picked
and computed from the model after exactly t − d results, whoever computes it and whenever it
comes back: results are applied in the order of their blocks. So the order of arrival, the number of
workers and deaths change no bit, and a run equals that of one worker with the same pipeline.

A segment is what lies between two checkpoints. Where a worker dies, all go back to the segment's
start, where every worker knows the whole state. Before and after a segment all meet in one
collective that says who is done with it, in which epoch, and with worker 0's state: so the meeting
at which all are done is also what hands the state to all, and a death comes before it or after it.
A replacement sees meetings replayed: one at which all were done ends the segment for it too, any
other from before the last repair does not count.

`finished` is asked with worker 0's time everywhere. Owns messages and segments; must not know
policies or programs. A wait for a message is a call that the watchdogs see: who computes for longer
than the deadline meanwhile is late.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import PeerFailed
from diml.strads.message import END, RESULT, TASK, Message, Pulled, decode, encode
from diml.strads.policy import Policy, scheduled

Integers = NDArray[np.int64]
_TAG = 77
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a segment ends: `work` more units of work, or when the program is finished."""

    pipeline: int
    work: int


class Lead:
    """What the scheduler does next; pure: told of results, it says what to send."""

    def __init__(self, program: Any, policy: Policy, segment: Segment, workers: range) -> None:
        self._program, self._policy, self._segment = program, policy, segment
        self._limit = program.work + segment.work
        self._history: list[Pulled] = []
        self._told = dict.fromkeys(workers, 0)
        self._idle = deque(workers)
        self._ready: deque[tuple[int, Integers]] = deque()
        self._flight: dict[int, Integers] = {}  # chosen, not applied yet
        self._arrived: dict[int, NDArray[np.float64]] = {}
        self._chosen = 0
        self._closing = False
        self.finished = False
        for _ in range(segment.pipeline + 1):
            self._choose()

    def _choose(self) -> None:
        """Ask whether to go on, then pick the next block from the model as it is."""
        if self._closing:
            return
        self.finished = self._program.finished()
        block = None
        if not self.finished:
            self._policy.in_flight = np.concatenate([_NONE, *self._flight.values()])
            block = scheduled(self._program, self._policy)
        if block is None:
            self.finished = self._closing = True
            return
        self._flight[self._chosen] = block
        self._ready.append((self._chosen, block))
        self._chosen += 1
        self._program.rounds += 1

    def sends(self) -> list[tuple[int, Message]]:
        """(worker, message) for every block that can go out now."""
        out = []
        while self._ready and self._idle and not self.finished:
            worker = self._idle.popleft()
            task, block = self._ready.popleft()
            # A block is computed from the model that it was picked from, even if it waited.
            news = self._news(worker, max(0, task - self._segment.pipeline))
            out.append((worker, Message(TASK, task, news, block)))
        return out

    def _news(self, worker: int, end: int) -> tuple[Pulled, ...]:
        """The results up to `end` that the worker has not been told yet."""
        known = self._told[worker]
        self._told[worker] = end
        return tuple(self._history[known:end])

    def receive(self, worker: int, message: Message) -> None:
        """Take a result; apply those whose turn it is."""
        self._idle.append(worker)
        self._arrived[message.task] = message.values
        while not self.finished and (task := len(self._history)) in self._arrived:
            values = self._arrived.pop(task)
            block = self._flight.pop(task)
            self._policy.moved(block, self._program.pull(block, values))
            self._closing = self._closing or self._program.work >= self._limit
            self._program.now = time.time()
            asked = 0.0 if self._closing else self._program.now
            self._history.append(Pulled(block, values, asked))
            self._choose()

    def over(self) -> bool:
        """Whether all is applied (or the program is finished) and every worker is idle."""
        waiting = self._flight and not self.finished
        return not waiting and len(self._idle) == len(self._told)

    def farewells(self) -> list[tuple[int, Message]]:
        end = len(self._history)
        return [(worker, Message(END, 0, self._news(worker, end))) for worker in self._told]


class _Waiting:
    """The workers' link, its waits visible to the watchdogs."""

    def __init__(self, world: Any) -> None:
        self._link, self._calls = world.workers, world.calls
        self.isend = self._link.isend

    def receive(self, source: int | None = None) -> Any:
        """The next message of a segment, from anyone by default."""
        self._calls.begin("a block of diml.strads.run")
        try:
            if source is None:
                return self._link.receive(tag=_TAG)
            return self._link.receive(source, _TAG)
        finally:
            self._calls.end()


def lead(link: Any, lead: Lead) -> None:
    """Run a segment as the scheduler. Raises PeerFailed when anyone dies."""
    while True:
        for worker, message in lead.sends():
            link.isend(encode(message), worker, _TAG)
        if lead.over():
            break
        came = link.receive()
        lead.receive(came.source, decode(came.data))
    for worker, message in lead.farewells():
        link.isend(encode(message), worker, _TAG)


def follow(link: Any, program: Any) -> None:
    """Run a segment as a worker. Raises PeerFailed when anyone dies."""
    program.finished()
    while True:
        message = decode(link.receive(0).data)
        for result in message.results:
            program.pull(result.block, result.values)
            if result.asked:
                program.now = result.asked
                program.finished()
        if message.kind == END:
            return
        values = program.push(message.block)
        link.isend(encode(Message(RESULT, message.task, values=values)), 0, _TAG)


def together(job: Any, done: bool, state: Any) -> tuple[bool, float, Any]:
    """Meet all workers. Returns (whether all were done, worker 0's time, its state).

    Not all were done: then they met in the present epoch, and the segment begins.
    """
    while True:
        mine = (done, job.epoch, time.time(), state if job.rank == 0 and done else None)
        rows = job.allgather(mine)
        everyone = all(row[0] for row in rows)
        if everyone or max(row[1] for row in rows) == job.epoch:
            return everyone, rows[0][2], rows[0][3]
        done = False


def run_segment(
    job: Any,
    program: Any,
    policy: Policy,
    segment: Segment,
    begin: Callable[[], None],
    state_of: Callable[[], Any],
) -> tuple[Any, bool]:
    """Run one segment to its end on all workers, from its start again after every death.

    Args:
        begin: called on every worker before each try; puts program and policy at the start.
        state_of: what worker 0 knows when the segment is over.

    Returns: worker 0's state and whether the program is finished, the same on all workers.

    Raises Shrunk, on all workers, if the job goes on with fewer.
    """
    done, state = False, None
    while True:
        over, now, ended = together(job, done, state)
        if over:
            state_of_0, finished = ended
            return state_of_0, finished
        begin()
        program.now = now
        try:
            if job.rank == 0:
                head = Lead(program, policy, segment, range(1, job.size))
                lead(_Waiting(job.world), head)
                state = (state_of(), head.finished)
            else:
                follow(_Waiting(job.world), program)
            done = True
        except PeerFailed as error:
            job.repair(error)
            done = False
