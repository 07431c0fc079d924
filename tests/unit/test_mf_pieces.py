"""Pieces on the nodes' own disks: the data of one shared file, or one line that says what lacks."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diml.data.files import files_of
from diml.errors import DimlError, Misuse, Resumable
from diml.jobs import mf_pieces
from diml.jobs.mf_load import Source, load
from diml.world import marker
from tests.unit.test_mf_load import Crews, entries_file, same

PIECES = ("part-0", "part-1", "part-2", "part-3")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """One file with the lines of all pieces, in the order of their names."""
    path = tmp_path / "whole"
    folder = tmp_path / "all"
    folder.mkdir()
    texts = [entries_file(folder, name, 100 + 10 * n).read_text() for n, name in enumerate(PIECES)]
    path.write_text("".join(texts))
    return path


def node(whole: Path, name: str, *pieces: int, wanted: int = len(PIECES)) -> Source:
    """A node's own directory with these pieces."""
    folder = whole.parent / name
    folder.mkdir(exist_ok=True)
    for piece in pieces:
        (folder / PIECES[piece]).write_bytes((whole.parent / "all" / PIECES[piece]).read_bytes())
    return Source(f"{folder}/part-*", None, pieces=wanted, test_fraction=0.2, seed=3)


def alike(whole: Path) -> Any:
    return load(Source(str(whole), None, test_fraction=0.2, seed=3))


def said(found: list[Any]) -> str:
    """What all workers say alike, but for the name of their node's directory."""
    assert all(isinstance(one, DimlError) for one in found), found
    (text,) = {re.sub(r"/n\d/part-\*", "/*", str(one)) for one in found}
    return text


@pytest.mark.parametrize(
    "held",
    [
        [(0, 1), (2, 3)],
        [(3, 1), (2, 0)],
        [(0, 1, 2, 3), ()],
        [(0, 1, 2), (1, 2, 3), (0,)],
        [(0, 1, 2, 3)] * 3,
    ],
)
def test_whichever_node_holds_which_the_data_are_those_of_one_file(
    whole: Path, held: list[tuple[int, ...]]
) -> None:
    nodes = [node(whole, f"n{n}", *pieces) for n, pieces in enumerate(held)]
    # Two workers a node, dealt out over the nodes as mpirun does.
    for found in Crews(2 * len(nodes)).load(*nodes * 2):
        assert same(found, alike(whole))


def test_one_process_reads_all_pieces_or_says_which_it_has(whole: Path) -> None:
    assert same(load(node(whole, "n0", 0, 1, 2, 3)), alike(whole))
    with pytest.raises(Misuse, match="has part-1 of the 4 pieces"):
        load(node(whole, "n1", 1))


def test_all_workers_say_what_there_is_where_a_piece_is_missing(whole: Path) -> None:
    nodes = [node(whole, "n0", 0, 1), node(whole, "n1", 3)]
    text = said(Crews(4).load(*nodes * 2))
    assert "--pieces 4, but there are 3 (" in text and "part-3" in text
    assert said(Crews(2).load(*[node(whole, "n2"), node(whole, "n3")])).count("none") == 1
    nodes = [node(whole, "n0", 0, 1, wanted=3), node(whole, "n1", 2, 3, wanted=3)]
    assert "--pieces 3, but there are 4" in said(Crews(2).load(*nodes))


def test_two_files_of_one_name_are_refused(whole: Path) -> None:
    nodes = [node(whole, "n0", 0, 1, 2), node(whole, "n1", 2, 3)]
    (whole.parent / "n1" / "part-2").write_text("0 0 1\n")
    assert "another file on" in said(Crews(2).load(*nodes))
    both = Source(f"{whole.parent}/n?/part-*", None, pieces=4)
    assert "two have the same" in said(Crews(2).load(both))


def test_a_bad_line_is_named_by_those_who_cannot_see_it(whole: Path) -> None:
    nodes = [node(whole, "n0", 0, 1), node(whole, "n1", 2, 3)]
    with open(whole.parent / "n1" / "part-3", "a") as file:
        file.write("0 1 nan\n")
    assert f"{whole.parent}/n1/part-3, line 131: " in said(Crews(4).load(*nodes * 2))


def test_what_needs_the_whole_file_is_refused(whole: Path) -> None:
    with pytest.raises(Misuse, match="leave out --pieces"):
        load(Source(str(whole), None, pieces=1, memory_bytes=1 << 30))


@pytest.mark.parametrize("broken_at", [1, 2, 3, 7, 20])
def test_who_cannot_see_all_pieces_when_somebody_died_says_that_it_must_start_again(
    whole: Path, broken_at: int
) -> None:
    nodes = [node(whole, "n0", 0, 1), node(whole, "n1", 2, 3), node(whole, "n2", 0, 1, 2, 3)]
    found = Crews(3, broken_at, unlucky=1).load(*nodes)
    assert isinstance(found[1], Resumable) and "start the job again" in str(found[1])
    assert same(found[2], alike(whole))


def test_the_memory_of_the_node_has_all_for_those_who_come_later(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setenv(marker.MEMORY, str(memory))
    for name, *pieces in (("n0", 0, 1), ("n1", 2, 3), ("n2", 0, 1, 2, 3)):
        node(whole, str(name), *map(int, pieces))
    source = Source(f"{tmp_path}/here/part-*", None, pieces=4, test_fraction=0.2, seed=3)
    nodes: list[str] = []

    def files_here(name: str) -> list[str]:
        rank = int(threading.current_thread().name.removeprefix("worker-"))
        return files_of(name.replace("here", nodes[rank]))

    def found_on(*names: str, broken_at: int | None = None, source: Source = source) -> list[Any]:
        nodes[:] = names
        return Crews(len(names), broken_at).load(source)

    monkeypatch.setattr(mf_pieces, "files_of", files_here)
    found_on("n2", "n2")
    assert not list(memory.glob("entries"))  # all see all: nobody will need it
    for found in found_on("n0", "n1"):
        assert same(found, alike(whole))
    assert (memory / "entries").stat().st_mode & 0o077 == 0
    # A replacement, or a survivor of a death during the loading.
    for found in found_on("n0", "n1", broken_at=1):
        assert same(found, alike(whole))
    # A node is lost, and the job is started again on the other.
    for found in found_on("n0", "n0"):
        assert same(found, alike(whole))
    # A copy of other data is not taken, a damaged one is named.
    assert "there are 2" in said(found_on("n0", "n0", source=replace(source, pieces=5)))
    (memory / "entries").write_bytes((memory / "entries").read_bytes()[:-1] + b"x")
    assert "entries: damaged" in said(found_on("n0", "n0"))
