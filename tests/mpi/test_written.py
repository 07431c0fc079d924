"""What a run writes: only where the user said, and into the node's memory; for the owner alone."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tests.helpers.mpi import CHECKOUT, start_mpi

# In every process: each path that Python opens for writing, makes or renames, a line each.
_LISTENER = """
    import os, sys
    log = os.open(os.environ["WRITTEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    def hear(event, args):
        paths = ()
        if event == "open" and isinstance(args[2], int) and args[2] & writing:
            paths = args[:1]
        elif event in ("os.mkdir", "os.truncate", "os.chmod"):
            paths = args[:1]
        elif event in ("os.link", "os.symlink"):
            paths = args[1:2]
        elif event == "os.rename":
            paths = args[:2]
        for path in paths:
            if isinstance(path, (str, bytes)):
                path = os.path.abspath(os.fsdecode(path))
                if path.startswith("/proc/"):  # what another process has open
                    path = os.readlink(path)
                os.write(log, path.encode() + b"\\n")
    sys.addaudithook(hear)
"""
RATINGS = "".join(f"{i} {j} {i % 3 + j % 3}\n" for i in range(30) for j in range(30))
MF = ["diml.jobs.mf", "--datafile", "in/x", "--K", "3", "--num_iterations", "4"]
KMEANS = ["diml.jobs.kmeans", "--generate", "500", "--k", "3"]


@pytest.mark.parametrize(
    ("job", "output"),
    [(MF, "--output_prefix"), (KMEANS, "--output"), (["diml.jobs.drill"], "")],
    ids=["mf", "kmeans", "drill"],
)
def test_only_what_was_named_is_written_for_the_owner_alone(
    tmp_path: Path, job: list[str], output: str
) -> None:
    for name in ("hook", "in", "out", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(textwrap.dedent(_LISTENER))
    (tmp_path / "in" / "x").write_text(RATINGS)
    (tmp_path / "in").chmod(0o500)
    log = tmp_path / "hook" / "written"
    env = {
        "PYTHONPATH": f"{tmp_path / 'hook'}:{CHECKOUT}",
        "WRITTEN": str(log),
        "HOME": str(tmp_path / "home"),
        "DIML_CHECKPOINT_EVERY": "0.000001",
    }
    named = ["--checkpoint-dir", "out/kept", "--events", "out/events"]
    named += [output, "out/result"] if output else []
    before = os.umask(0)
    try:
        command = ["-m", "diml.cli", "run", "-n", "2", "--", *job, *named]
        with start_mpi(None, command, env=env, cwd=tmp_path) as running:
            running.wait(timeout_s=120).expect(0)
    finally:
        os.umask(before)
    written = {Path(line) for line in log.read_text().splitlines()}
    assert tmp_path / "out" / "events" in written
    # Compiled code is the installation's own.
    written = {path for path in written if "__pycache__" not in path.parts}
    elsewhere = {path for path in written if not path.is_relative_to(tmp_path / "out")}
    memory = ("/dev/shm/diml-", "/memfd:diml-")
    in_memory = {path for path in elsewhere if str(path).startswith(memory)}
    assert elsewhere - in_memory <= {Path("/dev/null")}
    assert in_memory and not [path for path in in_memory if path.exists()]
    assert not list((tmp_path / "home").iterdir())
    kept = [tmp_path / "out" / "kept", *(tmp_path / "out" / "kept").rglob("*")]
    assert len(kept) > 1
    for path in kept:
        assert path.stat().st_mode & 0o077 == 0, path
