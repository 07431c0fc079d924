"""Named parts of a job's state: a program that is begun again does nothing twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diml.checkpoint import codec
from diml.checkpoint.parts import Parts
from diml.errors import Misuse


class Job:
    """One worker's collectives and checkpoints, with replay: a log since the last checkpoint."""

    def __init__(self) -> None:
        self.version, self.kept = 0, b""
        self.log: list[Any] = []
        self.done = 0  # collectives made and not replayed
        self.begin()

    def begin(self) -> None:
        """As a replacement begins: from the last checkpoint, with the log to replay."""
        self.parts = Parts(self)
        self.at = 0

    def collective(self, value: Any) -> Any:
        if self.at == len(self.log):
            self.log.append(value)
            self.done += 1
        self.at += 1
        return self.log[self.at - 1]

    def checkpoint(self, model: Any, local: Any = None, lazy: bool = False) -> None:
        assert self.at == len(self.log), "a checkpoint before the log was replayed"
        self.version += 1
        self.kept = bytes(codec.encode(model, "model"))
        self.log.clear()
        self.at = 0

    def load_checkpoint(self) -> tuple[int, Any, Any]:
        if not self.version:
            return 0, None, None
        return self.version, codec.decode(np.frombuffer(self.kept, np.uint8), copy=True), None


class Death(Exception):
    """This worker dies here."""


def program(job: Job, deaths: list[int]) -> list[Any]:
    """Three parts and what they gave; dies when the count of steps comes to `deaths[0]`."""
    step = 0

    def living() -> None:
        nonlocal step
        step += 1
        if deaths and deaths[0] == step:
            deaths.pop(0)
            raise Death

    def loop(name: str, start: float) -> float:
        part = job.parts.part(name)
        if part.finished:
            return float(part.outcome)
        saved = part.saved or {"i": 0, "total": start}
        total = saved["total"]
        for i in range(saved["i"], 6):
            living()
            total += job.collective(i * start)
            if i % 2:
                part.checkpoint({"i": i + 1, "total": total})
        part.finish(total)
        return float(total)

    scale = job.parts.once("scale", lambda: job.collective(2.0))
    living()
    first = loop("", scale)
    middle = job.parts.once("middle", lambda: job.collective(first + 1.0))
    living()
    return [scale, first, middle, loop("", middle)]


@pytest.mark.parametrize("death", range(1, 15))
def test_a_death_at_any_step_changes_nothing_and_nothing_is_done_twice(death: int) -> None:
    quiet = Job()
    answer = program(quiet, [])
    job, deaths = Job(), [death, 3]
    for _ in range(3):
        try:
            assert program(job, deaths) == answer
            break
        except Death:
            job.begin()
    assert job.done == quiet.done


def test_what_does_not_go_together_is_refused() -> None:
    job = Job()
    job.parts.part("a")
    with pytest.raises(Misuse, match="a part 'a' already"):
        job.parts.part("a")
    job.begin()
    job.checkpoint({"w": 1})
    with pytest.raises(Misuse, match="not by parts of the job"):
        job.parts.part()


def test_what_is_kept_of_a_part_is_no_array_of_the_program() -> None:
    job = Job()
    w = np.zeros(2)
    mine = job.parts.part("mine")
    mine.checkpoint({"step": 0, "w": w})
    w += 1.0  # in the middle of step 1
    over = job.parts.part("over")
    over.finish(w)
    w += 1.0
    over.outcome[...] = 9.0
    mine.saved["w"][...] = 9.0
    job.parts.once("next", lambda: w)[...] = 9.0  # commits all parts
    job.parts.once("last", lambda: 0)
    job.begin()
    assert job.parts.part("mine").saved["w"].tolist() == [0.0, 0.0]
    assert job.parts.part("over").outcome.tolist() == [1.0, 1.0]
    assert job.parts.part("next").outcome.tolist() == [2.0, 2.0]
