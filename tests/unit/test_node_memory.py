"""Folders in the node's memory: whose they are, and which of them a later run clears away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from diml.world.node_memory import drop_segments, hold, new_folder, sweep

_HOLDS = """
import sys, time
from pathlib import Path
from diml.world.node_memory import drop_segments, hold
hold(Path(sys.argv[1]), supervisor=sys.argv[2] == "supervisor")
print("held", flush=True)
time.sleep(600)
"""


def holder(folder: Path, who: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(folder), who], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_what_a_killed_run_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    supervisor, rank = holder(folder, "supervisor"), holder(folder, "rank")
    try:
        (folder / "0001-v00000001-ab").mkdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert sweep(tmp_path) == []
        end(supervisor)
        # mpirun and its ranks may live on without it.
        assert sweep(tmp_path) == [] and folder.exists()
    finally:
        end(supervisor)
        end(rank)
    assert sweep(tmp_path) == [folder] and not folder.exists()


def test_on_other_hosts_it_must_have_been_left_alone_for_long(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    os.close(hold(folder))
    assert sweep(tmp_path) == []
    long_ago = time.time() - 2 * 3600
    os.utime(folder, (long_ago, long_ago))
    assert sweep(tmp_path) == [folder]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    theirs = tmp_path / f"diml-{os.geteuid() + 1}-abc"
    theirs.mkdir()
    link = new_folder(tmp_path)
    link.symlink_to(theirs)
    other = tmp_path / "sm_segment.host"
    other.mkdir()
    assert sweep(tmp_path) == []
    assert theirs.exists() and link.is_symlink() and other.exists()


def test_what_mpi_has_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = ("sm_segment.h.0.1.0", "sm_segment.h.0.1.1", "sm_segment.h.0.2.0", "else")
    for name in names:
        (tmp_path / name).touch()
    shown = [
        f"7f00-7f01 rw-s 00000000 00:19 12 {' ' * 9}{tmp_path}/{n}" for n in names if "2" not in n
    ]
    (tmp_path / "maps").write_text("\n".join([*shown, shown[0], "7f02-7f03 rw-p 0 00:00 0", ""]))
    drop_segments(tmp_path, tmp_path / "maps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["else", "maps", names[2]]
