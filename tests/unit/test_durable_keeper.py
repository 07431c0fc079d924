"""The policy of durable checkpoints: who says what, what follows, and from which one a run goes on.

The collectives are played by threads that meet at a barrier, one a worker.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest

from diml.checkpoint import codec
from diml.checkpoint.durable import Vault
from diml.checkpoint.fetch import Restored
from diml.checkpoint.keeper import STOP_SIGNALS, Keeper, Place, Plan, State
from diml.checkpoint.shard import read_manifest
from diml.errors import Misuse

T = TypeVar("T")
MODEL = codec.encode({"w": np.arange(3)})


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Threads:
    """The collectives of `size` threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._slots: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=20)

    def of(self, rank: int) -> Member:
        return Member(self, rank)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values


class Member:
    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self._rank = threads, rank

    def allgather(self, value: Any) -> Any:
        return self._threads.gather(self._rank, value)

    def broadcast(self, value: Any = None, root: int = 0) -> Any:
        return self._threads.gather(self._rank, value)[root]


def on_all(size: int, work: Callable[[int, Member], T]) -> list[T | BaseException]:
    """Run `work` as each worker; what it returned, or raised, by rank."""
    threads = Threads(size)
    out: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            out[rank] = work(rank, threads.of(rank))
        except Exception as error:
            out[rank] = error

    workers = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    return out


def keeper(
    directory: Path, resume: Literal["auto", "never", "must"] = "auto", seed: int = 1
) -> Keeper:
    return Keeper([Place(directory, 1e-9)], resume=resume, seed=seed)


def write_version(directory: Path, version: int, size: int, *, local: bool = True) -> None:
    def work(rank: int, member: Member) -> bool:
        one = keeper(directory, "never")
        one.meet(member, rank)
        model = codec.encode({"version": version})
        mine = {rank: codec.encode(np.full(3, rank))} if local else {}
        state = State(version, lambda: model, mine, local)
        one.write(Plan((True,), False), state, rank, ["host"] * size)
        return one.finished(version)

    assert on_all(size, work) == [True] * size


def resume(
    directory: Path, size: int, how: Literal["auto", "never", "must"] = "auto", seed: int = 1
) -> list[Restored | BaseException | None]:
    def work(rank: int, member: Member) -> Restored | None:
        one = keeper(directory, how, seed)
        one.meet(member, rank)
        return one.restore(member, rank, size)

    return on_all(size, work)


def test_the_newest_version_comes_back_on_every_rank(tmp_path: Path) -> None:
    write_version(tmp_path, 4, 3)
    write_version(tmp_path, 6, 3)
    for rank, got in enumerate(resume(tmp_path, 3, "must")):
        assert isinstance(got, Restored) and got.version == 6 and got.local is not None
        assert codec.decode(got.model) == {"version": 6}
        np.testing.assert_array_equal(codec.decode(got.local), np.full(3, rank))


def test_a_job_that_asks_for_it_gets_the_states_of_another_number_of_workers(
    tmp_path: Path,
) -> None:
    write_version(tmp_path, 4, 3)

    def work(rank: int, member: Member) -> Restored | None:
        one = keeper(tmp_path)
        one.meet(member, rank)
        return one.restore(member, rank, 2, any_workers=True)

    for got in on_all(2, work):
        assert isinstance(got, Restored) and got.version == 4 and got.local is not None
        states = codec.decode(got.local)
        assert [state.tolist() for state in states] == [[0] * 3, [1] * 3, [2] * 3]


def test_without_local_states_any_number_of_workers_goes_on(tmp_path: Path) -> None:
    write_version(tmp_path, 4, 2, local=False)
    for size in (1, 3):
        for got in resume(tmp_path, size):
            assert isinstance(got, Restored) and got.version == 4 and got.local is None


def test_a_damaged_state_sends_all_ranks_to_the_version_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path, 4, 2)
    write_version(tmp_path, 6, 2)
    (path,) = tmp_path.glob("*-v00000006-*/rank-00001.h5")
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    for got in resume(tmp_path, 2):
        assert isinstance(got, Restored) and got.version == 4
    err = capfd.readouterr().err
    assert err.count("skipped") == 1 and str(path) in err


