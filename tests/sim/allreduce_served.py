"""What the simulated world grants to ranks that have servers beside them.

The servers outlive all ranks, and say at each repair whether these have ever made a version. Who
waits for a server answers no other rank, so to ask one is a broken promise here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diml.allreduce.recovery import Core
from diml.allreduce.state import Beside
from diml.errors import GaveUp
from tests.sim.allreduce_network import Process, Violation


def serve(core: Core) -> None:
    """Let a rank be one that has servers beside it."""
    core.beside.served = True
    core._serve = _forbidden  # type: ignore[method-assign,assignment]


def _forbidden(*_: Any) -> Any:
    raise Violation("beside servers a rank asks another one outside of the repair")


def learned(kept: bool, processes: Sequence[Process]) -> GaveUp | None:
    """What all are told at a repair, where one server is told of versions (`kept`)."""
    try:
        Beside().learn([(kept, False), *((False, p.core.stocked) for p in processes)])
    except GaveUp as error:
        return error
    return None
