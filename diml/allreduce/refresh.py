"""What becomes of the ranks' states after a repair: newcomers get theirs, the lost leave theirs.

Owns the scripts that run as the world's hook, before any collective goes on: they bring a
newcomer the committed version and the local states that belong on it, and, if the job goes on
with fewer ranks, give the lost ones' states to those who are left. Pure, like `recovery`.

Invariants: who has what is found by asking, not by the placement, for a holder may itself be new;
running a script again, from any point at which a death cut it short, leads to the same state.
A job with servers outlives all its workers at once, as long as these had no state of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diml.allreduce.beside import ALL_LOST, share_results
from diml.allreduce.effects import Give, Point, Reduce, Script, Take
from diml.allreduce.protocol import FAR, Place, Stage, Transfer, unpack
from diml.errors import GaveUp

if TYPE_CHECKING:
    from diml.allreduce.recovery import Core

# One rank's deaths in a row at one place after which it is not brought back: its own program
# kills it. Kills from outside cannot be told from that, so two are not enough to be sure.
DEATHS_MAX = 4


def refresh(core: Core) -> Script[None]:
    """Bring every newcomer what it must know and hold; run after each repair.

    That is the committed version, its model (a lazy one is asked for by `load`), and the local
    states that belong on it. If ranks are gone for good, all begin again at that version. Raises
    GaveUp on all ranks alike if something has no holder.
    """
    core.recovering = True
    core.rode = []
    core.store.drop()
    known, new = core.store.committed, not core.stocked
    has_model = known.model is not None and not callable(known.model)
    holder = FAR - core.rank if has_model else 0
    place = Place(Stage.STEP, *core.coordinates).pack()
    fewer, moved = int(core.settled != core.origins), int(core.placed != core.ring)
    stocked = (0, 0, known.version + 1, int(known.uses_local), holder, place, 0, fewer, moved)
    newly = (FAR - core.rank, core.rank + 1, 0, 0, 0, 0, core.life, 0, 0)
    merged = yield Reduce(newly if new else stocked)
    yield Point("repair")
    first, last, version = FAR - merged[0], merged[1] - 1, merged[2] - 1
    uses_local, fewer, moved = bool(merged[3]), merged[7], merged[8]
    if first != FAR:
        if version < 0:
            _begin_again(core)
            return
        if first == last:
            yield from _count_death(core, first, merged[6], merged[5])
        model = None
        if version > 0 and merged[4]:
            transfer = Transfer(FAR - merged[4], first, last)
            model = yield from core.transfer(new, transfer, lambda: known.model)
        yield from _welcome(core, new, (first, last), version, model, uses_local)
    if core.lost and uses_local:
        yield from _share_out(core, version)
    if uses_local and (fewer or moved):
        # The replicas belong elsewhere now: a newcomer sits on another host, or a seat is gone.
        held = core.store.committed.locals
        yield from core.replicate(held[core.origin], held)
    if fewer:
        yield from _go_on_with_fewer(core, new)
    core.settled, core.placed = core.origins, core.ring
    if core.beside.served:
        yield from share_results(core)


def _begin_again(core: Core) -> None:
    """All workers are new: what there is of the program's state is with the servers (see
    `Beside.learn`). Raises GaveUp where there are none."""
    if not core.beside.served:
        raise GaveUp(f"all state is gone: {ALL_LOST}")
    core.settled, core.placed = core.origins, core.ring
    core.stocked = True


def _welcome(
    core: Core, new: bool, range_: tuple[int, int], version: int, model: Any, uses_local: bool
) -> Script[None]:
    """Let the newcomers, from the first to the last rank, hold what belongs on them."""
    newcomer, last = range_
    while True:
        received = (yield from _stock(core, newcomer, version)) if uses_local else {}
        if newcomer == core.rank or (new and not uses_local):
            core.store.adopt(version, model, uses_local)
            core.store.committed.locals.update(received)
            core.stocked = True
        if newcomer == last or not uses_local:
            return
        later = new and core.rank > newcomer
        (found,) = yield Reduce((FAR - core.rank if later else 0,))
        newcomer = FAR - found


def _count_death(core: Core, rank: int, life: int, place: int) -> Script[None]:
    """Give up, on all ranks alike, if one rank dies again and again at one place."""
    last_place, count, counted = core.deaths.get(rank, (-1, 0, 0))
    if counted != life and (core.origins[rank], life - 1) not in core.drilled:
        count = count + 1 if place == last_place else 1
        core.deaths[rank] = (place, count, life)
    if life < DEATHS_MAX:
        return
    # Those who came later have seen fewer of its deaths.
    (most,) = yield Reduce((count,))
    if most >= DEATHS_MAX:
        raise GaveUp(f"rank {rank} died {most} times in a row at {unpack(place)}")


def _stock(core: Core, newcomer: int, version: int) -> Script[dict[int, Any]]:
    """Bring a newcomer its local states; returns what this rank received (as a newcomer)."""
    owners, size = core.ring.held_by(newcomer), core.size
    mine = core.store.committed.locals if core.stocked else {}
    nearest = tuple(
        -((core.rank - owner) % size) if core.origins[owner] in mine else -FAR for owner in owners
    )
    merged = yield Reduce(nearest)
    for owner, negative in zip(owners, merged, strict=True):
        if negative == -FAR:
            raise GaveUp(
                f"the local state of rank {owner} (version {version}) is lost: rank {owner} "
                f"and all {len(core.ring.shifts)} ranks that held its replicas have died"
            )
    received: dict[int, Any] = {}
    for owner, negative in zip(owners, merged, strict=True):
        source = (owner - negative) % size
        if core.rank == source:
            yield Give(mine[core.origins[owner]], newcomer)
        elif core.rank == newcomer:
            received[core.origins[owner]] = yield Take(source)
    return received


def _share_out(core: Core, version: int) -> Script[None]:
    """Each local state of a lost rank that the version still has goes to one who holds it."""
    gone = {*core.orphans, *core.settled} - set(core.origins)
    mine = core.store.committed.locals
    wanted = tuple(int(origin in gone) for origin in core.lost)
    holders = tuple(FAR - core.rank if origin in mine else 0 for origin in core.lost)
    merged = yield Reduce((*wanted, *holders))
    count = len(core.lost)
    orphans, inherits = [], []
    for origin, needed, holder in zip(core.lost, merged[:count], merged[count:], strict=True):
        if not needed:
            continue
        if not holder:
            raise GaveUp(
                f"the local state of rank {origin} (version {version}) is lost: all ranks that "
                "held its replicas have died"
            )
        orphans.append(origin)
        if FAR - holder == core.rank:
            inherits.append(origin)
    core.orphans, core.inherits = tuple(orphans), tuple(inherits)


def _go_on_with_fewer(core: Core, new: bool) -> Script[None]:
    """All stand before the first collective again, with the committed version, and say so."""
    finishing, working = yield Reduce((int(core.finishing), int(not core.finishing)))
    if finishing and working:
        raise GaveUp("the ranks have become fewer when some had left the job already")
    core.begin_anew()
    core.restart = not new and not finishing
