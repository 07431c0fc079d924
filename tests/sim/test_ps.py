"""The parameter server under seeded schedules of delays and deaths, and mutants that it catches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from diml.ps import client_core, handover, node_core, quick_serve, sent, server_core
from diml.ps.message import NO_IDS, NO_ROWS, Address, Bytes, Kind, Message, Send, decode, update_key
from diml.ps.recovery import Plan, Report
from diml.ps.saving import Saving, Storage
from diml.ps.shard import Shard
from diml.ps.table_shard import TableShard
from diml.world import lending
from diml.world.lending import Lender
from tests.sim import ps_cluster, ps_schedule
from tests.sim.ps_schedule import POINTS, Schedule, check

SCHEDULES = 600


def test_every_update_once_no_stale_read_and_progress() -> None:
    deaths: Counter[str] = Counter()
    gave_up = 0
    for seed in range(SCHEDULES):
        outcome = check(seed)
        deaths += outcome.deaths
        gave_up += outcome.gave_up
    assert not [point for point in POINTS if not deaths[point]]
    assert gave_up < SCHEDULES / 10


def test_replicas_are_told_by_tapes() -> None:
    told, deaths = 0, 0
    for seed in range(100):
        schedule = Schedule(seed)
        outcome = schedule.run()
        told += schedule.cluster.told
        deaths += schedule.cluster.told > 0 and len(outcome.deaths) > 0
    assert told > 100 and deaths > 4


def test_a_seed_draws_everything() -> None:
    first, second = Schedule(7), Schedule(7)
    assert first.run().deaths == second.run().deaths
    assert first.rng.getstate() == second.rng.getstate()


def _caught(first: int = 0, seeds: int = 400) -> bool:
    for seed in range(first, first + seeds):
        try:
            check(seed)
        except Exception:
            return True
    return False


def test_a_worker_that_waits_for_what_its_former_life_has_sent_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(self: sent.Sent, by_server: list[list[Message]]) -> list[Send]:
        sends = []
        for server, messages in enumerate(by_server):
            self._retained[server].extend(messages)
            sends += [Send(self._servers[server], message) for message in messages]
        return sends

    monkeypatch.setattr(sent.Sent, "retain", forgetful)
    assert _caught()


def test_a_server_that_acknowledges_before_its_replica_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hasty(self: server_core.ServerCore) -> list[Send]:
        self._staged = False
        return self._released()

    monkeypatch.setattr(server_core.ServerCore, "flush", hasty)
    assert _caught()


def test_a_replica_that_acknowledges_and_forgets_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = node_core.NodeCore.report

    def forgetful(
        self: node_core.NodeCore, place: Address, client: client_core.ClientCore | None = None
    ) -> Report:
        self._arrived = {}
        return report(self, place, client)

    monkeypatch.setattr(node_core.NodeCore, "report", forgetful)
    assert _caught()


def test_a_replica_that_forgets_what_it_was_handed_over_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ps_cluster.Cluster, "hold", lambda self: None)
    assert _caught()


@pytest.mark.parametrize("heeds", ["nobody", "its owner", "borrowers"])
def test_memory_that_is_given_out_too_early_is_caught(
    heeds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by an error, not by a crash: whatever ids turn into, kernels keep to their arrays."""
    unused = Lender._unused

    def hasty(self: Lender, block: lending._Block) -> bool:
        if heeds == "its owner":
            return block.array is None or block.array() is None
        if heeds == "borrowers":
            block.array = None
            return unused(self, block)
        return True

    monkeypatch.setattr(Lender, "_unused", hasty)
    assert sum(_caught(seed, 1) for seed in range(60)) > 6


def test_a_replica_that_drops_updates_passed_on_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    install = Shard._install

    def careless(self: Shard, part: Message, closes: bool, between: Callable[[], object]) -> None:
        if part.kind is not Kind.PASSED:
            install(self, part, closes, between)

    monkeypatch.setattr(Shard, "_install", careless)
    assert _caught()


def test_a_server_that_does_not_apply_what_it_passes_on_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def idle(self: server_core.ServerCore) -> None:
        self._closing = []

    monkeypatch.setattr(server_core.ServerCore, "settle", idle)
    assert _caught()


def test_a_server_that_applies_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: server_core.ServerCore, message: Message) -> None:
        self.shard.ledger[message.worker, :2] = (message.clock, message.n)
        apply(self, message)

    apply = server_core.ServerCore._apply
    monkeypatch.setattr(server_core.ServerCore, "_apply", forgetful)
    assert _caught()


def test_a_server_that_applies_twice_the_short_way_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(self: quick_serve.Desk, data: Bytes) -> Bytes | None:
        message = decode(data)
        if message.kind is Kind.UPDATE:
            self.ledger[message.worker, :2] = (message.clock, message.n)
        return take(self, data)

    take = quick_serve.Desk.take
    monkeypatch.setattr(quick_serve.Desk, "take", forgetful)
    assert _caught()


