"""A worker's account of its work: what is work, what is waiting, and who is slowest."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from diml.jobs.account import Account, SharedPace
from tests.unit.mf_cases import Silent
from tests.unit.mf_fake import FakeClient, FakeServers


class Clock(threading.local):
    """Seconds that pass where a test says so, in each thread apart."""

    now = 100.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    fake = SimpleNamespace(perf_counter=lambda: made.now)
    monkeypatch.setattr("diml.jobs.account.time", fake)
    return made


def test_seconds_of_work_leave_out_the_waiting_and_what_was_told(clock: Clock) -> None:
    account = Account(Silent(), "rows")
    clock.pass_by(2.0)
    account.waiting(clock.pass_by, 20.0)
    assert account.busy(1, 3).tolist() == [0.0, 2.0, 0.0]
    clock.pass_by(1.0)
    assert account.busy(1, 3).tolist() == [0.0, 1.0, 0.0]


def test_the_slowest_worker_is_named() -> None:
    account = Account(Silent(), "rows")
    account.compare(np.array([5.0]))
    assert account.pace == {}
    account.compare(np.array([1.0, 4.0, 1.0]))
    assert account.pace == {"slowest": "worker 1 (2.00 x the mean)"}


def test_the_servers_bring_the_workers_paces_together(clock: Clock) -> None:
    told: list[dict[str, str]] = []

    def work(ps: FakeClient) -> None:
        pace = SharedPace(ps, ps.table, Account(Silent(), "rows"))  # type: ignore[arg-type]
        for _ in range(2):
            clock.pass_by(1.0 + 2.0 * ps.worker)
            pace.tell()
            pace.account.waiting(ps.clock)
        # What both have told by then, and nothing of it twice.
        pace.hear()
        if ps.worker == 0:
            told.append(dict(pace.account.pace))

    FakeServers(2).run(work)
    assert told[0]["staleness"] == "0"
    assert told[0]["slowest"] == "worker 1 (1.50 x the mean)"