def test_must_says_why_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    for got in resume(tmp_path, 2, "must"):
        assert isinstance(got, Misuse) and "there is none" in str(got)
    write_version(tmp_path, 4, 2)
    (path,) = tmp_path.glob("*/rank-00000.h5")
    path.write_bytes(path.read_bytes()[:-1])
    for got in resume(tmp_path, 2, "must"):
        assert isinstance(got, Misuse) and str(path) in str(got)
    assert resume(tmp_path, 2) == [None, None]
    assert resume(tmp_path, 2, "never") == [None, None]


def test_workers_that_see_one_directory_share_the_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path, 4, 5)
    read: list[Path] = []

    def count(path: Path) -> Any:
        read.append(path)
        return read_manifest(path)

    monkeypatch.setattr("diml.checkpoint.disk.read_manifest", count)
    for got in resume(tmp_path, 5, "must"):
        assert isinstance(got, Restored) and got.version == 4
    assert len(read) == len(set(read)) == 5


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_versions_stay_as_were_asked_for(tmp_path: Path, keep: int) -> None:
    keepers = met(tmp_path, 2, lambda: 0.0, keep)
    for version in range(1, 7):
        for rank, one in enumerate(keepers):
            one.write(
                Plan((True,), False), State(version, lambda: MODEL, {}, False), rank, ["h"] * 2
            )
            assert one.finished(version)
        said = merged(keepers)
        for one in keepers:
            one.decide(said)
    versions = sorted(int(path.name[6:14]) for path in tmp_path.iterdir())
    # The newest, which the next comparison would show to be whole, and `keep` that are known to be.
    assert versions == list(range(6 - keep, 7))


def test_another_seed_is_refused_with_advice(tmp_path: Path) -> None:
    write_version(tmp_path, 4, 2)
    for got in resume(tmp_path, 2, seed=2):
        assert isinstance(got, Misuse)
        assert "its seed is 1, this run's is 2 (use another directory" in str(got)
    assert resume(tmp_path, 2, "never", seed=2) == [None, None]


def merged(keepers: list[Keeper]) -> list[int]:
    said = [one.wishes(rank) for rank, one in enumerate(keepers)]
    return [max(column) for column in zip(*said, strict=True)]


def met(directory: Path, size: int, clock: Callable[[], float], keep: int = 2) -> list[Keeper]:
    keepers = [
        Keeper([Place(directory, 10)], resume="auto", seed=1, keep=keep, clock=clock)
        for _ in range(size)
    ]
    on_all(size, lambda rank, member: keepers[rank].meet(member, rank))
    return keepers


def test_a_version_is_due_by_the_clock_of_rank_0_and_not_while_one_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    keepers = met(tmp_path, 2, lambda: now)
    assert keepers[0].decide(merged(keepers)) == Plan(write=(False,), stop=False)
    now = 11.0
    assert keepers[1].decide(merged(keepers)) == Plan(write=(True,), stop=False)
    monkeypatch.setattr(Vault, "busy", property(lambda self: True))
    assert keepers[1].decide(merged(keepers)) == Plan(write=(False,), stop=False)


def test_a_signal_to_any_worker_stops_all_at_the_next_checkpoint(tmp_path: Path) -> None:
    keepers = met(tmp_path, 3, lambda: 0.0)
    os.kill(os.getpid(), signal.SIGUSR1)  # the last of the three has the handler
    assert [one.stop and one.stop.name for one in keepers] == ["", "", "SIGUSR1"]
    assert keepers[0].decide(merged(keepers)) == Plan(write=(True,), stop=True)


def test_what_can_be_resumed_is_seen_without_having_met(tmp_path: Path) -> None:
    assert not keeper(tmp_path / "absent").resumable()
    write_version(tmp_path, 4, 2)
    assert keeper(tmp_path).resumable()


def test_without_a_disk_signals_are_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    one = Keeper([Place(tmp_path, 0.0, in_memory=True)], resume="auto", seed=1)
    assert one.stop is None and signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize("lost", range(3))
