"""What the engine makes of a program's calls: the scripts of the protocol."""

from __future__ import annotations

from typing import Any

from diml.allreduce.effects import Script
from diml.allreduce.log import Site
from diml.allreduce.operation import Kind, Request, signature
from diml.allreduce.recovery import Core
from tests.sim.allreduce_program import Begin, Call, Load, Wish

SITE = Site((compile("", "program", "exec"), 0))


def script_of(core: Core, wish: Wish | None, shrink: bool) -> Script[Any]:
    """The script of a call; of None, which ends a program, that of leaving."""
    assert not isinstance(wish, Begin)
    if isinstance(wish, Call):
        sig = signature(wish.op.kind, wish.op.root)
        if wish.op.kind is Kind.SHIFT:
            sent = wish.value.to_bytes(8, "little")
            return core.collective(Request(Kind.SHIFT, sig, SITE, False, wish.op.root, sent))
        synchronising = wish.op.kind is not Kind.BROADCAST
        return core.collective(Request(wish.op.kind, sig, SITE, synchronising))
    if isinstance(wish, Load):
        return core.load(Request(Kind.LOAD, 0, SITE))
    if wish is None:
        return core.leave(Request(Kind.EXIT, signature(Kind.EXIT), SITE))
    kind = Kind.CHECKPOINT if wish.local is None else Kind.LOCAL_CHECKPOINT
    model = wish.model
    if wish.lazy:
        # As the engine does: a job that may become smaller keeps no model by reference.
        model = wish.model[0] if shrink else lambda: wish.model[0]
    return core.checkpoint(Request(kind, signature(kind), SITE), model, wish.local)
