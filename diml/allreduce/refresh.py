"""What becomes of the ranks' states after a repair: newcomers get theirs, the lost leave theirs.

Owns the scripts that run as the world's hook, before any collective goes on: they bring a
newcomer the committed version and the local states that belong on it, and, if the job goes on
with fewer ranks, give the lost ones' states to those who are left. Pure, like `recovery`.

Invariants: who has what is found by asking, not by the placement, for a holder may itself be new;
running a script again, from any point at which a death cut it short, leads to the same state.
A job with servers outlives all its workers at once, as long as these had no state of their own.
"""

from __future__ import annotations

from typing import Any

from diml.allreduce.beside import share_results
from diml.allreduce.effects import Give, Point, Reduce, Script, Swap, Take, hand_over
from diml.allreduce.protocol import FAR, Place, Stage, Transfer, unpack
from diml.allreduce.state import ALL_LOST, State
from diml.errors import GaveUp

# One rank's deaths in a row at one place after which it is not brought back: its own program
# kills it. Kills from outside cannot be told from that, so two are not enough to be sure.
DEATHS_MAX = 4


def refresh(state: State) -> Script[None]:
    """Bring every newcomer what it must know and hold; run after each repair.

    That is the committed version, its model (a lazy one is asked for by `load`), and the local
    states that belong on it. If ranks are gone for good, all begin again at that version. Raises
    GaveUp on all ranks alike if something has no holder.
    """
    state.part()
    state.rode = []
    state.store.drop()
    known, new = state.store.committed, not state.stocked
    has_model = known.model is not None and not callable(known.model)
    holder = FAR - state.rank if has_model else 0
    place = Place(Stage.STEP, *state.coordinates).pack()
    fewer, moved = int(state.settled != state.origins), int(state.placed != state.ring)
    stocked = (0, 0, known.version + 1, int(known.uses_local), holder, place, 0, fewer, moved)
    newly = (FAR - state.rank, state.rank + 1, 0, 0, 0, 0, state.life, 0, 0)
    merged = yield Reduce(newly if new else stocked)
    yield Point("repair")
    first, last, version = FAR - merged[0], merged[1] - 1, merged[2] - 1
    uses_local, fewer, moved = bool(merged[3]), merged[7], merged[8]
    if first != FAR:
        if version < 0:
            _begin_again(state)
            return
        if first == last:
            yield from _count_death(state, first, merged[6], merged[5])
        model = None
        if version > 0 and merged[4]:
            transfer = Transfer(FAR - merged[4], first, last)
            model = yield from hand_over(state.rank, new, transfer, lambda: known.model)
        yield from _welcome(state, new, (first, last), version, model, uses_local)
    if state.lost and uses_local:
        yield from _share_out(state, version)
    if uses_local and (fewer or moved):
        # The replicas belong elsewhere now: a newcomer sits on another host, or a seat is gone.
        held = state.store.committed.locals
        yield from replicate(state, held[state.origin], held)
    if fewer:
        yield from _go_on_with_fewer(state, new)
    state.settled, state.placed = state.origins, state.ring
    if state.beside.served:
        yield from share_results(state)


def replicate(state: State, local: Any, held: dict[int, Any]) -> Script[None]:
    """Give copies of a local state to the ring; those of others come into `held`."""
    for replica in range(len(state.ring.shifts)):
        holder = state.ring.holder(state.rank, replica)
        owner = state.ring.source(state.rank, replica)
        held[state.origins[owner]] = yield Swap(local, holder, owner)


def _begin_again(state: State) -> None:
    """All workers are new: what there is of the program's state is with the servers (see
    `Beside.learn`). Raises GaveUp where there are none."""
    if not state.beside.served:
        raise GaveUp(f"all state is gone: {ALL_LOST}")
    state.settled, state.placed = state.origins, state.ring
    state.stocked = True


def _welcome(
    state: State, new: bool, range_: tuple[int, int], version: int, model: Any, uses_local: bool
) -> Script[None]:
    """Let the newcomers, from the first to the last rank, hold what belongs on them."""
    newcomer, last = range_
    while True:
        received = (yield from _stock(state, newcomer, version)) if uses_local else {}
        if newcomer == state.rank or (new and not uses_local):
            state.store.adopt(version, model, uses_local)
            state.store.committed.locals.update(received)
            state.stocked = True
        if newcomer == last or not uses_local:
            return
        later = new and state.rank > newcomer
        (found,) = yield Reduce((FAR - state.rank if later else 0,))
        newcomer = FAR - found


def _count_death(state: State, rank: int, life: int, place: int) -> Script[None]:
    """Give up, on all ranks alike, if one rank dies again and again at one place."""
    last_place, count, counted = state.deaths.get(rank, (-1, 0, 0))
    if counted != life and (state.origins[rank], life - 1) not in state.drilled:
        count = count + 1 if place == last_place else 1
        state.deaths[rank] = (place, count, life)
    if life < DEATHS_MAX:
        return
    # Those who came later have seen fewer of its deaths.
    (most,) = yield Reduce((count,))
    if most >= DEATHS_MAX:
        raise GaveUp(f"rank {rank} died {most} times in a row at {unpack(place)}")


def _stock(state: State, newcomer: int, version: int) -> Script[dict[int, Any]]:
    """Bring a newcomer its local states; returns what this rank received (as a newcomer)."""
    owners, size = state.ring.held_by(newcomer), state.size
    mine = state.store.committed.locals if state.stocked else {}
    nearest = tuple(
        -((state.rank - owner) % size) if state.origins[owner] in mine else -FAR for owner in owners
    )
    merged = yield Reduce(nearest)
    for owner, negative in zip(owners, merged, strict=True):
        if negative == -FAR:
            copies = len(state.ring.shifts)
            also = f"and all {copies} ranks that held its replicas have died"
            raise GaveUp(
                f"the local state of rank {owner} (version {version}) is lost: rank {owner} "
                + (also if copies else "has died, and no other rank had a replica (--replicas)")
            )
    received: dict[int, Any] = {}
    for owner, negative in zip(owners, merged, strict=True):
        source = (owner - negative) % size
        if state.rank == source:
            yield Give(mine[state.origins[owner]], newcomer)
        elif state.rank == newcomer:
            received[state.origins[owner]] = yield Take(source)
    return received


def _share_out(state: State, version: int) -> Script[None]:
    """Each local state of a lost rank that the version still has goes to one who holds it."""
    gone = {*state.orphans, *state.settled} - set(state.origins)
    mine = state.store.committed.locals
    wanted = tuple(int(origin in gone) for origin in state.lost)
    holders = tuple(FAR - state.rank if origin in mine else 0 for origin in state.lost)
    merged = yield Reduce((*wanted, *holders))
    count = len(state.lost)
    orphans, inherits = [], []
    for origin, needed, holder in zip(state.lost, merged[:count], merged[count:], strict=True):
        if not needed:
            continue
        if not holder:
            raise GaveUp(
                f"the local state of rank {origin} (version {version}) is lost: all ranks that "
                "held its replicas have died"
            )
        orphans.append(origin)
        if FAR - holder == state.rank:
            inherits.append(origin)
    state.orphans, state.inherits = tuple(orphans), tuple(inherits)


def _go_on_with_fewer(state: State, new: bool) -> Script[None]:
    """All stand before the first collective again, with the committed version, and say so."""
    finishing, working = yield Reduce((int(state.finishing), int(not state.finishing)))
    if finishing and working:
        raise GaveUp("the ranks have become fewer when some had left the job already")
    state.begin_anew()
    state.restart = not new and not finishing
