"""Durable checkpoints: cut after every step, damaged at every byte, foreign, old, node-local."""

from __future__ import annotations

import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from diml.checkpoint import codec, disk
from diml.checkpoint.codec import Bytes
from diml.checkpoint.durable import Candidate, Shelf, Vault, choose, next_attempt
from diml.checkpoint.manifest import Identity, Manifest
from diml.checkpoint.shard import write_shard
from diml.errors import CorruptState, Misuse

OURS = Identity("diml.jobs.drill", 7, {"data": "c0ffee"})
RUN = "ab12"


def state(version: int, rank: int) -> dict[str, Any]:
    return {"version": version, "rank": rank, "w": np.arange(40, dtype=np.float32) + version}


def manifest(version: int, rank: int = 0, size: int = 2, **other: Any) -> Manifest:
    return replace(Manifest(OURS, 1, RUN, version, rank, size, True), **other)


def states(version: int, rank: int) -> dict[str, Bytes]:
    pieces = {f"local-{rank:05d}": codec.encode(state(version, rank))}
    if rank == 0:
        pieces["model"] = codec.encode(state(version, -1))
    return pieces


def write(directory: Path, version: int, size: int = 2, **other: Any) -> None:
    for rank in range(size):
        written = manifest(version, rank, size, **other)
        write_shard(directory, written, states(version, rank), sync=False)


def candidates(
    directory: Path, identity: Identity = OURS, size: int = 2
) -> tuple[list[Candidate], list[str]]:
    vault = Vault(directory, "new")
    # As many processes as there are, each of which has looked at its part.
    found = [one for process in range(size) for one in vault.found(process, size)]
    return choose([Shelf(0, range(size), found)], identity, size)


def read_all(directory: Path, candidate: Candidate) -> dict[str, Any]:
    vault = Vault(directory, "new")
    return {
        name: codec.decode(vault.read(holder.manifest, name))
        for name, holder in candidate.holders.items()
    }


def test_what_was_written_comes_back_and_any_hdf5_tool_reads_it(tmp_path: Path) -> None:
    write(tmp_path, 3)
    found, problems = candidates(tmp_path)
    assert [c.version for c in found] == [3] and not problems
    back = read_all(tmp_path, found[0])
    assert sorted(back) == ["local-00000", "local-00001", "model"]
    assert back["local-00001"]["rank"] == 1
    np.testing.assert_array_equal(back["model"]["w"], state(3, -1)["w"])
    with h5py.File(next(tmp_path.glob("*/rank-00000.h5"))) as file:
        assert file.attrs["version"] == 3
        assert codec.decode(file["model"][...])["version"] == 3


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    Vault(directory, RUN)
    write(directory, 1)
    for path in [directory, *directory.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


class Cut(Exception):
    pass


def test_a_write_cut_after_any_step_leaves_the_version_before(tmp_path: Path) -> None:
    steps: list[str] = []
    write_shard(tmp_path / "..", manifest(9), states(9, 0), reached=steps.append)
    shutil.rmtree(tmp_path / ".." / manifest(9).folder)
    assert len(steps) == 8 and len(set(steps)) == 8
    for last in steps:
        directory = tmp_path / last.replace(" ", "-")
        directory.mkdir()
        write(directory, 1)
        write_shard(directory, manifest(2, 1), states(2, 1), sync=False)

        def cut(step: str, last: str = last) -> None:
            if step == last:
                raise Cut

        with pytest.raises(Cut):
            write_shard(directory, manifest(2, 0), states(2, 0), reached=cut)
        found, problems = candidates(directory)
        if last == "manifest in place":
            assert [c.version for c in found] == [2, 1] and not problems
        else:
            assert [c.version for c in found] == [1], last
            assert len(problems) == 1 and "version 2 skipped" in problems[0]
        assert read_all(directory, found[0])["local-00000"]["version"] == found[0].version


def test_a_flipped_bit_is_caught_wherever_it_is(tmp_path: Path) -> None:
    write(tmp_path, 1, size=1)
    whole = candidates(tmp_path, size=1)[0][0]
    for path in sorted(tmp_path.rglob("rank-*")):
        good = path.read_bytes()
        for position in range(0, len(good), 2 if path.suffix == ".json" else 11):
            bad = bytearray(good)
            bad[position] ^= 1 << position % 8
            path.write_bytes(bad)
            # Never another job's: damage must not end in an error that blames the user.
            found, problems = candidates(tmp_path, size=1)
            if found:
                with pytest.raises(CorruptState, match=path.name):
                    read_all(tmp_path, found[0])
            else:
                assert path.name in problems[0], problems
        path.write_bytes(good)
    assert read_all(tmp_path, whole)["model"]["version"] == 1


@pytest.mark.parametrize("name", ["rank-00001.h5", "rank-00001.json"])
def test_a_missing_or_shortened_file_is_skipped_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    path = tmp_path / manifest(2).folder / name
    path.write_bytes(path.read_bytes()[:-1])
    found, problems = candidates(tmp_path)
    assert [c.version for c in found] == [1] and str(path) in problems[0]
    path.unlink()
    found, problems = candidates(tmp_path)
    assert [c.version for c in found] == [1] and "version 2 skipped" in problems[0]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(OURS, program="mine.py"), "it is of diml.jobs.drill, this is mine.py"),
        (replace(OURS, seed=8), "its seed is 7, this run's is 8"),
        (replace(OURS, facts={"data": "bad"}), "its data is c0ffee, this run's is bad"),
        (replace(OURS, facts={}), "its data is c0ffee, this run's is not there"),
    ],
)
def test_another_jobs_checkpoint_is_refused(tmp_path: Path, other: Identity, words: str) -> None:
    write(tmp_path, 1)
    with pytest.raises(Misuse, match=words):
        candidates(tmp_path, other)


