"""Who of the hosts answers, and when silence says nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from diml.world.hosts import Allocation, Host, System
from diml.world.lookout import Lookout, Roll, host_here

HERE = Host(os.uname().nodename, 2)
OTHERS = (Host("n2", 2), Host("n3", 2))
# They answer whose names are in the file: what stands for ssh has the host before the command, what
# stands for srun has names behind -w, and fails if one of them does not answer.
SSH = 'for word in "$@"; do [ "$word" = true ] && exec grep -qx "$host" UP; host=$word; done'
SRUN = """echo "$@" >> UP.asked
while [ "$1" != -w ]; do shift; done; IFS=,; for n in $2; do grep -qx "$n" UP || exit 1; done"""


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the hosts that answer."""
    path = tmp_path / "up"
    for name, script in (("ssh", SSH), ("srun", SRUN)):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script.replace('UP', str(path))}\n")
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def answer(up: Path, *hosts: Host) -> None:
    up.write_text("".join(f"{host.name}\n" for host in hosts))


def roll(system: System) -> Roll:
    return Roll(Allocation(system, "1", (HERE, *OTHERS)))


@pytest.mark.parametrize("system", ["PBS", "Slurm"])
def test_who_does_not_answer_any_more_is_left_out(up: Path, system: System) -> None:
    hosts = roll(system)
    answer(up, HERE, *OTHERS)
    assert hosts.strike_out() == []
    answer(up, HERE, OTHERS[1])
    assert hosts.strike_out() == ["n2"] and hosts.place.hosts == (HERE, OTHERS[1])
    answer(up, HERE)
    assert hosts.strike_out() == ["n3"] and hosts.place.hosts == (HERE,)
    assert hosts.strike_out() == []


def test_where_nobody_can_be_asked_nobody_is_left_out(up: Path) -> None:
    answer(up)
    for system in ("SGE", "Slurm"):  # no ssh to the nodes; Slurm's controller is away
        hosts = roll(system)  # type: ignore[arg-type]
        assert hosts.ask() is None and hosts.strike_out() == []
        assert hosts.place.hosts == (HERE, *OTHERS)
    hosts = roll("Slurm")
    answer(up, HERE)  # Slurm answers
    assert hosts.strike_out() == ["n2", "n3"]


def test_all_nodes_of_slurm_are_one_step_while_they_answer(up: Path) -> None:
    answer(up, HERE, *OTHERS)
    assert roll("Slurm").ask() == frozenset(OTHERS)
    (asked,) = up.with_name("up.asked").read_text().splitlines()
    assert "-N2 -n2" in asked and "-w n2,n3" in asked


def test_silent_are_those_that_answered_before_and_twice_did_not(up: Path) -> None:
    answer(up, OTHERS[0])
    hosts = roll("PBS")
    lookout = Lookout(hosts, again_s=0.05)
    hosts.ask()
    answer(up, HERE)
    lookout.start()
    until = time.monotonic() + 120
    while not lookout.silent and time.monotonic() < until:
        time.sleep(0.01)
    lookout.end()
    assert lookout.silent == ("n2",)  # n3 never did
    lookout.join()


def test_this_host_is_found_by_its_name_or_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_here([OTHERS[0], HERE]) == HERE
    assert host_here([Host("no-such-host.invalid"), Host("127.0.0.1")]) == Host("127.0.0.1")
    assert host_here([Host("no-such-host.invalid")]) is None
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    assert host_here([OTHERS[0]]) == OTHERS[0]
