"""New processes for empty seats: spawned by the leader alone, joined to the world by a bridge.

Owns both ends: the leader's background thread that keeps one process ready, and what that process
does until it is a member. Must not know seats.

A collective spawn over all survivors hangs if another rank dies meanwhile, since nothing in it
can be interrupted. So the leader (rank 0 of the full link) spawns one process from COMM_SELF, in a
thread that can be given up, and merges with it into a pair. Only when a repair needs the process
do all build an intercommunicator from their link to that pair, and merge.

Invariants: the newcomer leaves at once on any MPI error before it is a member, and an alarm ends
it where no Python code can run; what it is told (`Welcome`) comes from the leader alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from mpi4py import MPI

from diml.world.link import Link
from diml.world.orphan import BEGAN_IN, arm_alarm, spawn_arguments, spawned_here

_JOIN_TAG, _CONFIRM_TAG, _DISMISS_TAG = 1, 2, 3
_BRIDGE_TAG = 77
_CLOSE_DEADLINE_S = 20
_BRIDGE_DEADLINE_S = 20
_NAP_S = 0.002
_LOOK_EVERY_S = 0.02
# By then a process that starts on this host has been seen.
_UNSEEN_MOST_S = 10.0


@dataclass(frozen=True)
class Child:
    """The leader's end of a pair: itself is rank 0 and the spawned process rank 1."""

    pair: MPI.Intracomm

    def dismiss(self) -> None:
        """Let it go: it is not needed any more."""
        with contextlib.suppress(MPI.Exception):
            self.pair.isend(None, 1, _DISMISS_TAG).Test()


class _Attempt:
    """One try to start a process: a thread, and whether that process is alive."""

    def __init__(self, spawn: Callable[[], None]) -> None:
        self._before, self._seen = spawned_here(), False
        self._begun_s = self._looked_s = time.monotonic()
        self.thread = threading.Thread(target=spawn, daemon=True)
        self.thread.start()

    def lost(self) -> bool:
        """Whether the process has died on this host, which the thread does not hear of in MPI; on
        another host, whether it takes long, so that another try is worth it."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return False
        self._looked_s = now_s
        alive = not spawned_here() <= self._before
        self._seen = self._seen or alive
        return not alive and (self._seen or now_s - self._begun_s > _UNSEEN_MOST_S)


class Spawner:
    """Keeps one process ready, on the leader. Other ranks have one too, which does nothing yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._attempt: _Attempt | None = None

    def prepare(self) -> None:
        """Begin to start a process in the background, unless one is ready or on its way."""
        with self._lock:
            if self._child is None and self._attempt is None:
                self._attempt = _Attempt(self._spawn)

    def take(self, deadline_s: float) -> Child | None:
        """The process that is ready, or is so within the deadline; it is the caller's then."""
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            self.prepare()
            with self._lock:
                child, self._child = self._child, None
                if child is not None:
                    return child
                if self._attempt is not None and self._attempt.lost():
                    # The thread is stuck in MPI, which nothing can interrupt: it is left to itself.
                    self._attempt = None
            time.sleep(_NAP_S)
        with self._lock:
            self._attempt = None
        return None

    def give_back(self, child: Child) -> None:
        """It was taken and could not be used yet."""
        with self._lock:
            self._child = child

    def close(self) -> None:
        """Dismiss the process that was not needed."""
        attempt, until = self._attempt, time.monotonic() + _CLOSE_DEADLINE_S
        while attempt is not None and attempt.thread.is_alive() and time.monotonic() < until:
            attempt.thread.join(_LOOK_EVERY_S)
            if attempt.lost():
                break
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.dismiss()

    def _spawn(self) -> None:
        child = None
        try:
            alone = MPI.COMM_SELF.Dup()
            alone.Set_errhandler(MPI.ERRORS_RETURN)
            command = spawn_arguments()
            info = MPI.Info.Create()
            info.Set("wdir", BEGAN_IN)
            between = alone.Spawn(sys.executable, command, 1, info)
            between.Set_errhandler(MPI.ERRORS_RETURN)
            pair = between.Merge(False)
            pair.Set_errhandler(MPI.ERRORS_RETURN)
            child = Child(pair)
        except MPI.Exception:
            # Whoever needs the process sees that there is none, and tries again or gives up.
            child = None
        with self._lock:
            if self._attempt is not None and self._attempt.thread is threading.current_thread():
                self._attempt = None
            if self._child is None:
                self._child = child
            elif child is not None:
                child.dismiss()


def bridge(base: Link, child: Child | None, welcome: Any) -> Link | None:
    """Join the leader's child to everyone's link, as its last rank. Collective over `base`.

    Args:
        base: everyone living; rank 0 is the leader.
        child: the process to join, on the leader; None on the others.
        welcome: what the newcomer is told, on the leader.

    Returns:
        The larger link, or None on everyone if someone failed: the child is lost then.
    """
    merged = between = None
    try:
        if child is not None:
            child.pair.send(welcome, 1, _JOIN_TAG)
        peer = child.pair if child is not None else MPI.COMM_SELF
        between = base.comm.Create_intercomm(0, peer, 1, _BRIDGE_TAG)
        between.Set_errhandler(MPI.ERRORS_RETURN)
        merged = Link(between.Merge(False))
    except MPI.Exception:
        merged = None
        # Those who wait for this rank, not for the dead one, hear of it in no other way.
        base.revoke()
        if between is not None:
            with contextlib.suppress(MPI.Exception):
                between.Revoke()
    if not base.agree(merged is not None):
        if merged is not None:
            merged.revoke()
        if child is not None:
            child.dismiss()
        return None
    if child is not None:
        with contextlib.suppress(MPI.Exception):
            child.pair.send(None, 1, _CONFIRM_TAG)
    return merged


def await_seat() -> tuple[Link, Any]:
    """The spawned process's side: wait to be needed, then join. Returns the link and the welcome.

    The process ends here, with status 0, when it is dismissed or its leader dies. On return the
    alarm for this step is still set: the caller sets the next one.
    """
    try:
        parent = MPI.Comm.Get_parent()
        parent.Set_errhandler(MPI.ERRORS_RETURN)
        pair = parent.Merge(True)
        pair.Set_errhandler(MPI.ERRORS_RETURN)
        arm_alarm(0)
        welcome = _await(pair, _JOIN_TAG)
        arm_alarm(_BRIDGE_DEADLINE_S)
        between = MPI.COMM_SELF.Create_intercomm(0, pair, 0, _BRIDGE_TAG)
        between.Set_errhandler(MPI.ERRORS_RETURN)
        full = Link(between.Merge(True))
        _await(pair, _CONFIRM_TAG)
    except MPI.Exception:
        _vanish()
    return full, welcome


def _await(pair: MPI.Intracomm, tag: int) -> Any:
    """The leader's next word, which must be `tag`; on a dismissal the process ends."""
    status = MPI.Status()
    while not pair.iprobe(0, MPI.ANY_TAG, status):
        time.sleep(_NAP_S)
    word = pair.recv(source=0, tag=status.Get_tag())
    if status.Get_tag() != tag:
        _vanish()
    return word


def _vanish() -> NoReturn:
    """Leave without a trace: this process was never a member."""
    os._exit(0)
