"""The programs that bench/ps.py starts under mpirun; each prints one JSON line from one rank.

`python bench/ps_parts.py PART [ARGS]`. Measures only; what is good enough is bench/ps.py's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import diml
from diml.world import mpi_params

TABLE_ROWS, WIDTH, PIECE_BYTES = 100_000, 32, 1 << 18
SPARE_STARTS_S = 2.5


def _least_us(call: Callable[[], Any], rows: int) -> float:
    """The least over short rounds of the mean time of a call, in microseconds: on a machine that
    others use too, the round that was disturbed least, for the limit as for what is held against
    it. A round is shorter than a time slice of the system, or all would be disturbed."""
    repeats, rounds = (20, 250) if rows < 1000 else (4, 150)
    means = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        means.append((time.perf_counter() - begun) / repeats * 1e6)
    return min(means)


def _ids(rows: int) -> Any:
    return np.sort(np.random.default_rng(0).choice(TABLE_ROWS, rows, replace=False))


def raw(rows: int, as_diml: int) -> None:
    """The limit: ping-pong of the same bytes on two ranks, and the bare kernels on one. Also both
    in one: what a program of four messages takes that gathers what it sends and adds what it gets;
    its bytes have just been written, so they must cross from one core's cache to the other's.
    `as_diml`: MPI has the settings that DiML gives it (1), or Open MPI's own (0)."""
    with mpi_params.eager(os.environ) if as_diml else contextlib.nullcontext():
        from mpi4py import MPI

    from diml.kernels.rows import scatter_add

    comm = MPI.COMM_WORLD
    # Written on both ranks, as every message of a program is: the pages of an array of zeros that
    # nobody has written are all the same one, which the sender's end reads from the nearest cache.
    ask, give = np.ones(64 + 8 * rows, np.uint8), np.ones(64 + 4 * WIDTH * rows, np.uint8)
    push, ack = np.ones(64 + (8 + 4 * WIDTH) * rows, np.uint8), np.ones(64, np.uint8)

    def exchange() -> None:
        if comm.rank == 0:
            comm.Send(ask, 1)
            comm.Recv(give, 1)
            comm.Send(push, 1)
            comm.Recv(ack, 1)
        else:
            comm.Recv(ask, 0)
            comm.Send(give, 0)
            comm.Recv(push, 0)
            comm.Send(ack, 0)

    ids, values = _ids(rows), np.zeros((TABLE_ROWS, WIDTH), np.float32)
    deltas, out = np.ones((rows, WIDTH), np.float32), np.empty((rows, WIDTH), np.float32)
    given = give[64:].view(np.float32).reshape(rows, WIDTH)
    pushed = push[64 + 8 * rows :].view(np.float32).reshape(rows, WIDTH)
    scatter_add(values, 0, ids, deltas)

    def by_hand() -> None:
        if comm.rank == 0:
            comm.Send(ask, 1)
            comm.Recv(give, 1)
            np.copyto(pushed, deltas)
            comm.Send(push, 1)
            comm.Recv(ack, 1)
        else:
            comm.Recv(ask, 0)
            np.take(values, ids, axis=0, out=given, mode="clip")
            comm.Send(give, 0)
            comm.Recv(push, 0)
            scatter_add(values, 0, ids, pushed)
            comm.Send(ack, 0)

    message_us = _least_us(exchange, rows)
    comm.Barrier()
    hand_us = _least_us(by_hand, rows)
    comm.Barrier()
    if comm.rank == 0:
        scatter_us = _least_us(lambda: scatter_add(values, 0, ids, deltas), rows)
        gather_us = _least_us(lambda: np.take(values, ids, axis=0, out=out, mode="clip"), rows)
        _say(message_us=message_us, scatter_us=scatter_us, gather_us=gather_us, hand_us=hand_us)


def table(rows: int, staleness: int) -> None:
    """get, inc and clock of so many rows by each worker; the slowest worker's time."""
    ids, deltas = _ids(rows), np.ones((rows, WIDTH), np.float32)
    with diml.init(servers=1) as job, job.parameter_server(staleness=staleness) as ps:
        R = ps.table("R", TABLE_ROWS, WIDTH, "float32")

        def step() -> None:
            R.get(ids)
            R.inc(ids, deltas)
            ps.clock()

        for _ in range(20):
            step()
        # After the first clock a spare process starts, which takes a core for a second.
        time.sleep(SPARE_STARTS_S)
        ps.barrier()
        step_us = _least_us(step, rows)
        ps.barrier()
        slowest = float(job.allreduce(np.array([step_us]), "max")[0])
        if ps.worker == 0:
            _say(step_us=slowest, updates_per_s=ps.workers * rows / slowest * 1e6)


