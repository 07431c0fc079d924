"""Rabit's recover programs, each value checked: what the recovery drill runs.

Owns the three programs (model, local, lazy) of Rabit's test suite and the arithmetic that says
what every collective must give. All values are whole numbers below 2^24, so float32 is exact and
"equal" means the same bits. Must not know who dies.

Rabit's models grow: by the factor P in every sum over P ranks, and in length in every allgather.
Here a model is taken modulo 2^16 after each sum, and the allgather is of at most 10^7 elements:
neither shows in Rabit's own cases, and any number of rounds stays exact (`check_exact`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.errors import DimlError, Misuse

if TYPE_CHECKING:
    from diml.job import Job

Floats: TypeAlias = NDArray[np.float32]
Program: TypeAlias = "Callable[[Job, int, int], Floats]"

_MAX_MODULUS, _SUM_MODULUS = 111, 131
_BROADCASTS = 3
_WRAP = np.float32(1 << 16)
_GATHERED = 10_000_000
_EXACT = 1 << 24


class WrongValue(DimlError):
    """A collective gave something else than it must."""


def _term(length: int, rank: int, modulus: int) -> Floats:
    """(i·(rank+1)) mod modulus for i = 0..length-1, which repeats after `modulus` elements."""
    period = (np.arange(modulus) * (rank + 1) % modulus).astype(np.float32)
    return np.resize(period, length)


def check_exact(size: int, rounds: int) -> None:
    """Raises Misuse where so many rounds on so many ranks would leave float32's whole numbers."""
    # The largest sum: a wrapped model, the terms of the three collectives, the ranks twice.
    room = _EXACT // size - int(_WRAP) - 2 * size
    most = room // 3 - _SUM_MODULUS
    if rounds > most:
        raise Misuse(f"--rounds {rounds}: on {size} ranks float32 is exact for {max(most, 0)}")


def wrapped(total: Floats) -> Floats:
    """The model after a sum."""
    return np.fmod(total, _WRAP)


def part(model: Floats, size: int) -> Floats:
    """What of the model each rank gives to the allgather."""
    return model[: max(1, _GATHERED // size)]


def expected_max(model: Floats, size: int, step: int, local: bool = False) -> Floats:
    """The maximum over ranks q of term(q) + model, + q with local states."""
    terms = (_term(model.size, q, step + _MAX_MODULUS) + q * local for q in range(size))
    top = next(terms)
    for term in terms:
        np.maximum(top, term, out=top)
    return top + model


def expected_sum(model: Floats, size: int, step: int, local: bool = False) -> Floats:
    """The sum over ranks q of term(q) + model, + q with local states."""
    total = np.zeros_like(model)
    for q in range(size):
        total += _term(model.size, q, step + _SUM_MODULUS) + model + np.float32(q * local)
    return total


def expected_allgather(model: Floats, size: int, step: int) -> Floats:
    """The parts term(q) + model of all ranks q in a row."""
    mine = part(model, size)
    return np.concatenate([_term(mine.size, q, step + _SUM_MODULUS) + mine for q in range(size)])


def expected_model(program: str, size: int, length: int, rounds: int) -> Floats:
    """The final model of a run without failures, by arithmetic alone."""
    model = np.ones(length, np.float32)
    local = program == "local"
    for step in range(rounds):
        if program != "lazy":
            model = expected_max(model, size, step, local)
        model = wrapped(expected_sum(model, size, step, local))
        if program == "model":
            model = expected_allgather(model, size, step)
    return model


def _check(what: str, step: int, got: Any, wanted: Any) -> None:
    if not np.array_equal(got, wanted):
        wrong = np.flatnonzero(np.asarray(got) != np.asarray(wanted))
        raise WrongValue(f"{what} of round {step} is wrong in {wrong.size} elements")


def _broadcasts(job: Job, length: int, step: int) -> None:
    """From a few roots, as Rabit does: a string whose byte i is i mod 126 + 1."""
    text = bytes(i % 126 + 1 for i in range(length))
    for root in range(0, job.size, max(job.size // _BROADCASTS, 1)):
        got = job.broadcast(text if job.rank == root else None, root)
        if got != text:
            raise WrongValue(f"the broadcast from {root} in round {step} is wrong")


def model_program(job: Job, length: int, rounds: int) -> Floats:
    """A collective before the load, then per round max, broadcasts, sum, allgather, checkpoint."""
    top = job.allreduce(np.array([job.rank], np.float32), "max")
    _check("the first maximum", 0, top, [job.size - 1])
    version, saved, _ = job.load_checkpoint()
    model: Floats = np.ones(length, np.float32) if version == 0 else saved
    for step in range(version, rounds):
        term = _term(model.size, job.rank, step + _MAX_MODULUS)
        top = job.allreduce(term + model, "max")
        _check("the maximum", step, top, expected_max(model, job.size, step))
        model = top
        _broadcasts(job, length, step)
        term = _term(model.size, job.rank, step + _SUM_MODULUS)
        total = job.allreduce(term + model, "sum")
        _check("the sum", step, total, expected_sum(model, job.size, step))
        model = wrapped(total)
        mine = part(model, job.size)
        parts = job.allgather(_term(mine.size, job.rank, step + _SUM_MODULUS) + mine)
        _check("the allgather", step, parts, expected_allgather(model, job.size, step))
        model = parts
        job.checkpoint(model)
    return model


def local_program(job: Job, length: int, rounds: int) -> Floats:
    """With local states (always model + rank); contributions are made only if they are needed."""
    version, model, local = job.load_checkpoint()
    if version == 0:
        model = np.ones(length, np.float32)
        local = model + np.float32(job.rank)
    buffer = np.empty(length, np.float32)
    for step in range(version, rounds):
        for op, modulus, expected in (
            ("max", _MAX_MODULUS, expected_max),
            ("sum", _SUM_MODULUS, expected_sum),
        ):
            term = _term(length, job.rank, step + modulus)

            def fill(into: Floats, term: Floats = term, local: Floats = local) -> None:
                np.add(term, local, out=into)

            got = job.allreduce(buffer, op, prepare=fill)
            _check(f"the {op}", step, got, expected(model, job.size, step, True))
            model = wrapped(got) if op == "sum" else got
            local = model + np.float32(job.rank)
            if op == "max":
                _broadcasts(job, length, step)
        job.checkpoint(model, local)
    final: Floats = model
    return final


def lazy_program(job: Job, length: int, rounds: int) -> Floats:
    """Lazy checkpoints of one array that is changed in place after a version's last collective."""
    version, saved, _ = job.load_checkpoint()
    model: Floats = np.ones(length, np.float32) if version == 0 else saved
    for step in range(version, rounds):
        term = _term(length, job.rank, step + _MAX_MODULUS)
        top = job.allreduce(term + model, "max")
        _check("the maximum", step, top, expected_max(model, job.size, step))
        _broadcasts(job, length, step)
        term = _term(length, job.rank, step + _SUM_MODULUS)
        total = job.allreduce(term + model, "sum")
        _check("the sum", step, total, expected_sum(model, job.size, step))
        model[...] = wrapped(total)
        job.checkpoint(model, lazy=True)
    return model


PROGRAMS: dict[str, Program] = {
    "model": model_program,
    "local": local_program,
    "lazy": lazy_program,
}
