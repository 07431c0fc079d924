"""Versions in the memory of a node: written over in turns, killed in the middle, damaged, left."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diml.checkpoint import codec, durable
from diml.checkpoint.codec import Bytes
from diml.checkpoint.durable import Candidate, Shelf, Vault, any_in, choose
from diml.checkpoint.manifest import Identity, Manifest
from diml.errors import CorruptState
from tests.helpers.mpi import CHECKOUT

OURS = Identity("diml.jobs.drill", 7, {"data": "c0ffee"})
RUN = "ab12"


def manifest(version: int, rank: int = 0, size: int = 1, attempt: int = 1, run: str = RUN) -> Any:
    return Manifest(OURS, attempt, run, version, rank, size, True)


def states(version: int, rank: int = 0, numbers: int = 50) -> dict[str, Bytes]:
    model = {"model": codec.encode({"version": version})} if rank == 0 else {}
    return {**model, f"local-{rank:05d}": codec.encode(np.full(numbers, version))}


def candidates(directory: Path, size: int = 1) -> tuple[list[Candidate], list[str]]:
    found = Vault(directory, "new", in_memory=True).found()
    return choose([Shelf(0, range(size), found)], OURS, size)


def check(directory: Path, candidate: Candidate) -> None:
    """Read all of it."""
    vault = Vault(directory, "new", in_memory=True)
    for name, holder in candidate.holders.items():
        tree = codec.decode(vault.read(holder.manifest, name))
        got = tree["version"] if name == "model" else tree[-1]
        assert got == candidate.version


@pytest.mark.parametrize("at_once", [0, 1 << 30])
def test_versions_take_turns_in_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(durable, "_AT_ONCE_BYTES", at_once)
    threads = threading.active_count()
    vault = Vault(tmp_path, RUN, in_memory=True)
    assert not any_in(tmp_path, in_memory=True)
    for version in range(1, 9):
        # Shorter ones after longer ones, and the other way round.
        vault.offer(manifest(version), states(version, numbers=20_000 * (version % 3) + 1))
        assert vault.drain(20) and vault.written == version
        vault.confirm(1, version)
        found, problems = candidates(tmp_path)
        assert [one.version for one in found] == [version, version - 1, version - 2][: len(found)]
        assert not problems
        for one in found:
            check(tmp_path, one)
    assert len(found) == 3 and any_in(tmp_path, in_memory=True)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * 3
    vault.close()
    assert threading.active_count() == threads


def test_what_is_known_to_be_whole_is_not_written_over(tmp_path: Path) -> None:
    vaults = [Vault(tmp_path, RUN, in_memory=True) for _ in range(2)]
    for version in range(1, 8):
        for rank, vault in enumerate(vaults):
            if version <= 4 or rank == 0:
                vault.offer(manifest(version, rank, 2), states(version, rank))
            if version == 4:
                vault.confirm(1, 4)
    found, problems = candidates(tmp_path, 2)
    assert [one.version for one in found] == [4] and len(problems) == 4
    check(tmp_path, found[0])


def test_who_comes_later_leaves_the_others_slots_until_it_has_a_version(tmp_path: Path) -> None:
    def versions() -> list[tuple[int, int]]:
        return [one.order[:2] for one in candidates(tmp_path)[0]]

    def write(vault: Vault, version: int, **other: Any) -> None:
        vault.offer(manifest(version, **other), states(version))

    first = Vault(tmp_path, RUN, in_memory=True)
    for version in (1, 2, 3):
        write(first, version)
        first.confirm(1, version)
    replacement = Vault(tmp_path, RUN, in_memory=True)
    write(replacement, 4)
    assert versions() == [(1, 4), (1, 3), (1, 2), (1, 1)]
    replacement.confirm(1, 4)
    write(replacement, 5)
    assert versions() == [(1, 5), (1, 4)]
    again = Vault(tmp_path, "cd34", in_memory=True)
    again.confirm(1, 5, RUN)  # it went on from there
    write(again, 6, attempt=2, run="cd34")
    assert versions() == [(2, 6), (1, 5), (1, 4)]
    again.confirm(2, 6)
    write(again, 7, attempt=2, run="cd34")
    assert versions() == [(2, 7), (2, 6)]


def test_what_is_lent_stays_as_it_is_until_the_next_version(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    dice = random.Random(seed)
    vault = Vault(tmp_path, RUN, in_memory=True)
    committed, before = np.empty(0, np.uint8), b""
    whole = lent = 0
    for version in range(1, 300):
        taken: list[Bytes | None] = []

        def take(nbytes: int, taken: list[Bytes | None] = taken) -> Bytes:
            taken.append(vault.take(nbytes))
            return np.empty(nbytes, np.uint8) if taken[-1] is None else taken[-1]

        mine = codec.encode(np.full(dice.choice((50, 40, 20_000)), version), "local", take)
        # Now the checkpoint may still fail: the one before must be what it was.
        assert committed.tobytes() == before, seed
        if dice.random() < 0.1:
            continue
        committed, before = mine, mine.tobytes()
        if dice.random() < 0.8:
            lent += vault.lends(mine)
            vault.offer(manifest(version), {**states(version), "local-00000": mine})
            if dice.random() < 0.8:
                whole = version
                vault.confirm(1, version)
        found, _ = candidates(tmp_path)
        assert not whole or whole in [one.version for one in found], seed
        for one in found:
            check(tmp_path, one)
    assert lent > 100


_WRITER = """
import sys
from pathlib import Path
from diml.checkpoint.durable import Vault
from tests.unit.test_slots import RUN, manifest, states
vault = Vault(Path(sys.argv[1]), RUN, in_memory=True)
for version in range(1, 100_000):
    made = states(version, numbers=20_000)
    if (taken := vault.take(made["local-00000"].size)) is not None:
        taken[:] = made["local-00000"]
        made["local-00000"] = taken
    vault.offer(manifest(version), made)
    vault.confirm(1, version)
    print(version, flush=True)
