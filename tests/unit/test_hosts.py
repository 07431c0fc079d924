"""What batch systems grant and what host files say, and the lines that refuse nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest

from diml.errors import Misuse
from diml.world.hosts import Allocation, Host, allocation, expand_counts, expand_nodes


def read(path: Path, text: str) -> Allocation:
    path.write_text(text)
    return allocation({}, path)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n1,m2", ["n1", "m2"]),
        ("n[1-3,07],m1", ["n1", "n2", "n3", "n07", "m1"]),
        ("rack[1-2]-n[08-10]", [f"rack{r}-n{n}" for r in "12" for n in ("08", "09", "10")]),
    ],
)
def test_slurms_node_lists(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n[3-1]", "n[a-b]", "n[]", "]n["])
def test_what_is_no_node_list(text: str) -> None:
    with pytest.raises(ValueError):
        expand_nodes(text)


def test_slurms_task_counts() -> None:
    assert expand_counts("4(x2),3") == [4, 4, 3]
    for text in ("", "4(x", "four", "4x2"):
        with pytest.raises(ValueError):
            expand_counts(text)


def test_slurm() -> None:
    env = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "4,2"}
    got = allocation(env)
    assert got == Allocation("Slurm", "17", (Host("n1", 4), Host("n2", 2))) and got.slots == 6
    with pytest.raises(Misuse, match="SLURM_TASKS_PER_NODE: 1 numbers for 2 nodes"):
        allocation({**env, "SLURM_TASKS_PER_NODE": "4"})
    with pytest.raises(Misuse, match="SLURM_JOB_NODELIST"):
        allocation({**env, "SLURM_JOB_NODELIST": "n[1-"})


def test_pbs_names_a_host_once_a_slot(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a.b\na.b\nc.d\n")
    got = allocation({"PBS_NODEFILE": str(tmp_path / "nodes"), "PBS_JOBID": "9.pbs"})
    assert got == Allocation("PBS", "9.pbs", (Host("a.b", 2), Host("c.d", 1)))


def test_sge(tmp_path: Path) -> None:
    (tmp_path / "pe").write_text("n1 4 all.q@n1 UNDEFINED\nn2 2 all.q@n2 <NULL>\n")
    got = allocation({"PE_HOSTFILE": str(tmp_path / "pe"), "JOB_ID": "3"})
    assert got == Allocation("SGE", "3", (Host("n1", 4), Host("n2", 2)))


def test_petuums_host_file_has_machine_0_twice_and_it_is_one_host(tmp_path: Path) -> None:
    text = "0 10.0.0.1 9999\n1 10.0.0.1 9998\n1000 10.0.0.2 9999\n"
    assert read(tmp_path / "f", text).hosts == (Host("10.0.0.1"), Host("10.0.0.2"))
    assert read(tmp_path / "f", text).slots is None


def test_open_mpis_host_file(tmp_path: Path) -> None:
    got = read(tmp_path / "f", "\ufeff# two\r\nn1 slots=3  # fast\n\nn2 slots=1 max_slots=4\r\n")
    assert got.hosts == (Host("n1", 3), Host("n2", 1)) and got.system == "host file"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no hosts in it"),
        ("n1\n-x slots=3\n", "line 2: '-x' is no host"),
        ("0 10.0.0.1 99999\n", "line 1: 99999 is no port"),
        ("n1 slots=many\n", "line 1"),
        ("n1 slots=0\n", "line 1: no slots"),
        ("n1\n::1 slots=2\n", "line 2: mpirun cannot be given an IPv6 address"),
        ("n1; rm slots=1\n", "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(Misuse, match=words):
        read(tmp_path / "f", text)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="absent: No such file"):
        allocation({}, tmp_path / "absent")


def test_no_batch_system() -> None:
    assert allocation({"HOME": "/"}) == Allocation("none")
