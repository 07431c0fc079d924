"""The plan of a repair: who serves what from which copy, and what is refused."""

from __future__ import annotations

import pytest

from diml.errors import GaveUp
from diml.ps.message import Address
from diml.ps.node_core import NodeCore
from diml.ps.recovery import DEATHS_MAX, Holding, Plan, Report, Transfer, make_plan, placement
from diml.ps.tables import TableSpec

WORKER, SERVER, SPARE = (Address(role, 0) for role in ("worker", "server", "spare"))
SPEC = TableSpec("R", 10, 2)


def _holding(version: int, closed: int, shard: int = 0, revertible: bool = False) -> Holding:
    return Holding(shard, version, closed, revertible, ((closed, 0),))


def test_copies_lie_on_the_next_servers_or_on_the_first_spare() -> None:
    assert placement(2, 3, 5, 1) == (Address("server", 2), Address("server", 0))
    assert len(placement(0, 3, 0, 7)) == 3
    assert placement(0, 1, 2, 1) == (SERVER, SPARE)
    assert placement(0, 1, 0, 1) == placement(0, 1, 2, 0) == (SERVER,)


def test_the_freshest_copy_is_the_source_and_all_others_follow() -> None:
    reports = [
        Report(WORKER, specs=(SPEC,), config="bsp"),
        Report(SERVER),
        Report(SPARE, (_holding(4, 4),), config="bsp"),
    ]
    plan = make_plan(reports, 1)
    assert plan.transfers == (Transfer(0, 2, 1),) and plan.resume == (4,)
    assert plan.closed is None and plan.ledgers == (((4, 0),),)


def test_a_clock_that_one_server_lacks_is_taken_back_by_the_others() -> None:
    other = Address("server", 1)
    reports = [
        Report(SERVER, (_holding(5, 5, 0, True), _holding(4, 4, 1)), config="bsp"),
        Report(other, (_holding(4, 4, 1), _holding(5, 5, 0, True)), config="bsp"),
        Report(WORKER),
    ]
    plan = make_plan(reports, 1)
    assert plan.closed == 4 and plan.transfers == () and plan.resume == (4,)


@pytest.mark.parametrize("config", ["bsp", "ssp(2)", "asp"])
def test_rows_without_a_holder_are_named(config: str) -> None:
    reports = [Report(WORKER, specs=(SPEC,), config=config), Report(SERVER), Report(SPARE)]
    with pytest.raises(GaveUp, match=r"R\[0:10\]"):
        make_plan(reports, 1)


def test_nothing_is_lost_before_anything_was_made() -> None:
    plan = make_plan([Report(WORKER), Report(SERVER)], 1)
    assert plan.fresh == {0} and plan.resume == (0,)


def test_a_process_that_joins_later_does_not_pass_for_a_holder() -> None:
    for place in (SERVER, SPARE):
        assert NodeCore(place, 1, 1, 1, 1).report(place).holdings
        assert not NodeCore(place, 1, 1, 1, 1, joined_later=True).report(place).holdings


def test_workers_that_die_together_at_the_same_clocks_are_not_brought_back_for_ever() -> None:
    def repaired(lost: tuple[int, tuple[int, ...]], clock: int, new: bool = True) -> Plan:
        server = Report(SERVER, (_holding(clock, clock),), config="bsp", lost=lost)
        return make_plan([Report(WORKER, new=new), server], 1)

    lost: tuple[int, tuple[int, ...]] = (0, ())
    for times in range(1, DEATHS_MAX):
        lost = repaired(lost, 5).lost
        assert lost == (times, (5,))
    assert repaired(lost, 6).lost == (1, (6,))
    assert repaired(lost, 5, new=False).lost == lost
    with pytest.raises(GaveUp, match=r"all workers died 8 times in a row at clocks \[5\]"):
        repaired(lost, 5)
