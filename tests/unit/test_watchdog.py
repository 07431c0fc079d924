"""The watchdog's thread lives on, whatever goes wrong in it: nothing else ends a wait."""

from __future__ import annotations

import threading

import pytest

from diml.world.calls import Board, Calls
from diml.world.host import Host, this_process
from diml.world.watchdog import Watch, Watchdog


def test_an_error_in_a_tick_does_not_lift_the_limits(capfd: pytest.CaptureFixture[str]) -> None:
    given_up, me = threading.Event(), this_process(0)

    def beat(inside: bool) -> None:
        raise RuntimeError("a mistake")

    def abort(status: int) -> None:
        given_up.set()
        threading.Event().wait()  # it would end the process next

    watch = Watch(
        host=Host("run", me, Board.create(), {0: me}),
        calls=Calls(),
        working=lambda: frozenset(),
        needed=lambda: frozenset(),
        stuck=lambda: None,
        beat=beat,
        report=lambda uid, reason: None,
        abort=abort,
        frozen_deadline_s=10.0,
        deadline_s=10.0,
    )
    with Watchdog(watch).limit(0.5, "what never comes"):
        assert given_up.wait(120)
    said = capfd.readouterr().err
    assert "RuntimeError: a mistake" in said
    assert "diml: waited 0.5 s for what never comes; giving up" in said
