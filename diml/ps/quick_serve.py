"""The short way of small reads and updates at a server: what compiled code is given, and gives.

Owns a short cut through `ServerCore.handle` for messages of dense tables that can be seen to at
once. Pure. Must not know how bytes travel. Invariant: what it does to the server and says to the
workers is what the long way does; whatever it does not expect it leaves untouched, for the long
way.
"""

from __future__ import annotations

import numpy as np

from diml.ps import serve_words as at
from diml.ps.message import CODES, HEADER_BYTES, QUICK_BYTES, Bytes, Rows
from diml.ps.server_core import ServerCore
from diml.ps.table_shard import TableShard

_NO_TABLE = -1


class Desk:
    """Where a server's small messages are seen to.

    Attributes:
        numbers, values, ledger, owed, out: what `serve_words.take` is to be given.
    """

    def __init__(self, server: ServerCore) -> None:
        self._server = server
        self._table: TableShard | None = None
        self.numbers = np.zeros(at.NUMBERS, np.int64)
        self.numbers[at.TABLE_ID] = _NO_TABLE
        self.values: Rows = np.empty((0, 1), np.float32)
        self.ledger, self.owed = server.shard.ledger, np.frombuffer(server.owed, np.uint8)
        self.renew()

    def renew(self) -> None:
        """Have another `out`: the one before is on its way."""
        self.out: Bytes = np.empty(HEADER_BYTES + QUICK_BYTES, np.uint8)

    @property
    def opens(self) -> bool:
        """Whether any message can go the short way now; to be asked after each that went the long
        way."""
        server = self._server
        if not server.answers_at_once:
            return False
        table = self._table
        self.numbers[at.LAG_CLOCKS] = server.lag_clocks
        adds = table is None or table.rule.additive
        self.numbers[at.UPDATES] = server.updates_at_once if adds else at.LEFT
        return True

    def take(self, data: Bytes) -> Bytes | None:
        """See to one message: the answer, valid until the next one and empty if there is none to
        give; or None, and the message is for the long way."""
        length = self._take(data)
        if length == at.ANOTHER_TABLE and self._turn_to():
            length = self._take(data)
        self.book()
        return None if length < 0 else self.out[:length]

    def _take(self, data: Bytes) -> int:
        length: int = at.take(data, self.numbers, self.values, self.ledger, self.owed, self.out)
        return length

    def _turn_to(self) -> bool:
        """Be for the table that was meant from now on; False if it has no short way."""
        self.book()
        table = self._server.shard.tables.get(self.numbers.item(at.MEANT))
        if table is None or not table.quick_rows:
            return False
        self._table, self.values = table, table.values
        numbers = (table.spec.id, table.low, table.quick_rows)
        self.numbers[[at.TABLE_ID, at.LOW, at.ROWS_MAX]] = numbers
        self.numbers[at.CODE] = CODES[table.values.dtype]
        return self.opens

    def book(self) -> None:
        """Let the server know of the updates that were taken."""
        taken = self.numbers.item(at.TAKEN)
        if taken:
            if self._table is not None:
                self._table.steps += self.numbers.item(at.STEPS)
            self._server.shard.took(taken)
            self.numbers[at.TAKEN] = self.numbers[at.STEPS] = 0