def test_local_states_need_as_many_workers_as_wrote_them(tmp_path: Path) -> None:
    write(tmp_path, 1)
    found, problems = candidates(tmp_path, size=3)
    assert not found and "2 workers wrote it" in problems[0]
    bare = tmp_path / "bare"
    bare.mkdir()
    write(bare, 1, uses_local=False)
    assert [c.version for c in candidates(bare, size=3)[0]] == [1]


def test_each_node_may_have_a_directory_of_its_own(tmp_path: Path) -> None:
    vaults = [Vault(tmp_path / f"node{rank}", RUN) for rank in range(2)]
    for rank, vault in enumerate(vaults):
        vault.offer(manifest(4, rank), states(4, rank))
        assert vault.drain(20) and vault.written == 4
    # The nodes have changed places since.
    shelves = [Shelf(0, [rank], vaults[1 - rank].found()) for rank in range(2)]
    (best,), _ = choose(shelves, OURS, 2)
    readers = {name: holder.process for name, holder in best.holders.items()}
    assert readers == {"model": 1, "local-00000": 1, "local-00001": 0}
    assert vaults[0].view() != vaults[1].view()
    assert next_attempt(shelves) == 2
    found, problems = choose([Shelf(0, [0], vaults[0].found()), Shelf(0, [1], [])], OURS, 2)
    assert not found and "local-00001 is missing" in problems[0]


def test_a_later_attempt_is_newer_than_a_greater_version(tmp_path: Path) -> None:
    write(tmp_path, 50)
    write(tmp_path, 3, attempt=2, run="cd34")
    assert [c.version for c in candidates(tmp_path)[0]] == [3, 50]


def test_old_versions_go_only_once_newer_ones_are_known_to_be_whole(tmp_path: Path) -> None:
    vaults = [Vault(tmp_path, RUN, keep=2) for _ in range(2)]

    def versions() -> list[int]:
        return [c.version for c in candidates(tmp_path)[0]]

    for version in range(1, 6):
        for rank, vault in enumerate(vaults):
            vault.offer(manifest(version, rank), states(version, rank))
            assert vault.drain(20)
            if version in (2, 3):
                vault.confirm(1, version)
    assert versions() == [5, 4, 3, 2]
    assert len(list(tmp_path.iterdir())) == 4


def test_files_of_another_job_are_never_deleted(tmp_path: Path) -> None:
    write(tmp_path, 1, identity=replace(OURS, seed=1), run="theirs")
    vault = Vault(tmp_path, RUN, keep=1)
    for version in (2, 3):
        vault.confirm(1, version)
        vault.offer(manifest(version, 0, 1), states(version, 0))
        assert vault.drain(20)
    assert sum("theirs" in path.name for path in tmp_path.iterdir()) == 1


def test_a_disk_that_refuses_costs_a_line_not_the_job(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vault = Vault(tmp_path / "gone", RUN)
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_text("a file now")
    vault.offer(manifest(1), states(1, 0))
    assert vault.drain(20) and vault.written == 0
    assert "diml: rank 0: checkpoint of version 1 not written" in capfd.readouterr().err


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misuse, match="checkpoint directory"):
        Vault(tmp_path / "file" / "below", RUN)


def test_nothing_on_the_way_reads_pickles() -> None:
    package = Path(codec.__file__).parents[1]
    allowed = {
        package / "world" / "link.py",  # between living processes
        package / "allreduce" / "wire.py",
        package / "allreduce" / "rabit.py",  # not with --checkpoint-dir: see test_durable in mpi
    }
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert path in allowed or not re.search(r"import pickle\b", text), path
        assert text.count("np.load(") == text.count("allow_pickle=False"), path


def test_a_full_disk_costs_a_line_and_the_next_version_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vault = Vault(tmp_path, RUN)
    big = {"model": codec.encode({"w": np.zeros(100_000)})}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # HDF5 makes a RuntimeError of it
    try:
        vault.offer(manifest(1, 0, 1), big)
        assert vault.drain(30) and vault.written == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint of version 1 not written" in line and line.endswith(": File too large")
    vault.offer(manifest(2, 0, 1), big)
    assert vault.drain(30) and vault.written == 2
    vault.close()


def test_an_error_of_our_own_does_not_end_the_thread_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vault = Vault(tmp_path, RUN)

    def broken(*_: object) -> None:
        raise RuntimeError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr(vault._medium, "write", broken)
        vault.offer(manifest(1, 0, 1), states(1, 0))
        assert vault.drain(30)
        thread = vault._thread
    vault.offer(manifest(2, 0, 1), states(2, 0))
    assert vault.drain(30) and vault.written == 2 and vault._thread is thread
    vault.close()
    assert "RuntimeError: a mistake" in capsys.readouterr().err


def test_what_cannot_be_deleted_does_not_undo_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "0000-v00000001-ab00").write_text("no folder")
    vault = Vault(tmp_path, RUN, keep=1)
    vault.confirm(1, 1)
    vault.offer(manifest(2, 0, 1), states(2, 0))
    assert vault.drain(30) and vault.written == 2
    vault.close()


def test_an_old_version_that_another_rank_has_just_deleted_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    clear = disk._clear

    def too_late(folder: Path, *about: Any) -> None:
        shutil.rmtree(folder)
        clear(folder, *about)

    monkeypatch.setattr(disk, "_clear", too_late)
    vault = Vault(tmp_path, "new", keep=1)
    vault.confirm(2, 1)
    vault.offer(manifest(2, attempt=2, run="new"), states(2, 0))
    assert vault.drain(30) and vault.written == 2
    vault.close()


def test_a_directory_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(Misuse, match=f"checkpoint directory {tmp_path}: Permission denied"):
        Vault(tmp_path, "run").view()
