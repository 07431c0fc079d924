"""What is read is never written over, and what cannot be written is said before the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diml.cli import main
from diml.data.outputs import check_apart, check_writable
from diml.errors import Misuse
from diml.jobs import ccd, kmeans, lasso, logistic


def test_inputs_and_outputs_stay_apart(tmp_path: Path) -> None:
    data, link = tmp_path / "part-0", tmp_path / "link"
    data.write_text("0 0 1\n")
    link.symlink_to(data)
    for read in (data, tmp_path, f"{tmp_path}/part-*"):
        with pytest.raises(Misuse, match="it is read"):
            check_apart((link,), (None, read))
    with pytest.raises(Misuse, match="two outputs"):
        check_apart((tmp_path / "new", None, f"{tmp_path}/./new"), (data,))
    check_apart((tmp_path / "new", None), (data,))


def test_the_name_of_an_open_file_is_not_put_away(tmp_path: Path) -> None:
    with (tmp_path / "opened").open("w") as file:
        link = tmp_path / "link"
        link.symlink_to(f"/proc/self/fd/{file.fileno()}")
        for name in (link, Path("/dev/stdout")):
            with pytest.raises(Misuse, match="no ordinary file"):
                check_apart((name,), ())
            with pytest.raises(Misuse, match="cannot be written"):
                check_writable(name)


def test_a_pipe_or_a_device_is_not_put_away(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(Misuse, match="no ordinary file"):
        check_apart((pipe,), ())
    with pytest.raises(Misuse, match="cannot be written"):
        check_writable(pipe)
    assert main(f"convert {tmp_path}/data {pipe}".split()) == 2
    assert pipe.is_fifo()


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none" / "x", "no directory"), (tmp_path, "cannot be written")):
        with pytest.raises(Misuse, match=words):
            check_writable(path)
    check_writable(tmp_path / "x")


@pytest.mark.parametrize(
    "command",
    [
        "convert {data} {data}",
        "predict {data} {data} -o {data}",
        "recommend m --datafile {data} -o {data}",
        "report {data} -o {data}",
    ],
)
def test_no_command_takes_the_place_of_its_input(command: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    text = '{"time": 1, "run": "r", "uid": 0, "role": "worker", "rank": 0, "incarnation": 0, ' + (
        '"epoch": 0, "host": "h", "pid": 1, "what": "leave"}\n'
    )
    data.write_text(text if command.startswith("report") else "0 0 1\n1 1 2\n")
    before = data.read_bytes()
    assert main(command.format(data=data).split()) == 2
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        (lasso, "--data_xfile {data} --output {data}"),
        (lasso, "--data_xfile {data} --path 3 --output {out} --path_output {out}"),
        (logistic, "--datafile {data}.w --output_prefix {data}"),
        (kmeans, "--datafile {data}.C --output {data}"),
        (kmeans, "--datafile {data} --output {out}/no/where"),
        (ccd, "--datafile {data}.L --output_prefix {data}"),
        (ccd, "--datafile {data} --prometheus {data}"),
        (kmeans, "--datafile {data} --prometheus {data}"),
        (logistic, "--datafile {data} --prometheus {data}"),
        (logistic, "--datafile {data} --output_prefix {out} --events {out}.loss"),
    ],
)
def test_no_job_begins_that_would(job: object, flags: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for end in ("", ".w", ".C", ".L"):
        Path(f"{data}{end}").write_text("1 1:1\n0 1:2\n")
    with pytest.raises(Misuse, match=r"it is read|two outputs|no directory"):
        job.main(flags.format(data=data, out=tmp_path / "out").split())  # type: ignore[attr-defined]


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", L=np.ones((3000, 2)), R=np.ones((50, 2)))
    words = ["recommend", f"{tmp_path}/m.npz"]
    script = f"import sys; from diml.cli import main; sys.exit(main({words!r}))"
    reader = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=reader.stdin, stderr=subprocess.PIPE, timeout=60
    )
    assert reader.stdin is not None
    reader.stdin.close()
    reader.wait(timeout=60)
    assert b"Traceback" not in done.stderr, done.stderr
