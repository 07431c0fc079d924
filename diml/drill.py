"""Drills: who dies when. The same grammar in the simulator, in `--drill` and in the tests.

Owns the grammar and the comparison; pure. Must not know how a process is killed. Invariant: a
coordinate names one moment of one life of one rank, so a drill fires at most once in a run.

A drill is `rank,version,sequence,incarnation[,POINT][,SIGNAL]`, as in the mock engine of Rabit:

- rank: workers are 0..W-1, servers W..W+S-1, spares from W+S on (in the order of the start).
- version: number of committed checkpoints; in jobs on the parameter server the worker's clock.
- sequence: collectives since the version began, a broadcast as one; load_checkpoint and
  checkpoint are not counted, and a checkpoint is reached at the sequence after the last
  collective. Until load_checkpoint has returned, in a replacement too, the version is 0 and the
  collectives are those before it. In jobs on the parameter server: calls (get, inc, ...) since the
  clock began.
- incarnation: how often that rank has died before: 0 strikes the first life.
- POINT: entry (default), inside or after the call; checkpoint, load or repair.
- SIGNAL: KILL (default), or STOP for a process that freezes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from diml.errors import Misuse

POINTS = ("entry", "inside", "after", "checkpoint", "load", "repair")
SIGNALS = ("KILL", "STOP")
GRAMMAR = "rank,version,sequence,incarnation[,POINT][,SIGNAL]"


@dataclass(frozen=True)
class Drill:
    """One death: a coordinate in the run, and the signal that the process sends to itself."""

    rank: int
    version: int
    sequence: int
    incarnation: int
    point: str = "entry"
    signal: str = "KILL"

    def __post_init__(self) -> None:
        for name in ("rank", "version", "sequence", "incarnation"):
            if getattr(self, name) < 0:
                raise Misuse(f"drill {self}: {name} is negative")
        if self.point not in POINTS:
            raise Misuse(f"drill {self}: point {self.point!r} is none of {', '.join(POINTS)}")
        if self.signal not in SIGNALS:
            raise Misuse(f"drill {self}: signal {self.signal!r} is none of {', '.join(SIGNALS)}")

    def __str__(self) -> str:
        """The drill in its own grammar, so that it can be repeated."""
        where = f"{self.rank},{self.version},{self.sequence},{self.incarnation}"
        return f"{where},{self.point},{self.signal}"


def parse_drill(text: str) -> Drill:
    """Read one drill. Raises Misuse, in one line that names the word that is wrong."""
    words = [word.strip() for word in text.split(",")]
    if len(words) < 4:
        raise Misuse(f"drill {text!r}: {len(words)} of the 4 numbers of {GRAMMAR}")
    numbers = []
    for name, word in zip(("rank", "version", "sequence", "incarnation"), words, strict=False):
        if not (word.isascii() and word.isdigit()):
            raise Misuse(f"drill {text!r}: {name} {word!r} is not a number from 0 on ({GRAMMAR})")
        numbers.append(int(word))
    point, signal = "entry", "KILL"
    rest = words[4:]
    if rest and rest[0] not in SIGNALS:
        point = rest.pop(0)
    if rest:
        signal = rest.pop(0)
    if rest:
        raise Misuse(f"drill {text!r}: nothing may follow {signal!r} ({GRAMMAR})")
    rank, version, sequence, incarnation = numbers
    return Drill(rank, version, sequence, incarnation, point, signal)


def parse_drills(text: str) -> tuple[Drill, ...]:
    """Read several drills with white space between them, as they stand in DIML_DRILL."""
    return tuple(parse_drill(word) for word in text.split())


class DrillPlan:
    """All drills of a run, asked at every point that a process passes."""

    def __init__(self, drills: Iterable[Drill] = ()) -> None:
        self._signals: dict[tuple[int, int, int, int, str], str] = {}
        for drill in drills:
            where = (drill.rank, drill.version, drill.sequence, drill.incarnation, drill.point)
            if self._signals.setdefault(where, drill.signal) != drill.signal:
                raise Misuse(f"drill {drill}: another drill sends another signal at the same place")

    def strike(
        self, rank: int, version: int, sequence: int, incarnation: int, point: str
    ) -> str | None:
        """The signal's name (KILL or STOP) if a drill is due exactly here, else None. Once only."""
        assert point in POINTS, point
        return self._signals.pop((rank, version, sequence, incarnation, point), None)
