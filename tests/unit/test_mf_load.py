"""Reading together: the same entries in the same order, on any number of workers, in any luck."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diml.data import fingerprint
from diml.data.files import files_of
from diml.errors import DimlError, Misuse
from diml.jobs.mf_data import Ratings
from diml.jobs.mf_load import Source, load

TIMEOUT_S = 30.0


class Crews:
    """Workers as threads; from exchange number `broken_at` on the worker `unlucky` gets None."""

    def __init__(self, size: int, broken_at: int | None = None, unlucky: int = 0) -> None:
        self.size, self.broken_at, self.unlucky = size, broken_at, unlucky
        self.barrier = threading.Barrier(size, timeout=TIMEOUT_S)
        self.given: list[Any] = [None] * size

    def load(self, source: Source, *others: Source) -> list[Any]:
        """What each worker ends with; with `others`, each worker has a source of its own."""
        found: list[Any] = [None] * self.size

        def work(rank: int) -> None:
            try:
                found[rank] = load((source, *others)[rank if others else 0], Member(self, rank))
            except DimlError as error:
                found[rank] = error

        threads = [
            threading.Thread(target=work, args=(rank,), name=f"worker-{rank}")
            for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Member:
    """One worker's view of its crew."""

    def __init__(self, crews: Crews, rank: int) -> None:
        self._crews, self.rank, self.size = crews, rank, crews.size
        self._calls = 0

    def gather_once(self, array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        crews = self._crews
        broken = crews.broken_at
        self._calls += 1
        if broken is not None and self._calls > broken:
            return None
        crews.given[self.rank] = array
        crews.barrier.wait()
        joined = np.concatenate(crews.given)
        crews.barrier.wait()
        return None if self._calls == broken and self.rank == crews.unlucky else joined


def same(one: Ratings | Misuse, other: Ratings | Misuse) -> bool:
    assert isinstance(one, Ratings), one
    assert isinstance(other, Ratings), other
    return one.fingerprint == other.fingerprint


def entries_file(folder: Path, name: str = "data", count: int = 500) -> Path:
    path = folder / name
    chance = np.random.default_rng(count)
    rows, cols = chance.integers(0, 40, count).tolist(), chance.integers(0, 30, count).tolist()
    path.write_text(
        "".join(f"{i} {j} {n}.5\n" for n, i, j in zip(range(count), rows, cols, strict=True))
    )
    return path


@pytest.mark.parametrize("workers", [2, 3, 7])
@pytest.mark.parametrize("broken_at", [None, 1, 2, 3, 5, 6])
def test_workers_read_together_what_one_reads_alone(
    tmp_path: Path, workers: int, broken_at: int | None
) -> None:
    source = Source(str(entries_file(tmp_path)), None, test_fraction=0.2, seed=3)
    alone = load(source)
    for found in Crews(workers, broken_at, unlucky=1).load(source):
        assert same(found, alone)


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("line", ["0 1", "0 1 nan", "99999999999 1 1"])
def test_all_workers_name_the_first_bad_line(tmp_path: Path, workers: int, line: str) -> None:
    path = entries_file(tmp_path)
    lines = path.read_text().splitlines()
    lines[100] = lines[400] = line
    path.write_text("\n".join(lines))
    said = {str(error) for error in Crews(workers).load(Source(str(path), None))}
    assert len(said) == 1
    assert f"{path}, line 101: " in said.pop()


def test_headers_and_emptiness_are_judged_by_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    head = "%%MatrixMarket matrix coordinate real general\n9 9 {}\n"
    body = "".join(f"{i} {i} 1\n" for i in range(1, 10))
    path.write_text(head.format(9) + body)
    for found in Crews(3).load(Source(str(path), None)):
        assert same(found, load(Source(str(path), None)))
    path.write_text(head.format(10) + body)
    for found in Crews(3).load(Source(str(path), None)):
        assert "10 entries are promised for it, it has 9" in str(found)
    path.write_text("# nothing\n")
    for found in Crews(3).load(Source(str(path), None)):
        assert "no entries in it" in str(found)


def test_a_directory_and_a_pattern_stand_for_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("part-1", 30), ("part-0", 20), (".hidden", 5), ("other", 7)):
        entries_file(folder, name, count)
    parts = [str(folder / name) for name in ("part-0", "part-1")]
    assert files_of(folder / "part-*") == parts
    assert files_of(folder) == [str(folder / "other"), *parts]
    pieces = load(Source(f"{folder}/part-[01]", None))
    values = [load(Source(part, None)).train.values for part in parts]
    assert np.array_equal(pieces.train.values, np.concatenate(values))
    for found in Crews(2).load(Source(f"{folder}/part-[01]", None)):
        assert same(found, pieces)
    with pytest.raises(Misuse, match="no file there"):
        files_of(folder / "absent-*")
    assert files_of(tmp_path / "absent") == [str(tmp_path / "absent")]


@pytest.mark.parametrize("length", [500, 10_000_000])
def test_workers_that_see_other_files_say_so(tmp_path: Path, length: int) -> None:
    text = b"0 0 1\n1 1 2\n".ljust(length, b"#")
    for node, middle in enumerate((b"#", b"#", b"1")):
        (tmp_path / f"{node}").write_bytes(text + middle * (length // 100) + text[::-1])
    names = [Source(str(tmp_path / node), None) for node in "0122"]
    said = {str(error).partition(": ")[2] for error in Crews(4).load(*names)}
    assert said == {"worker 2 sees other files there than worker 0: put the same ones on all nodes"}


def test_a_replacement_with_other_data_is_refused() -> None:
    class Replayed:
        rank = 1

        def allgather(self, value: Any) -> Any:
            return [3, 4]

    assert fingerprint.of_all(Replayed(), 4) == [3, 4]
    with pytest.raises(Misuse, match="worker 1 was replaced where its part of the data is another"):
        fingerprint.of_all(Replayed(), 5)
