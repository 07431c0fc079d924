"""The recovery protocol under seeded schedules, and the proof that the checkers see its faults."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from diml.allreduce import refresh
from diml.allreduce.effects import Gate, Script
from diml.allreduce.log import Log, Record
from diml.allreduce.operation import Request
from diml.allreduce.recovery import Core
from diml.allreduce.state import Beside
from diml.drill import POINTS
from tests.sim.allreduce_check import run_divergence, run_schedule, scale

SCHEDULES = 600


def test_schedules_keep_all_promises_and_every_way_to_die_is_met() -> None:
    deaths: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        verdict = run_schedule(seed)
        deaths += verdict.deaths
        endings[verdict.ended] += 1
    assert [point for point in (*POINTS, "idle spare", "all workers") if not deaths[point]] == []
    assert endings["finished"] > SCHEDULES / 2
    assert endings["finished with fewer ranks"] > 0


def test_a_seed_is_a_schedule() -> None:
    for seed in range(40):
        first: list[str] = []
        second: list[str] = []
        run_schedule(seed, first)
        run_schedule(seed, second)
        assert first == second


class CommitsEarly(Core):
    """A mutant: the version moves before everyone has passed the gate."""

    def checkpoint(self, request: Request, model: Any, local: Any | None) -> Script[None]:
        script = super().checkpoint(request, model, local)
        before, value = self.version, None
        while True:
            try:
                effect = script.send(value)
            except StopIteration:
                return
            if isinstance(effect, Gate):
                self._commit()
                yield effect
                return
            value = yield effect
            assert self.version >= before


class NeverAgrees(Core):
    """A mutant: after a repair everyone goes on as if all stood at one place."""

    def refresh(self) -> Script[None]:
        yield from super().refresh()
        self.recovering = False


class RemembersTooMuch(Core):
    """A mutant: with fewer ranks it still answers from the results of the many."""

    def begin_anew(self) -> None:
        self.loaded = self.recovering = False


class ComparesAlone(Core):
    """A mutant: it takes newcomers for those with whom it has called all that it has called."""

    def part(self) -> None:
        self.recovering = True


class ForgetfulLog(Log):
    """A log that has lost every second result."""

    def record(self, sequence: int) -> Record | None:
        return super().record(sequence) if sequence % 2 else None


def forgets(boot: Log, steps: Log, *rest: Any) -> Core:
    """A mutant: results are gone although the budget was not exceeded."""
    return Core(ForgetfulLog(boot.budget_bytes), ForgetfulLog(steps.budget_bytes), *rest)


class PassesOnNothing(Core):
    """A mutant: in a shift that is done once more, who is ahead gives something else."""

    def _pass_on(self, request: Request | None, held: Any, by: int) -> Script[Record | None]:
        if held is not None:
            held.result.owner = bytes(8)
        return (yield from super()._pass_on(request, held, by))


class SendsTooEarly(Core):
    """A mutant: after a repair it begins shifts at once, which others have behind them."""

    @property
    def together(self) -> bool:
        return True


@pytest.mark.parametrize(
    "mutant",
    [
        *(CommitsEarly, NeverAgrees, RemembersTooMuch, ComparesAlone, forgets),
        *(PassesOnNothing, SendsTooEarly),
    ],
)
def test_mutants_of_the_protocol_are_caught(mutant: Any) -> None:
    caught = 0
    for seed in range(SCHEDULES):
        try:
            run_schedule(seed, make_core=mutant)
        except Exception:
            # Whatever a broken protocol runs into counts; the sound one runs into nothing.
            caught += 1
    assert caught >= 5


def _caught_beside_servers() -> bool:
    for seed in range(SCHEDULES):
        try:
            run_schedule(seed)
        except Exception:
            return True
    return False


def test_a_repair_that_shares_no_results_beside_servers_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shares_nothing(core: Core) -> Script[None]:
        yield from ()

    monkeypatch.setattr(refresh, "share_results", shares_nothing)
    assert _caught_beside_servers()


def test_all_new_workers_that_begin_again_behind_a_version_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Beside, "learn", lambda self, said: None)
    assert _caught_beside_servers()


def test_large_worlds_recover_with_logarithmic_traffic() -> None:
    rows = [line.split() for line in scale((16, 256))[1:]]
    small, large = (int(row[1]) for row in rows)
    assert large <= small * 8 / 4 * 1.1
    few, many = (int(row[2]) for row in rows)
    assert many <= few * 8 / 4 * 1.1


def test_a_rank_with_another_program_is_found_before_the_commit() -> None:
    endings = Counter(run_divergence(seed)[:24] for seed in range(SCHEDULES))
    said = sum(count for words, count in endings.items() if "call" in words or "replay" in words)
    assert said > 0.95 * SCHEDULES, endings
