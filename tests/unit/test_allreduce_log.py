"""The log recycles only what nobody holds, and drops only what others keep."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from diml.allreduce.log import Log, Pool, Result, Site, fresh
from diml.checkpoint.memory import Checkpoint, Store

SITE = Site((sys._getframe().f_code, 0))


def test_a_site_names_file_and_line() -> None:
    frame = sys._getframe()
    site, line = Site((frame.f_code, frame.f_lasti)), frame.f_lineno
    assert str(site) == f"{__file__}:{line}"


def test_buffers_are_recycled_unless_somebody_holds_a_view() -> None:
    pool, log = Pool(), Log(1 << 20)
    results = [pool.take(np.dtype("f4"), (100,)) for _ in range(3)]
    for result in results:
        log.append(1, SITE, result, True)
    held = results[1].value[10:20]
    owners = [id(result.owner) for result in results]
    del results, result
    log.clear()
    shelf = pool.shelf(np.dtype("f4"), (100,))
    assert sorted(id(r.owner) for r in shelf) == sorted([owners[0], owners[2]])
    assert held.size == 10
    assert log.nbytes == 0
    del held
    log.clear()
    assert len(shelf) == 3
    log.clear()
    assert len(shelf) == 3


def test_free_buffers_are_trimmed_to_a_budget() -> None:
    pool = Pool()
    for shape in ((10,), (20,)):
        shelf = pool.shelf(np.dtype("f8"), shape)
        shelf += [fresh(np.dtype("f8"), shape, shelf) for _ in range(3)]
    pool.trim(400)
    assert len(pool.shelf(np.dtype("f8"), (10,))) == 0
    assert len(pool.shelf(np.dtype("f8"), (20,))) == 2


def test_results_cannot_be_changed_in_place() -> None:
    result = Pool().take(np.dtype("f8"), (3,))
    with pytest.raises(ValueError, match="read-only"):
        result.value[0] = 1.0


def fill(log: Log, count: int, synchronising: bool = True) -> bool:
    over = False
    for _ in range(count):
        over = log.append(1, SITE, Result("array", np.zeros(10), 80), synchronising)
    return over


@pytest.mark.parametrize(("size", "copies"), [(4, 3), (8, 3), (5, 1), (3, 4), (1, 3)])
def test_every_result_keeps_its_copies(size: int, copies: int) -> None:
    logs = [Log(80 * 20) for _ in range(size)]
    for rank, log in enumerate(logs):
        fill(log, 12)
        log.spread(rank, size, copies)
    for sequence in range(11):
        holders = sum(log.record(sequence) is not None for log in logs)
        assert holders == min(copies, size)
    # The last one may be unfinished elsewhere.
    assert all(log.record(11) is not None for log in logs)


def test_nothing_is_dropped_above_the_last_synchronising_collective() -> None:
    log = Log(80 * 100)
    fill(log, 1)
    fill(log, 9, synchronising=False)
    log.spread(1, 4, 1)
    assert all(log.record(sequence) is not None for sequence in range(10))


def test_beyond_the_budget_the_oldest_goes_and_the_newest_stays() -> None:
    log = Log(80 * 3)
    assert fill(log, 10, synchronising=False)
    log.spread(0, 2, 2)
    assert [log.record(s) is not None for s in range(10)] == [False] * 7 + [True] * 3
    assert log.nbytes <= log.budget_bytes
    assert log.forgotten == 7
    assert len(log.signatures) == 10


def test_the_store_keeps_the_committed_version_until_the_next_is_committed() -> None:
    released: list[int] = []
    store = Store(lambda checkpoint: released.append(checkpoint.version))
    store.prepare("model 1", 0, "local 1")
    store.drop()
    assert store.committed == Checkpoint()
    store.prepare("model 1", 0, "local 1").locals[3] = "replica"
    store.commit()
    assert store.committed == Checkpoint(1, "model 1", {0: "local 1", 3: "replica"}, True)
    store.prepare(lambda: "made now", 0, None)
    assert store.committed.version == 1
    store.commit()
    assert (store.committed.version, store.model()) == (2, "made now")
    assert released == [1, 0, 1]
