"""After a death: from what everyone holds, who must get which rows from whom. Pure.

Owns the placement of shards and the plan of a repair. Every process computes the same plan from
the same reports. Must not know how rows are stored or sent.

Invariants: the source of a shard is the freshest living copy, and the living server's own copy is
never older than a replica. Under BSP with several servers a clock is kept if every source has
closed it, else taken back everywhere: it is at most one, because a worker sends clock c+1 only
once every server has acknowledged clock c. Rows without a holder are never made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diml.errors import GaveUp
from diml.ps.consistency import parse_consistency
from diml.ps.message import Address
from diml.ps.tables import TableSpec, row_range

Ledger = tuple[tuple[int, int], ...]

# Deaths of all workers in a row at the same clocks after which they are not brought back. A repair
# that is cut short by another death may count twice.
DEATHS_MAX = 8


@dataclass(frozen=True, slots=True)
class Holding:
    """A copy of a shard that a process has. `ledger` is (clock, n) by worker."""

    shard: int
    version: int
    closed: int
    revertible: bool
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Report:
    """What one process holds and knows.

    Attributes:
        clock: of its program, where it is a worker.
        new: it has taken a dead worker's place in this very repair.
        lost: how often in a row all workers have died at the same clocks, and these clocks.
    """

    place: Address
    holdings: tuple[Holding, ...] = ()
    specs: tuple[TableSpec, ...] = ()
    config: str = ""
    clock: int = -1
    new: bool = False
    lost: tuple[int, tuple[int, ...]] = (0, ())


@dataclass(frozen=True, slots=True)
class Transfer:
    """A whole shard on its way between two ranks of the link."""

    shard: int
    source: int
    dest: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What every process does in a repair.

    Attributes:
        placed: by shard, the ranks that hold it from now on; the first one serves it.
        closed: the clock to which every copy is taken back (BSP, several servers), or None.
        fresh: shards that start anew, because no table had been made yet.
        transfers: copies to be sent, after the taking back.
        ledgers: by shard, the ledger that its source has after the taking back.
        resume: by worker, the clock where a replacement goes on.
        not_before: the first clock that all workers will come to the end of once more.
        lost: see `Report`.
    """

    placed: tuple[tuple[int, ...], ...]
    closed: int | None
    fresh: frozenset[int]
    transfers: tuple[Transfer, ...]
    ledgers: tuple[Ledger, ...]
    resume: tuple[int, ...]
    not_before: int
    lost: tuple[int, tuple[int, ...]] = (0, ())


def placement(shard: int, servers: int, spares: int, replicas: int) -> tuple[Address, ...]:
    """Who holds a shard: its server, then the next servers of the ring, or the first spare."""
    owner = Address("server", shard)
    if servers > 1:
        others = range(1, min(replicas, servers - 1) + 1)
        return (owner, *(Address("server", (shard + step) % servers) for step in others))
    return (owner, Address("spare", 0)) if spares and replicas else (owner,)


def make_plan(reports: Sequence[Report], replicas: int) -> Plan:
    """The plan for a link whose rank r says `reports[r]`.

    Raises GaveUp, naming tables and rows, if a shard has no living copy; and if all workers die
    again and again at the same clocks: then it is their program that kills them.
    """
    ranks = {report.place: rank for rank, report in enumerate(reports)}
    servers = sum(place.role == "server" for place in ranks)
    spares = sum(place.role == "spare" for place in ranks)
    workers = sum(place.role == "worker" for place in ranks)
    placed = tuple(
        tuple(ranks[place] for place in placement(shard, servers, spares, replicas))
        for shard in range(servers)
    )
    config = next((report.config for report in reports if report.config), "")
    sources = {shard: _source(reports, shard, placed[shard][0]) for shard in range(servers)}
    fresh = frozenset(shard for shard, source in sources.items() if source is None)
    if fresh and config:
        raise GaveUp(_lost_rows(reports, sorted(fresh), servers))
    held = {shard: source for shard, source in sources.items() if source is not None}
    closed = None
    if config and servers > 1 and parse_consistency(config, 0).buffered:
        closed = min(holding.closed for _, holding in held.values())
    transfers = [
        Transfer(shard, source[0], rank)
        for shard, source in held.items()
        for rank in placed[shard]
        if rank != source[0] and not _same(reports[rank], source[1], closed)
    ]
    new: Ledger = ((0, 0),) * workers
    ledgers = tuple(
        new if shard in fresh else _ledger(held[shard][1], closed) for shard in range(servers)
    )
    resume = tuple(min(ledger[worker][0] for ledger in ledgers) for worker in range(workers))
    # A replacement goes on behind what its former life did at the end of that clock.
    not_before = 1 + max(*(report.clock for report in reports), *resume, 0)
    lost = _all_lost(reports, resume)
    return Plan(placed, closed, fresh, tuple(transfers), ledgers, resume, not_before, lost)


def _all_lost(reports: Sequence[Report], resume: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """How often in a row all workers have died at these clocks."""
    before = max((report.lost for report in reports), default=(0, ()))
    if not all(report.new for report in reports if report.place.role == "worker"):
        return before
    times = before[0] + 1 if before[1] == resume else 1
    if times >= DEATHS_MAX:
        raise GaveUp(f"all workers died {times} times in a row at clocks {list(resume)}")
    return times, resume


def _source(reports: Sequence[Report], shard: int, owner: int) -> tuple[int, Holding] | None:
    """The rank and the holding of the freshest copy: the future server's own where it is one."""
    found = [
        (rank, holding)
        for rank, report in enumerate(reports)
        for holding in report.holdings
        if holding.shard == shard
    ]
    if not found:
        return None
    return max(found, key=lambda f: (f[1].version, f[1].revertible, f[0] == owner, -f[0]))


def _same(report: Report, source: Holding, closed: int | None) -> bool:
    """Whether a process has the source's content, or will once both have gone back a clock."""
    back = closed is not None and source.closed > closed
    return any(
        (own.shard, own.version, own.closed) == (source.shard, source.version, source.closed)
        and (own.revertible or not back)
        for own in report.holdings
    )


def _ledger(source: Holding, closed: int | None) -> Ledger:
    return source.ledger if closed is None else ((closed, 0),) * len(source.ledger)


def _lost_rows(reports: Sequence[Report], lost: list[int], servers: int) -> str:
    """The error's words: which rows of which tables nobody holds."""
    specs = {spec.id: spec for report in reports for spec in report.specs}
    rows = [
        f"{spec.name}[{low}:{high}]"
        for spec in specs.values()
        for low, high in (row_range(spec.rows, shard, servers) for shard in lost)
    ]
    which = ", ".join(rows) if rows else "no table had been made"
    return f"server {', '.join(map(str, lost))} died with all its replicas: lost rows {which}"
