"""A small read, and an update that is a whole clock, as one call of compiled code each.

Owns how `diml.ps.words` and `diml.world.direct` go together at a worker. Must not know what is
done with an answer, nor what to do without one.
"""

from __future__ import annotations

from numba import njit

from diml.ps.message import HEADER_BYTES, Bytes, Ids
from diml.ps.words import is_plain_ack, read_answer, stamp_update, write_question
from diml.world.direct import Words, receive, send
from diml.world.link import ANY

# What an exchange has come to without the answer, beside what `diml.world.direct` has: an id is not
# among the table's; what came is another message, of so many bytes.
OUTSIDE, OTHER = -4, -5


@njit(cache=True, nogil=True)
def exchange(
    words: Words, dest: int, tag: int, share: bool, patience_s: float, frame: Bytes, ids: Ids,
    rows: int, room: Bytes, code: int, width: int, clock: int, n: int, request: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Ask for rows and wait for them so long: clock of the slowest worker, mark and n (see
    `read_answer`); or, below zero, what it has come to, and with OTHER the length."""
    if not write_question(frame, ids, rows, clock, request):
        return OUTSIDE, 0, 0
    result = send(words, frame, dest, tag)
    if result != 0:
        return result, 0, 0
    while True:
        count = receive(words, room, ANY, tag, patience_s, share)
        if count < 0:
            return count, 0, 0
        if count != HEADER_BYTES or not is_plain_ack(room[:HEADER_BYTES]):
            break
    if count == room.shape[0]:
        slowest, mark, its_n = read_answer(room, request, code, ids.shape[0], width, clock, n)
        if slowest >= 0:
            return slowest, mark, its_n
    return OTHER, count, 0


@njit(cache=True, nogil=True)
def send_update(
    words: Words, dest: int, tag: int, frame: Bytes, clock: int, mark: int, n: int
) -> int:
    """Send an update that is in its frame; as `send`."""
    stamp_update(frame, clock, mark, n)
    return int(send(words, frame, dest, tag))