"""


def test_killed_at_any_moment_the_version_before_is_there(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    dice = random.Random(seed)
    for round_ in range(4):
        directory = tmp_path / str(round_)
        command = [sys.executable, "-c", _WRITER, str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(dice.uniform(0.0, 0.05))
            writer.kill()
            last = int(([line for line in writer.stdout if line.endswith("\n")] or ["1"])[-1])
        found, _ = candidates(directory)
        assert found and found[0].version >= last, (seed, round_)
        check(directory, found[0])


def test_a_flipped_bit_is_caught_wherever_it_is(tmp_path: Path) -> None:
    vault = Vault(tmp_path, RUN, in_memory=True)
    vault.offer(manifest(1), states(1))
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    used = len(good.rstrip(b"\0"))  # the rest is room to grow
    for position in range(used):
        bad = bytearray(good[: used + 64])
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        found, problems = candidates(tmp_path)
        if found:
            with pytest.raises(CorruptState, match=path.name):
                check(tmp_path, found[0])
        else:
            assert path.name in problems[0], position
    path.write_bytes(good[: used - 1])
    found, problems = candidates(tmp_path)
    assert not found and path.name in problems[0]
    path.write_bytes(good)
    check(tmp_path, candidates(tmp_path)[0][0])


def test_where_a_write_was_cut_short_there_is_nothing(tmp_path: Path) -> None:
    vault = Vault(tmp_path, RUN, in_memory=True)
    vault.offer(manifest(1), states(1))
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    # What is there first, and what comes last: the checksum of the header.
    for left in (b"", bytes(20), bytes(64) + good[64:], good[:60] + bytes(4) + good[64:]):
        path.write_bytes(left)
        assert candidates(tmp_path) == ([], []) and not any_in(tmp_path, in_memory=True)


def test_no_memory_left_costs_a_line_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(28, "No space left on device")

    vault = Vault(tmp_path, RUN, in_memory=True)
    vault.offer(manifest(1), states(1))
    vault.confirm(1, 1)
    monkeypatch.setattr("os.posix_fallocate", full)
    vault.offer(manifest(2), states(2, numbers=100_000))
    assert vault.written == 1
    assert "checkpoint of version 2 not written" in capfd.readouterr().err
    assert [one.version for one in candidates(tmp_path)[0]] == [1]
    monkeypatch.undo()
    vault.offer(manifest(3), states(3))
    assert [one.version for one in candidates(tmp_path)[0]] == [3, 1]