def replicated(rows: int, how: int) -> None:
    """The same exchange by hand beside a third process: `how` is 0 if that one sleeps; if the
    server forwards to it what it has added and waits for its answer before its own, 1 if as a
    whole, 2 if piece by piece, each as soon as it is there."""
    with mpi_params.eager(os.environ):
        from mpi4py import MPI

    from diml.kernels.rows import scatter_add

    comm = MPI.COMM_WORLD
    ids, values = _ids(rows), np.zeros((TABLE_ROWS, WIDTH), np.float32)
    ask, give = np.ones(64 + 8 * rows, np.uint8), np.ones(64 + 4 * WIDTH * rows, np.uint8)
    push, ack = np.ones(64 + (8 + 4 * WIDTH) * rows, np.uint8), np.ones(64, np.uint8)
    deltas = np.ones((rows, WIDTH), np.float32)
    given = give[64:].view(np.float32).reshape(rows, WIDTH)
    pushed = push[64 + 8 * rows :].view(np.float32).reshape(rows, WIDTH)
    step = PIECE_BYTES if how == 2 else len(push)
    pieces = [push[low : low + step] for low in range(0, len(push), step)]
    scatter_add(values, 0, ids, deltas)

    def wait(*requests: Any) -> None:
        # Three processes may share two cores.
        while not MPI.Request.Testall(list(requests)):
            os.sched_yield()

    def worker() -> None:
        wait(comm.Isend(ask, 1), comm.Irecv(give, 1))
        np.copyto(pushed, deltas)
        wait(*(comm.Isend(piece, 1) for piece in pieces), comm.Irecv(ack, 1))

    def server() -> None:
        wait(comm.Irecv(ask, 0))
        np.take(values, ids, axis=0, out=given, mode="clip")
        wait(comm.Isend(give, 0))
        forwarded = []
        for receiving, piece in [(comm.Irecv(piece, 0), piece) for piece in pieces]:
            wait(receiving)
            if how:
                forwarded.append(comm.Isend(piece, 2))
        scatter_add(values, 0, ids, pushed)
        if how:
            wait(comm.Irecv(ack, 2), *forwarded)
        wait(comm.Isend(ack, 0))

    def replica() -> None:
        wait(*[comm.Irecv(piece, 1) for piece in pieces])
        wait(comm.Isend(ack, 1))
        scatter_add(values, 0, ids, pushed)

    if comm.rank == 2 and not how:
        ended = comm.Irecv(ack, 0)
        while not ended.Test():
            time.sleep(4e-3)
        return
    step_us = _least_us((worker, server, replica)[comm.rank], rows)
    if comm.rank == 0:
        if not how:
            comm.Send(ack, 2)
        _say(step_us=step_us)


def stragglers(staleness: int, clocks: int = 60) -> None:
    """The same work under delays drawn at random: how long all workers take."""
    rng = np.random.default_rng(0)
    with diml.init(servers=1) as job, job.parameter_server(staleness=staleness) as ps:
        R = ps.table("R", 1000, WIDTH, "float32")
        ids, deltas = np.arange(1000), np.ones((1000, WIDTH), np.float32)
        # One of the workers at a time is held up tenfold, another one in each clock.
        slow = rng.integers(0, ps.workers, clocks)
        job.barrier()
        begun = time.perf_counter()
        for clock in range(clocks):
            R.get(ids)
            time.sleep(0.05 if slow[clock] == ps.worker else 0.005)
            R.inc(ids, deltas)
            ps.clock()
        ps.barrier()
        if ps.worker == 0:
            _say(seconds=time.perf_counter() - begun)


def compute(seconds: int, tables: int = 0) -> None:
    """Pure compute by every worker: how much of it a waiting server or spare takes away."""
    values = np.zeros((2000, WIDTH), np.float32)
    ids, deltas = np.arange(2000), np.ones((2000, WIDTH), np.float32)
    from diml.kernels.rows import scatter_add

    with diml.init(servers=1) as job:
        if tables:
            job.parameter_server().table("R", 10, 2)
        scatter_add(values, 0, ids, deltas)
        job.barrier()
        begun, passes = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            scatter_add(values, 0, ids, deltas)
            passes += 1
        total = float(job.allreduce(np.array([passes], np.int64), "sum")[0])
        if job.rank == 0:
            _say(passes_per_s=total / seconds)


def _say(**numbers: float) -> None:
    print(json.dumps(numbers), flush=True)


PARTS = {
    "raw": raw,
    "table": table,
    "replicated": replicated,
    "stragglers": stragglers,
    "compute": compute,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](*map(int, sys.argv[2:4]))  # type: ignore[operator]
