"""Collectives beside a parameter server: at which clocks a replacement may call them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from diml.allreduce.beside import check_clock, compare_clocks, stamp
from diml.allreduce.effects import Reduce
from diml.allreduce.log import Log, Record, Result, Site
from diml.allreduce.operation import Kind, Request, signature
from diml.allreduce.recovery import Core
from diml.allreduce.state import Beside
from diml.checkpoint.memory import Store
from diml.errors import GaveUp, Mismatch

SITE = Site((compile("", "program", "exec"), 0))
REQUEST = Request(Kind.BARRIER, signature(Kind.BARRIER), SITE)


def _core() -> Core:
    core = Core(Log(1 << 20), Log(1 << 20), Store(), 1, 64)
    core.beside.served = True
    return core


def _call(core: Core) -> None:
    core.finish(REQUEST, Result("none", None, 0))


def _at(core: Core, clock: int) -> None:
    core.beside.clock = clock
    stamp(core)


def _record(stamp: tuple[int | None, bool]) -> Record:
    return Record(REQUEST.signature, str(SITE), Result("none", None, 0), *stamp)


def test_a_record_has_the_clock_at_which_it_was_called() -> None:
    core = _core()
    _call(core)
    core.beside.start(0, continues=False)
    stamp(core)
    _call(core)
    for clock in (1, 2):
        _at(core, clock)
    _call(core)
    _call(core)
    records = [core.log.record(sequence) for sequence in range(4)]
    stamps = [(record.clock, record.early) for record in records if record is not None]
    assert stamps == [(None, True), (0, True), (2, False), (2, False)]


def test_a_version_begins_with_stamps_of_its_own() -> None:
    core = _core()
    core.beside.start(0, continues=False)
    _at(core, 5)
    core.beside.commit()
    core.log.clear()
    stamp(core)
    _call(core)
    record = core.log.record(0)
    assert record is not None and (record.clock, record.early) == (5, True)


@pytest.mark.parametrize(
    ("clock", "began", "record", "later"),
    [
        (None, None, (None, True), []),  # before the servers are opened
        (7, 7, (0, True), []),  # setting up, once more
        (7, 7, (None, True), []),
        (9, 7, (9, False), [(12, False)]),  # behind the last clock of the other one's life
        (7, 7, (0, True), [(7, False), (8, False)]),
    ],
)
def test_a_replacement_is_answered_what_it_calls_at_the_same_clock(
    clock: int | None, began: int | None, record: tuple[Any, Any], later: Iterable[tuple[Any, Any]]
) -> None:
    core = _core()
    core.beside.began, core.beside.clock, core.beside.continues = began, clock, True
    check_clock(core, REQUEST, _record(record), map(_record, later))


@pytest.mark.parametrize(
    ("clock", "began", "record", "later"),
    [
        (9, 7, (8, False), []),  # the life before called it
        (8, 7, (0, True), []),  # this life has ended a clock since it set itself up
        (7, 7, (0, True), [(3, False)]),  # it is the first of a loop, not of the setting up
    ],
)
def test_a_replacement_that_left_calls_out_is_refused(
    clock: int, began: int, record: tuple[Any, Any], later: Iterable[tuple[Any, Any]]
) -> None:
    core = _core()
    core.beside.began, core.beside.clock, core.beside.continues = began, clock, True
    with pytest.raises(Mismatch, match=f"at clock {clock} of the parameter server, the others"):
        check_clock(core, REQUEST, _record(record), map(_record, later))


@pytest.mark.parametrize(("clocks", "continues"), [((4, 4), True), ((4, 5), False)])
def test_workers_that_come_together_go_on(clocks: tuple[int, int], continues: bool) -> None:
    script = compare_clocks(_core(), REQUEST)
    assert isinstance(next(script), Reduce)
    with pytest.raises(StopIteration):
        script.send((max(clocks), -min(clocks), int(continues)))


def test_workers_at_different_clocks_are_told_so_where_one_of_them_goes_on_for_another() -> None:
    script = compare_clocks(_core(), REQUEST)
    next(script)
    with pytest.raises(Mismatch, match=r"at clock 4 .* by one worker and at clock 5 by another"):
        script.send((5, -4, 1))


def test_state_that_no_server_has_is_missed_only_where_nobody_has_it() -> None:
    beside = Beside()
    beside.learn([(False, False), (False, False)])
    assert not beside.kept
    beside.learn([(True, False), (False, True)])
    assert beside.kept
    with pytest.raises(GaveUp, match="all state is gone"):
        beside.learn([(True, False), (False, False)])
