"""Late, waiting or stuck: what a watchdog concludes from the board of calls."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from diml.errors import PeerFailed
from diml.world.calls import Board, Calls, LateJudge, Standing
from diml.world.host import first_host

if TYPE_CHECKING:
    from diml.world.link import Link


_beats = itertools.count()


def _standing(
    serial: int, inside: bool, busy: bool = False, heartbeat: int | None = None
) -> Standing:
    beat = next(_beats) if heartbeat is None else heartbeat
    return Standing(heartbeat=beat, serial=serial, inside=inside, busy=busy, site="")


def test_a_rank_is_late_only_while_a_peer_has_waited_as_long() -> None:
    judge = LateJudge(deadline_ticks=3)
    computing = {0: _standing(4, False), 1: _standing(5, False)}
    for _ in range(10):
        assert judge.tick(computing) == ([], False)
    said = [judge.tick({0: _standing(4, False), 1: _standing(6, True)}) for _ in range(4)]
    assert said == [([], False)] * 3 + [([0], False)]


def test_a_new_call_or_a_request_for_time_clears_a_rank() -> None:
    judge = LateJudge(deadline_ticks=2)
    for serial in range(20):
        assert judge.tick({0: _standing(serial, False), 1: _standing(1, True)}) == ([], False)
    for _ in range(20):
        assert judge.tick({0: _standing(20, False, busy=True), 1: _standing(1, True)})[0] == []


def test_all_waiting_with_nothing_moving_is_stuck_and_nobody_is_late() -> None:
    judge = LateJudge(deadline_ticks=2)
    said = [judge.tick({0: _standing(1, True), 1: _standing(2, True)})[1] for _ in range(3)]
    assert said == [False, False, True]
    assert judge.tick({0: _standing(1, True), 1: _standing(3, True)}) == ([], False)


def test_who_was_inside_when_last_heard_of_is_late_once_nothing_is_heard_of_it() -> None:
    judge = LateJudge(deadline_ticks=3)
    judge.tick({0: _standing(1, True), 1: _standing(1, True)})
    silent = _standing(1, True, heartbeat=7)
    said = [judge.tick({0: _standing(2, True), 1: silent}) for _ in range(5)]
    assert [late for late, _ in said] == [[], [], [], [1], [1]]
    assert not any(stuck for _, stuck in said)


def test_a_lone_rank_is_never_stuck() -> None:
    judge = LateJudge(deadline_ticks=1)
    assert [judge.tick({0: _standing(1, True)}) for _ in range(5)] == [([], False)] * 5


def test_a_rank_alone_on_its_host_is_stuck_if_others_it_cannot_see_keep_it_waiting() -> None:
    judge = LateJudge(deadline_ticks=2)
    said = [judge.tick({0: _standing(1, True)}, elsewhere=True) for _ in range(3)]
    assert said == [([], False), ([], False), ([], True)]
    said = [judge.tick({0: _standing(2, False)}, elsewhere=True) for _ in range(5)]
    assert said == [([], False)] * 5


def test_the_board_shows_what_others_published() -> None:
    mine = Board.create(slots=3)
    other = Board.open(os.getpid(), mine.descriptor)
    calls = Calls()
    calls.begin("train.py:12 allreduce")
    other.publish(2, heartbeat=7, calls=calls)
    standing = mine.read(2)
    assert (standing.serial, standing.inside, standing.heartbeat) == (1, True, 7)
    assert standing.site == "train.py:12 allreduce"
    calls.end()
    calls.site = "é" * 500  # a long site is cut, not refused, even inside a character
    other.publish(2, heartbeat=8, calls=calls)
    assert not mine.read(2).inside
    assert mine.read(2).site.startswith("é" * 100)
    assert mine.read(1) == Standing(0, 0, False, False, "")


class _Lost:
    """The links of a job of one process that is lost in its second collective at the start."""

    rank, calls = 0, 0

    def allgather_objects(self, value: Any) -> list[Any]:
        self.calls += 1
        if self.calls == 2:
            raise PeerFailed("lost")
        return [value]

    def barrier(self) -> None:
        raise PeerFailed("lost")


def test_a_start_that_is_cut_short_leaves_nothing_in_memory() -> None:
    with pytest.raises(PeerFailed):
        first_host(cast("Link", _Lost()), "cut-short")
    assert not list(Path("/dev/shm").glob("diml-cut-short*"))
