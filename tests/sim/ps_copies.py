"""Judge of what the processes of a simulated parameter server hold: a shard's copies are one.

Owns the comparison of copies with each other and, where clocks are transactions, with the state
that the program's plain twin has at that clock. Called when a repair is over and when a run is:
what a replica got wrong shows at once, not only should its server die and nobody write over it.
"""

from __future__ import annotations

import numpy as np

from diml.ps.shard import CLOCK, N, Shard
from diml.ps.sparse_shard import SparseShard
from diml.ps.tables import TableSpec
from tests.sim.ps_cluster import Cluster
from tests.sim.ps_program import State


class Copies:
    """All copies of all shards, as of now."""

    def __init__(self, cluster: Cluster) -> None:
        self._workers, self._servers = cluster.workers, cluster.servers
        self._framed = cluster.framed
        self._by_shard: dict[int, list[Shard]] = {shard: [] for shard in range(cluster.servers)}
        for place, process in cluster.seats.items():
            for holding in process.node.report(place).holdings:
                self._by_shard[holding.shard].append(process.node.held[holding.shard])

    def one_each(self) -> None:
        """The copies of a shard are equal."""
        for index, (first, *others) in self._by_shard.items():
            for other in others:
                mine, theirs = _content(first), _content(other)
                apart = [what for what in {**mine, **theirs} if mine.get(what) != theirs.get(what)]
                told = [f"{what} {mine.get(what)} and {theirs.get(what)}" for what in apart]
                assert not told, f"copies of shard {index} differ: {'; '.join(told)}"

    def own_states_kept(self) -> None:
        """Where a worker's replacement would go on, its home server has its own state."""
        ledgers = [copies[0].ledger for copies in self._by_shard.values()]
        for worker in range(self._workers):
            clock = min(int(ledger[worker, CLOCK]) for ledger in ledgers)
            found = self._by_shard[worker % self._servers][0].local_at(worker, clock)
            at = 0 if found is None else found[0]
            whole = at == clock or (self._framed and at < clock)
            assert whole, f"worker {worker} would go on at {clock}, its state is of {at}"

    def at_clock(self, model: TableSpec, states: list[State]) -> None:
        """Where clocks are transactions: the model is as it was at the clock that a shard has
        closed."""
        for copies in self._by_shard.values():
            for shard in copies:
                if (table := shard.tables.get(model.id)) is None:
                    continue
                values, state, steps = states[shard.closed]
                rows = slice(table.low, table.high)
                wanted = values[rows].tobytes(), state[rows].tobytes(), steps[shard.index]
                found = table.values.tobytes(), table.state.tobytes(), table.steps
                assert found == wanted, f"shard {shard.index} at clock {shard.closed}: {found}"

    def take_back(self) -> bool:
        """Take the last clock back in all copies; False if one cannot."""
        every = [shard for copies in self._by_shard.values() for shard in copies]
        if not all(shard.revertible for shard in every):
            return False
        for shard in every:
            shard.revert()
        return True


def _content(shard: Shard) -> dict[str, object]:
    """What a copy has, by name."""
    found: dict[str, object] = {
        "version": shard.version,
        "config": shard.config,
        "ledger": shard.ledger[:, : N + 1].tolist(),
    }
    for worker, states in shard.locals.items():
        found |= {f"worker {worker} at {clock}": states[clock].tobytes() for clock in states}
    for table in shard.tables.values():
        keys, values, state = np.arange(table.low, table.high), table.values, table.state
        if isinstance(table, SparseShard):
            # A cell that was taken back stays, as a zero.
            there = values[:, 0] != 0
            keys, values, state = table.keys[there], values[there], state[there]
        name = table.spec.name
        found[f"{name}: steps"] = table.steps
        for what, array in (("keys", keys), ("values", values), ("state", state)):
            found[f"{name}: {what}"] = array.tolist()
    return found
