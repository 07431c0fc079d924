"""Seats: who is seated where after any set of deaths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.world.membership import Membership, NoSpareLeft, Role, Seat


def test_the_first_membership_counts_workers_then_servers_then_spares() -> None:
    membership = Membership.start(processes=6, servers=1, spares=1)
    assert membership.workers == (Seat(0), Seat(1, 0, 1), Seat(2, 0, 2), Seat(3, 0, 3))
    assert membership.servers == (Seat(4),)
    assert membership.spares == (5,)
    assert [membership.drill_number(uid) for uid in range(6)] == list(range(6))


@pytest.mark.parametrize(("processes", "servers", "spares"), [(1, 1, 0), (4, 2, 2), (3, 4, 0)])
def test_a_job_without_a_worker_is_refused(processes: int, servers: int, spares: int) -> None:
    with pytest.raises(ValueError, match=f"start {servers + spares + 1} or more"):
        Membership.start(processes, servers, spares)


def test_a_dead_server_takes_the_standby_and_a_dead_worker_the_last_spare() -> None:
    membership = Membership.start(processes=7, servers=1, spares=3)  # spares 4, 5, 6
    after = membership.refilled(alive={0, 2, 4, 5, 6})  # worker 1 and the server (uid 3) died
    assert after.servers == (Seat(4, incarnation=1),)
    assert after.workers == (Seat(0), Seat(6, 1, 1), Seat(2, 0, 2))
    assert after.spares == (5,)
    assert after.epoch == 1


def test_newcomers_take_seats_when_the_spares_are_used_up() -> None:
    membership = Membership.start(processes=3, servers=0, spares=1)
    after = membership.refilled(alive={0, 3}, joined=[3])  # worker 1 and the spare (uid 2) died
    assert after.workers == (Seat(0), Seat(3, 1, 1))
    assert after.spares == ()


def test_a_job_that_shrinks_gives_up_seats_without_a_spare() -> None:
    membership = Membership.start(processes=5, servers=0, spares=1)
    after = membership.refilled(alive={0, 3, 4}, shrink=True)  # workers 1 and 2 died
    assert after.workers == (Seat(0), Seat(4, 1, 1), Seat(3, 0, 3))
    assert after.lost == (2,)
    assert after.drill_number(3) == 3
    again = after.refilled(alive={3}, shrink=True)
    assert again.workers == (Seat(3, 0, 3),)
    assert again.lost == (2, 0, 1)
    with pytest.raises(NoSpareLeft, match=r"^worker 0$"):
        again.refilled(alive=set(), shrink=True)


def test_a_drill_of_a_spare_means_that_one_and_not_who_comes_after_it() -> None:
    membership = Membership.start(processes=5, servers=1, spares=2)
    after = membership.refilled(alive={0, 1, 2, 4})  # the spare with uid 3 died
    assert after.spares == (4,)
    assert after.drill_number(4) == 4


def test_a_server_is_not_given_up() -> None:
    membership = Membership.start(processes=4, servers=1, spares=0)
    with pytest.raises(NoSpareLeft, match=r"^server 0, worker 1$"):
        membership.refilled(alive={0, 2}, shrink=True)


def test_every_vacant_seat_is_named() -> None:
    membership = Membership.start(processes=4, servers=1, spares=0)
    with pytest.raises(NoSpareLeft, match=r"^server 0, worker 1$"):
        membership.refilled(alive={0, 2})


@given(st.data())
def test_seats_stay_with_the_living_and_nobody_sits_twice(data: st.DataObject) -> None:
    servers, spares = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
    size = servers + spares + data.draw(st.integers(1, 6))
    membership = Membership.start(size, servers, spares)
    alive = data.draw(st.sets(st.integers(0, size - 1)))
    seats = (*membership.workers, *membership.servers)
    dead_seats = sum(seat.uid not in alive for seat in seats)
    spares_alive = sum(uid in alive for uid in membership.spares)
    if dead_seats > spares_alive:
        with pytest.raises(NoSpareLeft) as raised:
            membership.refilled(alive)
        assert len(raised.value.vacant) == dead_seats - spares_alive
        return
    after = membership.refilled(alive)
    held = [seat.uid for seat in (*after.workers, *after.servers)] + list(after.spares)
    assert sorted(held) == sorted(alive)
    for old, new in zip(seats, (*after.workers, *after.servers), strict=True):
        assert new == old if old.uid in alive else new.incarnation == old.incarnation + 1
    for uid in alive:
        role, index = after.place_of(uid)
        assert after.uid_at(role, index) == uid
        if membership.place_of(uid)[0] is not Role.SPARE:
            assert after.place_of(uid) == membership.place_of(uid)
