"""What a sweep tries: the points of a grid and random draws, as flags of a job.

Owns the grammar of `--grid` and `--random` and which trial gets which values. Pure. Must not know
how trials run. Invariant: trial i of a plan depends on the seed and i alone, so that a sweep that
is started again, or asked for more trials, finds the ones that it has made.

    --grid NAME=V1,V2,...     each of the values          --grid NAME     with the flag, without it
    --random NAME=log:A:B     logarithmically uniform in A..B
    --random NAME=uniform:A:B, NAME=int:A:B (both ends), NAME=V1,V2,... (one of them)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diml.errors import Misuse

ON, OFF = "on", "off"


@dataclass(frozen=True, slots=True)
class Axis:
    """A flag of the grid and its values; a bare flag has the values on and off."""

    name: str
    values: tuple[str, ...]
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Draw:
    """A flag whose values are drawn."""

    name: str
    text: str
    draw: Callable[[np.random.Generator], str]


@dataclass(frozen=True, slots=True)
class Plan:
    """All trials. Trial i has grid point i modulo their number (the last flag varies fastest),
    and draws of its own."""

    grid: tuple[Axis, ...]
    random: tuple[Draw, ...]
    trials: int
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The flags that vary, as they were written."""
        return (*(axis.name for axis in self.grid), *(one.name for one in self.random))

    def values(self, trial: int) -> dict[str, str]:
        """What a trial gives to each flag."""
        found, left = {}, trial
        for axis in reversed(self.grid):
            left, place = divmod(left, len(axis.values))
            found[axis.name] = axis.values[place]
        for number, one in enumerate(self.random):
            found[one.name] = one.draw(np.random.default_rng((self.seed, trial, number)))
        return {name: found[name] for name in self.names}

    def words(self, trial: int) -> list[str]:
        """The same as words of a command line."""
        bare = {axis.name for axis in self.grid if axis.bare}
        words = []
        for name, value in self.values(trial).items():
            if name not in bare:
                words.append(f"--{name}={value}")
            elif value == ON:
                words.append(f"--{name}")
        return words


def read_plan(grid: Sequence[str], random: Sequence[str], trials: int | None, seed: int) -> Plan:
    """The plan of these flags. Raises Misuse, naming the flag, where there is none."""
    axes = tuple(_axis(text) for text in grid)
    draws = tuple(_draw(text) for text in random)
    names = [*(axis.name for axis in axes), *(one.name for one in draws)]
    names = [name.replace("-", "_") for name in names]
    for name in names:
        if names.count(name) > 1:
            raise Misuse(f"--grid, --random: {name} is there twice")
    if not names:
        raise Misuse("give --grid or --random: there is nothing to sweep")
    if draws and trials is None:
        raise Misuse("--random needs --trials: how many draws")
    if trials is None:
        trials = math.prod(len(axis.values) for axis in axes)
    return Plan(axes, draws, trials, seed)


def fingerprint(plan: Plan, job: Sequence[str], *facts: Any) -> str:
    """8 hexadecimal digits that tell this sweep from others; more trials make no other one."""
    said = [
        [(axis.name, axis.values) for axis in plan.grid],
        [(one.name, one.text) for one in plan.random],
        plan.seed, list(job), facts,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]


def _named(flag: str, text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    name = name.removeprefix("--")
    if not name.replace("-", "_").isidentifier():
        raise Misuse(f"{flag} {text!r}: not NAME=...")
    return name, value


def _choices(flag: str, text: str, value: str) -> tuple[str, ...]:
    values = tuple(part.strip() for part in value.split(","))
    if not all(values) or len(set(values)) < len(values):
        raise Misuse(f"{flag} {text!r}: values with commas between, each once")
    return values


def _axis(text: str) -> Axis:
    name, value = _named("--grid", text)
    if "=" not in text:
        return Axis(name, (ON, OFF), bare=True)
    return Axis(name, _choices("--grid", text, value))


def _draw(text: str) -> Draw:
    name, value = _named("--random", text)
    kind, *ends = value.split(":")
    if kind not in ("log", "uniform", "int"):
        values = _choices("--random", text, value)
        return Draw(name, value, lambda rng: values[int(rng.integers(len(values)))])
    try:
        low, high = (float(int(end)) if kind == "int" else float(end) for end in ends)
    except ValueError:
        raise Misuse(f"--random {text!r}: {kind} takes two numbers, {kind}:A:B") from None
    if not low < high or not math.isfinite(high - low) or (kind == "log" and low <= 0):
        raise Misuse(f"--random {text!r}: needs {'0 < ' if kind == 'log' else ''}A < B")
    if kind == "int":
        return Draw(name, value, lambda rng: str(rng.integers(int(low), int(high), endpoint=True)))
    if kind == "uniform":
        return Draw(name, value, lambda rng: f"{rng.uniform(low, high):.6g}")
    ends_log = math.log(low), math.log(high)
    return Draw(name, value, lambda rng: f"{math.exp(rng.uniform(*ends_log)):.6g}")
