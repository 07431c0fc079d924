"""The decision of a round, over every combination of where a few ranks can stand."""

from __future__ import annotations

import itertools

import pytest

from diml.allreduce.protocol import (
    FAR,
    TABLE,
    Action,
    Decision,
    Place,
    Stage,
    Standing,
    decide,
    match,
    merge,
    offer,
    unpack,
)

BOOT = [Standing(Place(Stage.BOOT, 0, i), 10 + i) for i in (0, 1)]
LOAD = Standing(Place(Stage.LOAD, 0, 0), 7)
STEPS = [Standing(Place(Stage.STEP, 2, i), 20 + i) for i in (0, 1, 2)]
BARE = Standing(Place(Stage.STEP, 2, 2), 30, bare=True)
STATES = [*BOOT, LOAD, *STEPS, BARE]


def decision(*standings: Standing) -> Decision:
    merged = standings[0].summary()
    for standing in standings[1:]:
        merged = merge(merged, standing.summary())
    return decide(merged)


def test_merge_does_not_depend_on_order_or_grouping() -> None:
    for a, b, c in itertools.product([s.summary() for s in STATES], repeat=3):
        assert merge(a, b) == merge(b, a)
        assert merge(a, merge(b, c)) == merge(merge(a, b), c)
        assert merge(a, a) == a


def plain(standings: tuple[Standing, ...]) -> Action:
    """The decision said in words instead of vectors: the dumb twin."""
    low = min(s.place for s in standings)
    together = len({s.place for s in standings}) == 1
    loaded = [s for s in standings if s.place.stage is Stage.STEP]
    traces = {s.trace for s in standings if s.place.stage is not Stage.LOAD}
    if low.stage is Stage.LOAD:
        if together:
            return Action.LOST
        one_place = len({s.place for s in loaded}) == 1
        if one_place and all(s.bare for s in loaded):
            return Action.COMMIT if len(traces) == 1 else Action.MISMATCH
        return Action.LOAD
    if together:
        return Action.GO if len(traces) == 1 else Action.MISMATCH
    return Action.SERVE


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_combination_is_decided_as_said_in_words(ranks: int) -> None:
    seen = set()
    for standings in itertools.product(STATES, repeat=ranks):
        found = decision(*standings)
        assert found.action is plain(standings), standings
        assert unpack(found.low) == min(s.place for s in standings)
        seen.add(found.action)
    assert ranks < 4 or seen == set(Action)


def test_no_row_of_the_table_is_idle() -> None:
    used = set()
    for standings in itertools.product(STATES, repeat=3):
        low = min(s.place for s in standings).stage
        together = len({s.place for s in standings}) == 1
        loaded = [s for s in standings if s.place.stage is Stage.STEP]
        one_place = len({s.place for s in loaded}) == 1
        used.add((low, together, one_place and all(s.bare for s in loaded)))
    assert used == set(TABLE)


def test_the_model_comes_from_who_stands_lowest_among_the_loaded() -> None:
    found = decision(LOAD, STEPS[2], STEPS[1])
    assert found.action is Action.LOAD
    assert found.version == 2
    assert found.anchor == STEPS[1].place.pack()


def test_places_keep_their_order_as_numbers() -> None:
    places = [s.place for s in STATES] + [Place(Stage.STEP, 2**30 - 1, 2**31 - 1)]
    assert sorted(places) == sorted(places, key=Place.pack)
    assert [unpack(place.pack()) for place in places] == places
    assert max(place.pack() for place in places) < FAR


def test_offers_find_the_lowest_holder_and_who_needs_it() -> None:
    merged = offer(0, False, True)
    for rank, holds, needs in ((1, True, False), (2, True, False), (3, False, True)):
        merged = merge(merged, offer(rank, holds, needs))
    transfer = match(merged)
    assert (transfer.holder, transfer.first, transfer.last) == (1, 0, 3)
    assert match(offer(0, False, True)).holder is None
