"""The serving of small messages from one to the next, without Python in between.

Owns the loop that receives, sees to a message and sends the answer. Must not know what messages
mean (`diml.ps.serve_words`), nor what a process does that has nothing to serve. Invariant: the loop
comes back after so many messages, or when none has come for so long, so that nobody who waits for
an acknowledgement, and nothing that looks after the process, waits for its end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from diml.ps.message import Bytes, Ids, Rows
from diml.ps.quick_serve import Desk
from diml.ps.serve_words import ANOTHER_TABLE, take
from diml.world.direct import NOTHING, Direct, Words, receive, send, source_of
from diml.world.link import ANY

# How long acknowledgements wait for an answer that can carry them.
LINGER_S = 50e-6
# How long a process looks for the next message without a pause.
AWAKE_S = 1e-3

# What a loop tells: messages seen to, bytes of their answers, what the last send has come to, and
# what `take` has made of the message that is left.
_SEEN, _BYTES, _SENT, _LEFT = range(4)


@njit(cache=True, nogil=True)
def _serve(
    words: Words, into: Bytes, tag: int, patience_s: float, share: bool, turns: int, numbers: Ids,
    values: Rows, ledger: Ids, owed: Bytes, out: Bytes, tape: Bytes, told: Ids,
) -> int:  # fmt: skip
    """What `receive` has come to where it is not seen to here."""
    told[:] = 0
    while True:
        count = receive(words, into, ANY, tag, patience_s, share)
        if count < 0 or count > into.shape[0]:
            return count
        length = take(into[:count], numbers, values, ledger, owed, out, tape)
        if length < 0:
            told[_LEFT] = length
            return count
        told[_SEEN] += 1
        told[_BYTES] += length
        if length > 0:
            told[_SENT] = send(words, out[:length], source_of(words), tag)
        if told[_SENT] != 0 or told[_SEEN] == turns:
            return NOTHING
        patience_s = LINGER_S if owed.max() else AWAKE_S


class Served(NamedTuple):
    """What a loop has come to.

    Attributes:
        length: as of `Direct.receive`, of a message that somebody else is to see to.
        seen, size: messages that were seen to before it, and bytes of their answers.
        early: whether another message may be there, though there is none to see to.
    """

    length: int
    seen: int
    size: int
    early: bool


def serve(
    direct: Direct, desk: Desk, into: Bytes, tag: int, patience_s: float, share: bool, turns: int
) -> Served:
    """See to what comes, `turns` messages at most, until something else comes or, at first for
    `patience_s`, nothing does. Raises as `Direct`."""
    told, out = np.empty(4, np.int64), desk.out
    count = _serve(
        direct.words, into, tag, patience_s, share, turns, desk.numbers, desk.values, desk.ledger,
        desk.owed, out, desk.tape, told,
    )  # fmt: skip
    desk.book()
    seen, size, sent, left = told.tolist()
    if sent:
        direct.sent(sent, out)
        desk.renew()
    direct.received(count)
    if left == ANOTHER_TABLE and (answer := desk.take(into[:count])) is not None:
        seen, size, count, sent = seen + 1, size + len(answer), NOTHING, -1
        if len(answer) and direct.send(answer, direct.source, tag):
            desk.renew()
    return Served(count, seen, size, count == NOTHING and (sent != 0 or seen == turns))
