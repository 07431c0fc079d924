"""The short way of small reads and updates at a server: what compiled code is given, and gives.

Owns a short cut through `ServerCore.handle` for messages of dense tables that can be seen to at
once, and how a copy of the shard follows it. Pure. Must not know how bytes travel. Invariant: what
it does to the server and says to the workers is what the long way does; whatever it does not expect
it leaves untouched, for the long way.
"""

from __future__ import annotations

import numpy as np

from diml.ps import serve_words as at
from diml.ps.message import CODES, HEADER_BYTES, QUICK_BYTES, Address, Bytes, Rows
from diml.ps.server_core import ServerCore
from diml.ps.shard import Shard
from diml.ps.table_shard import TableShard
from diml.ps.tape import read

_NO_TABLE = -1
_NO_TAPE: Bytes = np.empty(0, np.uint8)
# What a copy follows in one go: some ten microseconds.
_PART_BYTES = 1 << 15


class _Hands:
    """A shard, one table of it at a time, as compiled code sees it.

    Attributes:
        numbers, values, ledger: what `serve_words` is to be given.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.table: TableShard | None = None
        self.numbers = np.zeros(at.NUMBERS, np.int64)
        self.numbers[at.TABLE_ID] = _NO_TABLE
        self.values: Rows = np.empty((0, 1), np.float32)
        self.ledger = shard.ledger

    def turn_to(self) -> bool:
        """Be for the table that was meant from now on; False if it has no short way."""
        self.book()
        table = self.shard.tables.get(self.numbers.item(at.MEANT))
        if table is None or not table.quick_rows:
            return False
        self.table, self.values = table, table.values
        numbers = (table.spec.id, table.low, table.quick_rows)
        self.numbers[[at.TABLE_ID, at.LOW, at.ROWS_MAX]] = numbers
        self.numbers[at.CODE] = CODES[table.values.dtype]
        return True

    def book(self) -> None:
        """Let the shard know of the updates that were taken."""
        taken = self.numbers.item(at.TAKEN)
        if taken:
            if self.table is not None:
                self.table.steps += self.numbers.item(at.STEPS)
            self.shard.took(taken)
            self.numbers[at.TAKEN] = self.numbers[at.STEPS] = 0


class Desk(_Hands):
    """Where a server's small messages are seen to.

    Attributes:
        replica: the only one that is to hold each change before it is shown; None if there are
            several, or none.
        tape: where it finds them; no bytes as long as there is no such place.
        owed, out: what `serve_words.take` is to be given.
    """

    def __init__(self, server: ServerCore) -> None:
        super().__init__(server.shard)
        self._server = server
        self.replica: Address | None = server.replicas[0] if len(server.replicas) == 1 else None
        self.tape = _NO_TAPE
        self.owed = np.frombuffer(server.owed, np.uint8)
        self.renew()

    def renew(self) -> None:
        """Have another `out`: the one before is on its way."""
        self.out: Bytes = np.empty(HEADER_BYTES + QUICK_BYTES, np.uint8)

    @property
    def untold(self) -> Address | None:
        """The replica without whose tape no update can be taken; None if that is nobody."""
        return self.replica if self.tape is _NO_TAPE else None

    def tell_on(self, tape: Bytes | None) -> None:
        """From now on the replica holds what stands on this tape (`diml.ps.tape`), if there is one;
        `opens` is to be asked again."""
        if tape is not None:
            self.tape = tape
            self._server.near = True

    @property
    def opens(self) -> bool:
        """Whether any message can go the short way now; to be asked after each that went the long
        way."""
        server, table = self._server, self.table
        if not server.answers_at_once:
            return False
        self.numbers[at.LAG_CLOCKS] = server.lag_clocks
        held = not server.replicas or self.tape is not _NO_TAPE
        adds = table is None or table.rule.additive
        self.numbers[at.UPDATES] = server.updates_at_once if held and adds else at.LEFT
        return True

    def take(self, data: Bytes) -> Bytes | None:
        """See to one message: the answer, valid until the next one and empty if there is none to
        give; or None, and the message is for the long way."""
        length = self._take(data)
        if length == at.ANOTHER_TABLE and self.turn_to() and self.opens:
            length = self._take(data)
        self.book()
        return None if length < 0 else self.out[:length]

    def _take(self, data: Bytes) -> int:
        length: int = at.take(
            data, self.numbers, self.values, self.ledger, self.owed, self.out, self.tape
        )
        return length


class Follower(_Hands):
    """How a copy of a shard becomes what a server's desk has made of the shard."""

    def __init__(self, shard: Shard) -> None:
        super().__init__(shard)
        self.numbers[at.UPDATES] = at.AT_ONCE
        self._owed: Bytes = np.zeros(shard.workers, np.uint8)

    def follow(self, tape: Bytes, upto: int) -> bool:
        """Take what stands on the tape up to here, some of it at a time; whether there is more."""
        done = at.follow(
            tape, upto, _PART_BYTES, self.numbers, self.values, self.ledger, self._owed
        )
        if done == at.ANOTHER_TABLE:
            turned = self.turn_to()
            assert turned, f"shard {self.shard.index} has no table {self.numbers[at.MEANT]}"
        else:
            assert done == at.DONE, f"a copy of shard {self.shard.index} is not what it should be"
        self.book()
        return bool(read(tape) < upto)