def test_the_memory_of_the_nodes_that_are_left_has_it_all(tmp_path: Path, lost: int) -> None:
    """Three nodes, two ranks each; every local state lies on its node and on the next one."""
    hosts = [f"n{rank // 2}" for rank in range(6)]
    model = codec.encode({"w": np.arange(5)})
    locals_ = [codec.encode(np.full(3, rank)) for rank in range(6)]

    def node(host: str) -> Keeper:
        return Keeper([Place(tmp_path / host, 0.0, in_memory=True)], resume="must", seed=1)

    def write(rank: int, member: Member) -> None:
        one = node(hosts[rank])
        one.meet(member, rank)
        held = {owner: locals_[owner] for owner in (rank, (rank - 2) % 6)}
        one.write(Plan((True,), False), State(8, lambda: model, held, True), rank, hosts)
        one.close()

    def read(rank: int, member: Member) -> Restored | None:
        one = node([host for host in hosts if host != f"n{lost}"][rank % 4])
        one.meet(member, rank)
        return one.restore(member, rank, 6)

    assert on_all(6, write) == [None] * 6
    for rank, got in enumerate(on_all(6, read)):
        assert isinstance(got, Restored) and got.version == 8 and got.local is not None
        np.testing.assert_array_equal(codec.decode(got.local), np.full(3, rank))


def test_of_the_memory_and_the_disk_the_newest_whole_version_is_taken(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    memory = tmp_path / "memory"
    places = [Place(tmp_path / "disk", 1e-9), Place(memory, 0.0, in_memory=True)]

    def write(rank: int, member: Member) -> None:
        one = Keeper(places, resume="auto", seed=1)
        one.meet(member, rank)
        for version, plan in ((4, (True, False)), (6, (False, True))):
            model = codec.encode({"version": version})
            own = {rank: codec.encode(np.full(3, version))}
            state = State(version, partial(lambda model: model, model), own, True)
            one.write(Plan(plan, False), state, rank, ["host"] * 2)
        one.close()

    def read(rank: int, member: Member) -> int:
        one = Keeper(places, resume="must", seed=1)
        one.meet(member, rank)
        got = one.restore(member, rank, 2)
        assert got is not None and got.local is not None
        assert codec.decode(got.model) == {"version": got.version}
        assert codec.decode(got.local).tolist() == [got.version] * 3
        return got.version

    assert on_all(2, write) == [None] * 2
    assert on_all(2, read) == [6, 6]
    (slot,) = memory.glob("*rank-00001*")
    data = bytearray(slot.read_bytes())
    data[100] ^= 1
    slot.write_bytes(data)
    assert on_all(2, read) == [4, 4]
    assert f"version 6 skipped: {slot}" in capfd.readouterr().err


def test_a_disk_gets_a_copy_of_what_will_be_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[Any] = []
    offer = Vault.offer

    def spy(self: Vault, manifest: Any, states: Any) -> None:
        offered.append(states["local-00000"])
        offer(self, manifest, states)

    monkeypatch.setattr(Vault, "offer", spy)
    places = [Place(tmp_path / "disk", 1e-9), Place(tmp_path / "memory", 0.0, in_memory=True)]

    def work(rank: int, member: Member) -> None:
        one = Keeper(places, resume="auto", seed=1)
        one.meet(member, rank)
        for version in range(1, 6):
            taken: list[Any] = []

            def take(nbytes: int, taken: list[Any] = taken) -> Any:
                taken.append(one.take(nbytes))
                return np.empty(nbytes, np.uint8) if taken[0] is None else taken[0]

            local = codec.encode(np.full(3, version), "local", take)
            state = State(version, lambda: MODEL, {0: local}, True)
            one.write(Plan((True, True), False), state, rank, ["host"])
            assert offered[-1] is local
            assert (offered[-2] is local) == (taken[0] is None)
            assert offered[-2].tobytes() == local.tobytes()
        assert taken[0] is not None
        one.close()

    assert on_all(1, work) == [None]
