"""Bring a world up: everyone finds out who is there, who shares its host, and where to write.

Owns the collective steps of the start, each of which fails on all processes alike. Must not know
what the job will do.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mpi4py import MPI

from diml.config import Settings
from diml.errors import Misuse
from diml.events import EventLog
from diml.exports import sinks_of
from diml.world import marker, node_memory
from diml.world.claim import Claim
from diml.world.host import first_host, later_host
from diml.world.launch import end_siblings, refuse_singleton, say_once
from diml.world.link import Link
from diml.world.membership import Membership
from diml.world.mpi import abort, at_failure, at_return, lent, world_comm
from diml.world.orphan import arm_alarm
from diml.world.repair import Rebuild, first_footing
from diml.world.spawn import Spawner, await_seat
from diml.world.world import World


def start(settings: Settings, servers_default: int, comm: MPI.Intracomm | None = None) -> World:
    """Take a seat among the processes of `comm` (COMM_WORLD by default). Collective.

    Raises:
        Misuse: the processes are too few for the servers and spares, a launcher started each
            one on its own, or the event log cannot be written.
        PeerFailed: a process was lost before all had taken their places.
    """
    if (comm is not None or lent()) and settings.on_failure == "respawn":
        # A spawned process would not find its way into a communicator of another's.
        settings = replace(settings, on_failure="spare")
    marker.say("begun")
    comm = comm if comm is not None else world_comm()
    refusal = refuse_singleton(os.environ, MPI.COMM_WORLD.Get_size(), _command())
    if refusal is not None:
        raise Misuse(refusal)
    servers = settings.servers
    if servers is None:
        # A single process is its own server.
        servers = servers_default if comm.Get_size() > 1 else 0
    spares = settings.spares if isinstance(settings.spares, int) else 0
    try:
        membership = Membership.start(comm.Get_size(), servers, spares)
        if servers and settings.on_failure == "shrink":
            raise ValueError("--on-failure shrink: a job with servers cannot go on with fewer")
        # With --spares auto one more is started later.
        numbers = comm.Get_size() + (settings.spares == "auto")
        for drill in settings.drills:
            if drill.rank >= numbers:
                raise ValueError(f"drill {drill}: the ranks are 0 to {numbers - 1}")
    except ValueError as error:
        raise Misuse(str(error)) from None
    _hold_node_memory()
    with _limit(settings.deadline_s):
        footing = first_footing(comm, membership)
    full = footing.full
    for link in (full, footing.workers):
        if link is not None:
            at_failure(link.revoke)
    run = str(full.broadcast_object(uuid.uuid4().hex[:12], 0))
    events = _event_log(settings, full, run)
    claim = _claim_directory(settings, full, run)
    world = World(settings, footing, events, first_host(full, run))
    at_return(world.watchdog.stop, events.close)
    if claim is not None:
        world.at_end.append(claim.release)
        at_return(claim.release)
    return world


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """End the job if not all processes have come to the start by then: no watchdog runs yet."""

    def give_up() -> None:
        words = f"waited {seconds:g} s for all processes to come to diml.init; giving up"
        say_once(f"diml: {words}", os.environ)
        if not lent():
            # Not by MPI_Abort, which leaves those alone who have not called MPI.
            end_siblings()
            os._exit(1)
        abort(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start_spawned(settings: Settings) -> World:
    """The world of a process that a leader has spawned, once a repair needs it.

    The process ends here if it never is. What remains of the repair is `World.join`'s, under the
    limits of the world's watchdog; until then an alarm stands for it.
    """
    _hold_node_memory()
    full, welcome = await_seat()
    arm_alarm(math.ceil(settings.repair_deadline_s))
    uid = welcome.uids[-1]
    run, processes = welcome.about
    rebuild = Rebuild(lambda step: None, settings.on_failure, Spawner(), lambda: None)
    footing = rebuild.join(full, welcome)
    sinks = sinks_of(settings.tensorboard, settings.prometheus)
    events = EventLog(settings.events, run=run, uid=uid, sinks=sinks)
    world = World(settings, footing, events, later_host(uid, run, processes))
    if settings.checkpoint_dir is not None:
        with contextlib.suppress(Misuse):  # this job has begun
            world.at_end.append(Claim(settings.checkpoint_dir, _job_name(run)).release)
    return world


def _hold_node_memory() -> None:
    """Under `diml run`: keep others from clearing this job's folder in the node's memory away."""
    if folder := os.environ.get(marker.MEMORY):
        # If there can be none, the checkpoints that were to go there say so.
        with contextlib.suppress(OSError):
            node_memory.sweep(Path(folder).parent)
            node_memory.hold(Path(folder))


def _job_name(run: str) -> str:
    """The same for all attempts of `diml run`: processes of a lost one may be about to leave."""
    return os.environ.get(marker.MEMORY) or run


def _claim_directory(settings: Settings, full: Link, run: str) -> Claim | None:
    """Hold the checkpoint directory for this job, if it has one. Raises Misuse, on all alike, where
    another job holds it."""
    claim, problem, directory = None, "", settings.checkpoint_dir
    # One process first: where all see one directory, the others then find it theirs.
    for turn in (True, False) if directory is not None else ():
        try:
            if (full.rank == 0) is turn and directory is not None:
                claim = Claim(directory, _job_name(run))
        except Misuse as error:
            problem = str(error)
        if problems := [text for text in full.allgather_objects(problem) if text]:
            raise Misuse(problems[0])
    return claim


def _command() -> list[str]:
    """The command line that started this program, for a message that says how to start it."""
    words = Path("/proc/self/cmdline").read_bytes().decode(errors="replace").split("\0")
    return ["python", *words[1:-1]] if len(words) > 2 else []


def _event_log(settings: Settings, full: Link, run: str) -> EventLog:
    """This process's pen for the event log. Raises Misuse on all if one cannot write it."""
    log, problem = None, None
    try:
        sinks = sinks_of(settings.tensorboard, settings.prometheus)
        log = EventLog(settings.events, run=run, uid=full.rank, sinks=sinks)
    except Misuse as error:
        problem = str(error)
    problems = [text for text in full.allgather_objects(problem) if text]
    if problems or log is None:
        raise Misuse(problems[0])
    return log
