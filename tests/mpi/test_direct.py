"""The short way of messages says and does what the link's own calls do, deaths included."""

from __future__ import annotations

from tests.helpers.mpi import run_mpi

TALK = """
import numpy as np
from mpi4py import MPI
from diml.world.direct import NOTHING, Direct
from diml.world.link import Link

link = Link(MPI.COMM_WORLD.Dup())
direct, other = Direct(link), 1 - link.rank
room = np.empty(1000, np.uint8)
assert direct.receive(room, 3, 0.0, False) == NOTHING
assert direct.receive(room, 3, 0.01, True) == NOTHING
link.barrier()
# Of every size, the last ones only once the other side looks after them.
sizes = [0, 1, 999, 1000, 1001, 70_000, 3_000_000]
for size in sizes:
    direct.send(np.full(size, size % 251, np.uint8), other, 3)
link.isend(b"end", other, 4)
for size in sizes:
    count = direct.receive(room, 3, 10.0, False)
    assert (count, direct.source) == (size, other)
    data = direct.rest(np.empty(count, np.uint8)) if count > len(room) else room[:count]
    assert len(data) == size and (data == size % 251).all()
assert link.receive(other, 4, 10.0).data.tobytes() == b"end"
while link.still_sending():
    assert link.poll() is None
link.barrier()
print("said", flush=True)
"""

# Rank 1 dies; its peers hear of it each time that they wait for a message. What they send to it
# counts as sent, as with `Link.isend`.
DEATH = """
import os, signal, time
import numpy as np
from mpi4py import MPI
from diml.errors import PeerFailed
from diml.world.direct import Direct
from diml.world.link import Link

link = Link(MPI.COMM_WORLD.Dup())
direct, room = Direct(link), np.empty(100, np.uint8)
link.barrier()
if link.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)

def heard(call):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            call()
        except PeerFailed:
            return True
    return False

assert heard(lambda: direct.receive(room, 3, 0.05, False))
assert heard(lambda: direct.receive(room, 3, 0.0, False))
direct.send(room, 1, 3)
if link.rank == 0:
    link.revoke()
assert heard(lambda: direct.receive(room, 3, 0.05, True))
direct.send(room, 1, 3)
assert heard(lambda: direct.receive(room, 3, 1.0, False))
print("heard", flush=True)
link.agree(True)
os._exit(0)
"""


def test_messages_of_every_size_come_whole() -> None:
    finished = run_mpi(2, TALK, timeout_s=60)
    finished.expect(0)
    assert finished.stdout.count("said") == 2, finished.report()


def test_a_death_is_told_at_every_call() -> None:
    finished = run_mpi(3, DEATH, timeout_s=60)
    assert finished.stdout.count("heard") == 2, finished.report()
