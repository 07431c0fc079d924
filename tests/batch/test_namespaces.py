"""Two hosts with addresses of their own (network namespaces): a rank lost, the cable cut."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mpi import CHECKOUT, Running, start_mpi
from tests.mpi.test_durable import PROGRAM, answer

STEPS = 30
# Stands for ssh: options, HOST, COMMAND. A host whose cable is cut does not answer.
_SSH = """\
#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1; shift
n=${host##*.}
[ $n = 1 ] || ip -n NAME2 link show cable2 | grep -q 'state UP' || { sleep 2; exit 255; }
exec ip netns exec NAME$n unshare -u sh -c "hostname h$n; $*"
"""


def _ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


def _missing() -> str:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    name = f"dimltry{os.getpid()}"
    made = _ip("netns", "add", name)
    return "" if made and _ip("netns", "del", name) else "no right to make network namespaces"


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[str]:
    """The common part of the names of two hosts, 10.77.0.1 and 10.77.0.2, joined by a cable."""
    name = f"diml{os.getpid()}h"
    for n in "12":
        assert _ip("netns", "add", name + n)
    try:
        assert _ip(*f"link add cable1 netns {name}1 type veth peer cable2 netns {name}2".split())
        for n in "12":
            assert _ip("-n", name + n, "addr", "add", f"10.77.0.{n}/24", "dev", f"cable{n}")
            for device in (f"cable{n}", "lo"):
                assert _ip("-n", name + n, "link", "set", device, "up")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "ssh").write_text(_SSH.replace("NAME", name))
        (tmp_path / "bin" / "ssh").chmod(0o700)
        (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
        # Petuum's form: machine 0 twice.
        (tmp_path / "hosts").write_text("0 10.77.0.1 9\n1 10.77.0.1 8\n1000 10.77.0.2 9\n")
        yield name
    finally:
        for n in "12":
            _ip("netns", "del", name + n)


def start(tmp_path: Path, name: str, pause_s: float) -> Running:
    command = (
        f"python -m diml.cli run -n 2 --spares 2 --hosts hosts -- program.py {STEPS} {pause_s}"
    )
    inner = f"hostname h1; exec {command} local"
    script = (
        "import os, sys; os.execvp('ip', ['ip', 'netns', 'exec', sys.argv[1], 'unshare', '-u', "
        "'sh', '-c', sys.argv[2]])"
    )
    path = f"{tmp_path}/bin:{CHECKOUT}/.venv/bin:{os.environ['PATH']}"
    return start_mpi(None, script, args=(name + "1", inner), env={"PATH": path}, cwd=tmp_path)


def test_a_rank_killed_on_the_other_host_is_replaced(tmp_path: Path, hosts: str) -> None:
    with start(tmp_path, hosts, 0.2) as running:
        running.wait_for("^at 4$", timeout_s=90)
        running.kill(running.ranks()[1].pid)
        done = running.wait(timeout_s=120).expect(0)
    assert "started again" not in done.stderr
    assert len(re.findall("^answer", done.stdout, re.M)) == 1


def test_a_cut_cable_ends_in_a_start_on_the_host_that_is_left(tmp_path: Path, hosts: str) -> None:
    with start(tmp_path, hosts, 0.2) as running:
        running.wait_for("^at 6$", timeout_s=90)
        away = [p.pid for p in running.ranks().values() if p.rank in (1, 3)]
        assert _ip("-n", hosts + "2", "link", "set", "cable2", "down")
        running.wait_for("started again", timeout_s=120, stream="stderr")
        # Nobody can reach these any more; here they would stay.
        for pid in away + [p.pid for p in running.leftovers() if "prted" in p.command]:
            running.kill(pid)
        done = running.wait(timeout_s=120).expect(0)
    assert "10.77.0.2 cut off" in done.stderr and "going on without 10.77.0.2" in done.stderr
    assert answer(done)
