"""The machine that a process is on: which others share it, and the board they share.

Owns the making and the finding of the board. Must not know roles. The board has no name, so nothing
is left behind: a process reaches it through the descriptor of one that has it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from diml.world.calls import Board
from diml.world.launch import host_identity
from diml.world.link import Link

# Room on a host's board for processes that are spawned later.
_SPARE_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Process:
    """What all know of one process.

    Attributes:
        uid: its number for the whole run.
        pid: its number on its host.
        host: same for processes that see each other's pids.
        host_name: what its host is called.
        slot: its record on the host's board; negative if it is not on it.
        board_descriptor: its open file of the board, for later ones to find it by.
    """

    uid: int
    pid: int
    host: str
    host_name: str
    slot: int = -1
    board_descriptor: int = -1


def this_process(uid: int) -> Process:
    """This process, not yet on a board."""
    return Process(uid, os.getpid(), host_identity(), os.uname().nodename)


@dataclass
class Host:
    """The run as seen from this process's machine.

    Attributes:
        run: the run's name.
        me: this process.
        board: the host's board.
        processes: all processes that ever joined the run, by uid.
    """

    run: str
    me: Process
    board: Board
    processes: dict[int, Process]

    def neighbours(self) -> list[Process]:
        """The other processes on this host's board."""
        return [p for p in self.processes.values() if self._shares(p) and p.uid != self.me.uid]

    @property
    def crowded(self) -> bool:
        """Whether this host has more processes of the run than cores for them: then one that
        waits has to make room."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return len(self.neighbours()) >= cores

    def _shares(self, process: Process) -> bool:
        return process.host == self.me.host and process.slot >= 0


def first_host(full: Link, run: str) -> Host:
    """Make and open the boards of all hosts. Collective over `full`."""
    me = this_process(full.rank)
    here = [p for p in full.allgather_objects(me) if p.host == me.host]
    slot = [p.uid for p in here].index(me.uid)
    board = Board.create(len(here) + _SPARE_SLOTS) if slot == 0 else None
    told = full.allgather_objects(None if board is None else board.descriptor)
    if board is None:
        board = _opened(here[0].pid, told[here[0].uid])
    if board is None:
        # Nobody sees what it does, and nobody takes it for late.
        board = Board.create()
    else:
        me = replace(me, slot=slot, board_descriptor=board.descriptor)
    # The first one has its board open until here, whatever it does next.
    processes: list[Process] = full.allgather_objects(me)
    return Host(run, me, board, {p.uid: p for p in processes})


def later_host(uid: int, run: str, processes: dict[int, Process]) -> Host:
    """The same for a spawned process; on a host without others it has a board of its own."""
    me = this_process(uid)
    here = [p for p in processes.values() if p.host == me.host and p.slot >= 0]
    slot = max((p.slot for p in here), default=-1) + 1
    board = _found_board(here)
    if board is None or slot >= board.slots:
        return Host(run, me, Board.create(), {**processes, uid: me})
    me = replace(me, slot=slot, board_descriptor=board.descriptor)
    return Host(run, me, board, {**processes, uid: me})


def _found_board(here: list[Process]) -> Board | None:
    boards = (_opened(process.pid, process.board_descriptor) for process in here)
    return next((board for board in boards if board is not None), None)


def _opened(pid: int, descriptor: int) -> Board | None:
    try:
        return Board.open(pid, descriptor)
    except OSError:
        return None
