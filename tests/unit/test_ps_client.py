"""The public calls in a single process, where the shards live in the worker."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from diml.errors import DeadlineExceeded, Misuse
from diml.ps.checks import check_options
from diml.ps.client import ParameterServer
from diml.ps.client_core import ClientCore
from diml.ps.consistency import parse_consistency
from diml.ps.message import Address, Flag, Kind, Message, Send
from diml.ps.options import Options
from diml.ps.port import LocalPort
from diml.ps.sent import Sent
from diml.ps.session import Session
from diml.world.calls import Calls


def _server(
    staleness: int = 0, model: str | None = None, port: Any = None, **options: Any
) -> ParameterServer:
    core = ClientCore(
        0,
        1,
        parse_consistency(model, staleness),
        options.get("row_cache_size"),
        options.get("significance", 0.0),
    )
    session = Session(port or LocalPort(), core, 0.05, lambda clock, calls, point: None, Calls())
    reject = options.get("reject_nonfinite", False)
    ps = ParameterServer(session, 1, 3, reject, lambda what, **fields: None)
    ps.open()
    return ps


@pytest.mark.parametrize("cache", [None, 0, 4])
@pytest.mark.parametrize(("staleness", "model"), [(0, None), (2, None), (0, "asp"), (0, "essp(2)")])
def test_own_writes_are_read_at_once(staleness: int, model: str | None, cache: int | None) -> None:
    ps = _server(staleness, model, row_cache_size=cache)
    table = ps.table("t", 10, 3, "float64", init=1.0)
    twin = np.ones((10, 3))
    rng = np.random.default_rng(0)
    for step in range(60):
        ids = rng.integers(0, 10, rng.integers(0, 8))
        deltas = rng.normal(size=(len(ids), 3))
        table.inc(ids, deltas)
        np.add.at(twin, ids, deltas)
        if step % 3 == 0:
            asked = rng.integers(0, 10, 5)
            assert table.get(asked) == pytest.approx(twin[asked])
        if step % 25 == 24:
            ps.clock(local={"step": step})
    ps.clock()
    ps.barrier()
    assert table.get(np.arange(10)) == pytest.approx(twin)
    ps.close()
    with pytest.raises(Misuse, match="job is over"):
        table.get(np.arange(10))
    assert ps.clock_now == 3
    assert max(ps.staleness_seen) <= (2 if model != "asp" else 3)


@pytest.mark.parametrize("cache", [None, 0])
def test_what_has_changed_little_stays_until_it_has_changed_more(cache: int | None) -> None:
    port = LocalPort()
    ps = _server(2, port=port, significance=1.0, row_cache_size=cache)
    table = ps.table("t", 4, 2, "float64")

    def at_server() -> list[float]:
        assert port._node.server is not None
        (held,) = port._node.server.shard.tables.values()
        return [float(x) for x in held.values[:, 0]]

    table.inc([0, 1, 3], [[0.6, 0], [5, 0], [0.1, -2]])
    ps.clock()
    assert at_server() == [0, 5, 0, 0.1]
    assert table.get(np.arange(4))[:, 0].tolist() == [0.6, 5, 0, 0.1], "its own are read"
    table.inc([0, 2], [[0.6, 0], [0.1, 0]])
    ps.clock()
    assert at_server() == [1.2, 5, 0, 0.1]
    ps.barrier()
    assert at_server() == [1.2, 5, 0.1, 0.1]
    table.inc([2], [[0.1, 0]])
    ps.clock()
    ps.close()
    assert at_server() == [1.2, 5, 0.2, 0.1]


def test_threads_gather_their_own_updates_until_the_clock() -> None:
    ps = _server()
    table = ps.table("t", 50, 2, "int64")
    caches = [table.thread_cache() for _ in range(3)]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            ids = rng.integers(0, 50, 10)
            before = caches[seed].get(ids)
            caches[seed].inc(ids, np.ones((10, 2), np.int64))
            assert (caches[seed].get(ids) > before).all()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not table.get(np.arange(50)).any()
    with pytest.raises(Misuse, match="threads still wait"):
        ps.barrier()
    ps.clock()
    assert table.get(np.arange(50)).sum() == 3 * 40 * 20
    with pytest.raises(Misuse, match="of rule 'add' only"):
        ps.table("u", 4, 2, rule="sgd").thread_cache()


def test_what_get_returns_is_the_callers_own() -> None:
    ps = _server()
    table = ps.table("t", 4, 2)
    rows = table.get([1, 2])
    rows += 5
    assert not table.get([1, 2]).any()
    given = np.ones((2, 2), np.float32)
    table.inc([0, 1], given)
    given[:] = 9
    assert (table.get([0, 1]) == 1).all()


def test_bad_calls_name_the_table_and_the_rows() -> None:
    ps = _server(reject_nonfinite=True)
    table = ps.table("R", 10, 3)
    small = ps.table("small", 10, 2, dtype="int32")
    bad: list[tuple[Any, str]] = [
        (lambda: table.get([0, 10]), "'R' has rows 0..9, not 10"),
        (lambda: table.get([-1]), "not -1"),
        (lambda: table.get([[1]]), "shape"),
        (lambda: table.get([1.5]), "float64"),
        (lambda: table.inc([1], np.ones((1, 2))), "shape"),
        (lambda: table.inc([1], np.ones((1, 3), complex)), "complex128"),
        (lambda: table.inc([4, 7], np.array([[1, 2, 3], [1, np.nan, 0]])), "of rows 7"),
        (lambda: ps.table("R", 11, 3), "rows 10 against 11"),
        (lambda: ps.table("S", 11, 3, rule="nothing"), "'S'"),
        (lambda: ps.kv("R", 10, width=3, rule="add"), "not a key-value vector"),
        (lambda: ps.table("T", 1, 1, dtype="nonsense"), "'nonsense'"),
        (lambda: ps.table("T", 1, 1, init=("uniform", "a", "b")), "neither a name"),
        (lambda: ps.table("T", 1, 1, init=object()), "neither a name"),
        (lambda: ps.kv("V", 10).wait("x"), "timestamp 'x'"),  # type: ignore[arg-type]
        (
            lambda: small.inc([1, 2], np.array([[1, 1], [1, 2**40]])),
            "1099511627776 for row 2 is too large",
        ),
        (lambda: small.inc([1], np.array([[0.5, 1]])), "float64"),
        (lambda: table.inc([4], np.array([[1, 1e300, 0]])), "of rows 4"),
    ]
    for call, words in bad:
        with pytest.raises(Misuse, match=words):
            call()
    assert ps.table("R", 10, 3) is table
    assert not table.get(np.arange(10)).any()


@pytest.mark.parametrize("options", [(-1, 0.0), ("x", 0.0), (None, "x"), (None, -1.0), (None, 0.5)])
def test_options_that_cannot_be_are_refused(options: tuple[object, object]) -> None:
    check_options(0, 0, True)
    with pytest.raises(Misuse):
        check_options(*options, buffered=True)


def test_an_option_that_is_not_there_or_another_value_than_before_is_named() -> None:
    opened = Options.of({"staleness": 2, "filters": ["half"], "any_workers": True})
    opened.check_same(Options(2, filters=("half",)))
    for call, words in (
        (lambda: Options.of({"stalenes": 2}), "no option 'stalenes'; it has staleness, consist"),
        (lambda: Options(filters="half"), "filters 'half' is not a list"),
        (lambda: opened.check_same(Options(2)), r"with filters=\('half',\), now with \(\)"),
        (lambda: opened.check_same(Options(3)), "with staleness=2, now with 3"),
    ):
        with pytest.raises(Misuse, match=words):
            call()


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    ps = _server()
    table = ps.table("R", np.int64(4), np.int32(2), seed=np.int64(3))  # type: ignore[arg-type]
    assert table.get(np.arange(4)).shape == (4, 2)
    assert ps.kv("w", np.uint16(3)).pull([0, 1, 2]).shape == (3,)  # type: ignore[arg-type]


def test_updates_that_no_clock_has_sent_are_not_lost_in_silence() -> None:
    ps = _server()
    table = ps.table("R", 10, 3)
    table.inc([1], np.ones((1, 3)))
    for end in (ps.barrier, ps.close):
        with pytest.raises(Misuse, match="'R' still wait"):
            end()


@pytest.mark.parametrize("rule", ["add", "sgd"])
def test_an_update_of_no_rows_is_none(rule: str) -> None:
    ps = _server()
    table, kv = ps.table("R", 10, 3, rule=rule), ps.kv("w", 10, rule=rule)
    table.inc([], np.zeros((0, 3)))
    kv.wait(kv.push([], []))
    ps.barrier()
    ps.clock()
    assert not table.get([1]).any() and table.get([]).shape == (0, 3)


@pytest.mark.parametrize("model", ["ssp(2)", "essp(2)", "asp"])
def test_own_pushes_are_pulled_after_a_clock_whatever_is_kept(model: str) -> None:
    ps = _server(model=model, row_cache_size=0)
    kv = ps.kv("w", 4, rule="add")
    for step in range(1, 5):
        assert kv.pull([0, 3]).tolist() == [step - 1.0] * 2
        kv.push([0, 3], [1.0, 1.0])
        ps.clock()


@pytest.mark.parametrize("model", ["bsp", "asp"])
def test_push_pull_and_wait(model: str) -> None:
    ps = _server(model=model)
    kv = ps.kv("w", 20, rule="sgd", step_size=1.0, step_size_offset=0.0, step_size_pow=0.0)
    seen: list[Any] = []
    first = kv.push([2, 5], [1.0, 2.0], callback=seen.append)
    assert kv.wait(first) is None and seen == [None]
    ps.clock()
    assert kv.pull([2, 3, 5]).tolist() == [-1, 0, -2]
    stamp = kv.push_pull([2], [0.5], callback=seen.append)
    values = kv.wait(stamp)
    assert values is not None and seen[-1] is values
    assert values.tolist() == ([-1.0] if model == "bsp" else [-1.5])
    assert kv.wait(stamp) is None
    ps.clock()
    assert kv.pull([2]).tolist() == [-1.5]
    for keys, words in (([5, 2], "2 follows 5"), ([2, 2], "2 follows 2"), ([20], "rows 0..19")):
        with pytest.raises(Misuse, match=words):
            kv.push(keys, np.ones(len(keys)))
    with pytest.raises(Misuse, match="timestamp 99"):
        kv.wait(99)


@pytest.mark.parametrize("model", ["ssp(2)", "essp(2)", "asp"])
def test_a_push_that_a_former_life_has_sent_is_waited_for_no_more(model: str) -> None:
    port = LocalPort()
    for _ in range(2):
        ps = _server(model=model, port=port)
        kv = ps.kv("w", 4, rule="add")
        kv.pull([0])  # says in the second life what the first one has pushed
        kv.wait(kv.push([1], [1.0]))
    assert kv.pull([1]).tolist() == [1.0]
    ps.clock(wait=True)
    assert ps.clock_now == 1


def test_the_end_of_a_clock_is_kept_though_a_former_life_has_sent_more_in_it() -> None:
    sent = Sent([Address("server", 0)], buffered=False)
    sent.begin(3)
    sent.acknowledge(0, 3, 5)
    end = Message(Kind.UPDATE, 0, 3, 2, flags=Flag.LAST)
    assert [send.message for send in sent.retain([[end]])] == [end]
    sent.acknowledge(0, 3, 6)
    assert [send.message for send in sent.again([(3, 6)])] == [end]
    sent.acknowledge(0, 4, 0)
    assert not sent.again([(4, 0)])


def test_adarevision_in_a_single_process_is_adagrad() -> None:
    ps = _server(model="asp")
    rng = np.random.default_rng(0)
    a = ps.kv("a", 6, width=2, dtype="float64", rule="adagrad", step_size=0.3)
    b = ps.kv("b", 6, width=2, dtype="float64", rule="adarevision", step_size=0.3)
    keys = np.arange(1, 4)
    for _ in range(5):
        g = rng.normal(size=(3, 2))
        for kv in (a, b):
            kv.pull(keys)
            kv.push(keys, g)
    assert a.pull(keys) == pytest.approx(b.pull(keys))


def test_a_wait_ends_at_its_deadline_and_names_who_is_late() -> None:
    class Deaf(LocalPort):
        def post(self, sends: list[Send]) -> None:
            return

    with pytest.raises(DeadlineExceeded, match=r"clock 0 waited 0\.\d s: server 0 does not"):
        _server(port=Deaf())


@pytest.mark.parametrize("model", ["bsp", "asp"])
def test_threads_of_a_worker_take_turns(model: str) -> None:
    ps = _server(model=model)
    table, kv = ps.table("t", 50, 2, "int64"), ps.kv("w", 50, rule="add", dtype="int64")
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(100):
                ids = np.unique(rng.integers(0, 50, 10))
                table.inc(ids, np.ones((len(ids), 2), np.int64))
                assert (table.get(ids) > 0).all()
                kv.wait(kv.push(ids, np.ones(len(ids), np.int64)))
                sums[seed] += len(ids)
        except BaseException as error:
            failures.append(error)

    sums = [0, 0, 0]
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    ps.clock()
    everything = np.arange(50)
    assert table.get(everything).sum() == 2 * sum(sums)
    assert kv.pull(everything).sum() == sum(sums)
    ps.close()
