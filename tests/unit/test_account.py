"""A worker's account of its work: what is work, what is waiting, and who is slowest."""

from __future__ import annotations

import time

import numpy as np

from diml.jobs.account import Account, SharedPace
from tests.unit.mf_cases import Silent
from tests.unit.mf_fake import FakeClient, FakeServers


def test_seconds_of_work_leave_out_the_waiting_and_what_was_told() -> None:
    account = Account(Silent(), "rows")
    time.sleep(0.02)
    account.waiting(time.sleep, 0.2)
    first = account.busy(1, 3)
    assert first[0] == first[2] == 0.0 and 0.02 <= first[1] < 0.2
    assert account.busy(1, 3)[1] < first[1]


def test_the_slowest_worker_is_named() -> None:
    account = Account(Silent(), "rows")
    account.compare(np.array([5.0]))
    assert account.pace == {}
    account.compare(np.array([1.0, 4.0, 1.0]))
    assert account.pace == {"slowest": "worker 1 (2.00 x the mean)"}


def test_the_servers_bring_the_workers_paces_together() -> None:
    told: list[dict[str, str]] = []

    def work(ps: FakeClient) -> None:
        pace = SharedPace(ps, ps.table, Account(Silent(), "rows"))  # type: ignore[arg-type]
        for _ in range(2):
            if ps.worker == 1:
                time.sleep(0.1)
            pace.tell()
            pace.account.waiting(ps.clock)
        # What both have told by then, and nothing of it twice.
        pace.hear()
        if ps.worker == 0:
            told.append(dict(pace.account.pace))

    FakeServers(2).run(work)
    assert told[0]["staleness"] == "0"
    assert told[0]["slowest"].startswith("worker 1 (")