def test_a_server_that_takes_updates_its_replica_does_not_hold_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(self: quick_serve.Desk, tape: Bytes | None) -> None:
        self.tape = np.empty(0, np.uint8)

    monkeypatch.setattr(quick_serve.Desk, "tell_on", silent)
    assert _caught()


def test_a_replica_that_does_not_follow_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(self: node_core.NodeCore, shard: int, tape: Bytes, upto: int) -> None:
        """Nothing."""

    monkeypatch.setattr(node_core.NodeCore, "follow", idle)
    assert _caught()


def test_a_replica_that_follows_before_its_commits_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hasty(self: node_core.NodeCore, shard: int, tape: Bytes, upto: int) -> None:
        arrived, self._arrived = self._arrived, {}
        follow(self, shard, tape, upto)
        self._arrived = arrived

    follow = node_core.NodeCore.follow
    monkeypatch.setattr(node_core.NodeCore, "follow", hasty)
    assert _caught()


def test_commits_without_their_place_among_updates_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def placeless(self: handover.Given, parts: Sequence[Bytes]) -> bool:
        return self._lender.hand_over(parts, self._borrower)

    monkeypatch.setattr(handover.Given, "hand_over", placeless)
    assert _caught()


def test_a_server_that_does_not_go_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def stubborn(self: Shard) -> None:
        self.ledger[:, 0] -= 1
        self._undo = None

    monkeypatch.setattr(Shard, "revert", stubborn)
    assert _caught()


def test_a_worker_that_does_not_send_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: client_core.ClientCore, plan: Plan) -> list[Send]:
        return []

    monkeypatch.setattr(client_core.ClientCore, "recovered", silent)
    assert _caught()


def test_a_worker_that_forgets_what_another_server_lacks_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hasty(self: sent.Sent) -> None:
        for server, retained in enumerate(self._retained):
            needed = self._acknowledged[server]
            while retained and update_key(retained[0]) < needed:
                retained.popleft()

    monkeypatch.setattr(sent.Sent, "_trim", hasty)
    assert _caught()


def test_a_meeting_that_forgets_former_lives_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(
        self: Saving, shard: Shard, storage: Storage, not_before: int, mirrored: bool = False
    ) -> None:
        init(self, shard, storage, 0, mirrored)

    init = Saving.__init__
    monkeypatch.setattr(Saving, "__init__", forgetful)
    monkeypatch.setattr(Saving, "_passed", lambda self: [])
    monkeypatch.setattr(ps_schedule, "STEPS_MAX", 3000)
    assert _caught()


def test_a_server_that_keeps_a_shard_too_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(self: Saving, message: Message) -> list[tuple[Message, Message]]:
        if message.kind is Kind.SAVE:
            early = self._snapshot(message.clock, {message.worker: message})
            self._storage.store(2, early, False)
        return handle(self, message)

    handle = Saving.handle
    monkeypatch.setattr(Saving, "handle", early)
    assert _caught()


def test_a_server_that_does_not_push_what_changed_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pushes = server_core.ServerCore._pushes

    def lazy(self: server_core.ServerCore) -> list[Send]:
        empty = [send.message for send in pushes(self) if send.message.flags]
        return [
            Send(self._workers[m.worker], m._replace(ids=NO_IDS, values=NO_ROWS, frame=None))
            for m in empty
        ]

    monkeypatch.setattr(server_core.ServerCore, "_pushes", lazy)
    assert _caught()


def test_a_worker_that_counts_clocks_as_acknowledged_too_early_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish_clock = client_core.ClientCore.finish_clock

    def early(self: client_core.ClientCore, local: Bytes | None) -> list[Send]:
        sends = finish_clock(self, local)
        return [Send(to, m._replace(mark=m.clock + 1, frame=None)) for to, m in sends]

    monkeypatch.setattr(client_core.ClientCore, "finish_clock", early)
    assert _caught()


def test_a_replica_that_installs_a_commit_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    install = Shard.install

    def eager(self: Shard, parts: list[Message], between: Callable[[], object]) -> None:
        install(self, parts, between)
        install(self, parts, between)

    monkeypatch.setattr(Shard, "install", eager)
    assert _caught()


def test_a_clock_that_is_taken_back_without_the_rule_s_state_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    revert = Shard.revert

    def forgetful(self: Shard) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TableShard, "put_state", lambda self, ids, state: None)
            revert(self)

    monkeypatch.setattr(Shard, "revert", forgetful)
    assert _caught()


def test_a_replacement_that_goes_on_too_far_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(reports: Sequence[Report], replicas: int) -> Plan:
        plan = make_plan(reports, replicas)
        clocks = zip(*([clock for clock, _ in ledger] for ledger in plan.ledgers), strict=True)
        return replace(plan, resume=tuple(max(of_servers) for of_servers in clocks))

    make_plan = ps_cluster.make_plan
    monkeypatch.setattr(ps_cluster, "make_plan", hasty)
    assert _caught()
