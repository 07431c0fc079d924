"""Where a job may run: what the batch system has granted, or what a host file says.

Owns the formats of Slurm, PBS and SGE and of host files, Petuum's among them. Pure but for the
reading of the files that they name. Must not know what is started there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diml.errors import Misuse

# One item of Slurm's node lists: plain text and ranges in brackets.
_ITEM = r"(?:[^,\[\]]|\[[^\[\]]*\])+"

System = Literal["none", "Slurm", "PBS", "SGE", "host file"]


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, and how many processes it is granted (None: not said)."""

    name: str
    slots: int | None = None

    def __str__(self) -> str:
        return self.name if self.slots is None else f"{self.name}:{self.slots}"


@dataclass(frozen=True, slots=True)
class Allocation:
    """What is granted.

    Attributes:
        system: who grants it; "none" on a machine without a batch system.
        job: the batch system's name of this job, empty if there is none.
        hosts: the machines, the one that starts the job first; empty for this one alone.
    """

    system: System
    job: str = ""
    hosts: tuple[Host, ...] = ()

    @property
    def slots(self) -> int | None:
        """Processes granted in all, None if it is not said."""
        known = [host.slots for host in self.hosts if host.slots is not None]
        return sum(known) if known and len(known) == len(self.hosts) else None


def allocation(env: Mapping[str, str], host_file: Path | None = None) -> Allocation:
    """What this process may use. A host file wins over the batch system.

    Raises Misuse, naming file and line or the variable, for what makes no sense.
    """
    if host_file is not None:
        return Allocation("host file", hosts=read_host_file(host_file))
    if "SLURM_JOB_ID" in env:
        return Allocation("Slurm", env["SLURM_JOB_ID"], _slurm(env))
    if "PBS_NODEFILE" in env:
        hosts = read_host_file(Path(env["PBS_NODEFILE"]))
        return Allocation("PBS", env.get("PBS_JOBID", ""), hosts)
    if "PE_HOSTFILE" in env:
        hosts = read_host_file(Path(env["PE_HOSTFILE"]))
        return Allocation("SGE", env.get("JOB_ID", ""), hosts)
    return Allocation("none")


def expand_nodes(text: str) -> list[str]:
    """The names of a Slurm node list: "n[1-3,07],m1" is n1 n2 n3 n07 m1.

    Raises ValueError for anything else.
    """
    if not re.fullmatch(rf"{_ITEM}(,{_ITEM})*", text):
        raise ValueError(f"{text!r} is no list of nodes")
    names: list[str] = []
    for item in re.finditer(_ITEM, text):
        combined = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", item[0]):
            ends = [plain] if plain else list(_numbers(ranges))
            combined = [start + end for start in combined for end in ends]
        names += combined
    return names


def _numbers(ranges: str) -> Iterator[str]:
    for item in ranges.split(","):
        first, dash, last = item.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"{item!r} is no range of node numbers")
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def expand_counts(text: str) -> list[int]:
    """The numbers of Slurm's form "4(x2),3": 4 4 3. Raises ValueError for anything else."""
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item, re.ASCII)
        if match is None:
            raise ValueError(f"{item!r} is no number of tasks")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _slurm(env: Mapping[str, str]) -> tuple[Host, ...]:
    name = "SLURM_JOB_NODELIST"
    try:
        names = expand_nodes(env.get(name, ""))
        name = (
            "SLURM_TASKS_PER_NODE" if "SLURM_TASKS_PER_NODE" in env else "SLURM_JOB_CPUS_PER_NODE"
        )
        counts = expand_counts(env[name]) if name in env else []
    except ValueError as error:
        raise Misuse(f"{name}: {error}") from None
    if counts and len(counts) != len(names):
        raise Misuse(f"{name}: {len(counts)} numbers for {len(names)} nodes")
    return tuple(Host(node, counts[i] if counts else None) for i, node in enumerate(names))


def read_host_file(path: Path) -> tuple[Host, ...]:
    """The hosts of a file, each once, in their order.

    A line is one of: `name` (as in PBS; repeated for each slot), `name slots=N max_slots=M` (Open
    MPI; the most is not asked for), `name N queue processors` (SGE), `id address port` (Petuum,
    whose first machine stands there twice since the name node is a process of its own: one host).
    `#` begins a comment. Raises Misuse naming the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"host file {path}: {getattr(error, 'strerror', 'not text')}") from None
    slots: dict[str, int | None] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, count = _host_line(words)
        except ValueError as error:
            raise Misuse(f"host file {path}, line {number}: {error}") from None
        if count is None:
            slots.setdefault(name, None)
        else:
            slots[name] = (slots.get(name) or 0) + count
    if not slots:
        raise Misuse(f"host file {path}: no hosts in it")
    return tuple(Host(name, count) for name, count in slots.items())


def _host_line(words: Sequence[str]) -> tuple[str, int | None]:
    """Name and slots of one line; slots None where it does not say."""
    if len(words) == 3 and words[0].isdecimal() and words[2].isdecimal():
        if int(words[2]) > 65535:
            raise ValueError(f"{words[2]} is no port")
        return _name(words[1]), None
    if len(words) == 1:
        return _name(words[0]), 1
    if match := re.fullmatch(r"(\S+) slots=(\d+)( max[_-]slots=\d+)?", " ".join(words), re.ASCII):
        return _name(match[1]), _slots(match[2])
    if len(words) in (2, 3, 4) and words[1].isdecimal():
        return _name(words[0]), _slots(words[1])
    raise ValueError(f"{' '.join(words)!r} is none of: name; name slots=N; name N; id address port")


def _slots(digits: str) -> int:
    """A number of slots, else ValueError."""
    if int(digits) == 0:
        raise ValueError("no slots: leave the host out")
    return int(digits)


def _name(word: str) -> str:
    """A host name or an IPv4 address, else ValueError."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", word):
        return word
    try:
        ipaddress.ip_address(word)
    except ValueError:
        raise ValueError(f"{word!r} is no host") from None
    # It takes the first colon for the one before the slots.
    raise ValueError(f"mpirun cannot be given an IPv6 address: give the name of {word}")
