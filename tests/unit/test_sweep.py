"""What a sweep tries, what it keeps, and who gets which trial: no MPI."""

from __future__ import annotations

import collections
import csv
import json
import math
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diml.checkpoint.keeper import StopRequest
from diml.cli import main
from diml.errors import Misuse, PeerFailed
from diml.jobs.sweep import Sweep
from diml.jobs.sweep_desk import Desk, next_trial
from diml.jobs.sweep_plan import Plan, fingerprint, read_plan
from diml.jobs.sweep_table import Table
from diml.jobs.sweep_trial import Outcome, _aside, _status, plain


def all_values(plan: Plan) -> list[tuple[str, ...]]:
    return [tuple(plan.values(trial).values()) for trial in range(plan.trials)]


def test_a_grid_is_every_combination_once() -> None:
    plan = read_plan(["a=1,2", "b", "c-d=x,y,z"], [], None, 0)
    values = all_values(plan)
    assert plan.trials == 12 == len(set(values)) and plan.names == ("a", "b", "c-d")
    assert values[:4] == [("1", "on", "x"), ("1", "on", "y"), ("1", "on", "z"), ("1", "off", "x")]
    assert plan.words(0) == ["--a=1", "--b", "--c-d=x"]
    assert plan.words(11) == ["--a=2", "--c-d=z"]


def test_draws_are_in_their_ranges_and_the_same_again() -> None:
    specs = ["s=log:1e-3:10", "u=uniform:-2:2", "k=int:1:4", "rule=sgd,adagrad"]
    plan, again, other = (read_plan(["g=1,2"], specs, 400, seed) for seed in (3, 3, 4))
    values = all_values(plan)
    assert values == all_values(again) and values != all_values(other)
    # More trials are the same ones and others behind them.
    assert all_values(read_plan(["g=1,2"], specs, 401, 3))[:400] == values
    columns = list(zip(*values, strict=True))
    assert collections.Counter(columns[0]) == {"1": 200, "2": 200}
    scales = [math.log10(float(s)) for s in columns[1]]
    assert -3 <= min(scales) < -2.8 and 0.8 < max(scales) <= 1
    assert abs(sum(scales) / 400 + 1) < 0.3
    assert -2 <= min(map(float, columns[2])) < -1.8 < 1.8 < max(map(float, columns[2])) <= 2
    assert set(columns[3]) == {"1", "2", "3", "4"} and set(columns[4]) == {"sgd", "adagrad"}


@pytest.mark.parametrize(
    ("grid", "random", "words"),
    [
        ([], [], "nothing to sweep"),
        (["a=1,"], [], "values with commas"),
        (["a=1,1"], [], "each once"),
        (["a=1", "a=2"], [], "a is there twice"),
        (["a-b=1"], ["a_b=2,3"], "a_b is there twice"),
        (["=1"], [], "not NAME"),
        ([], ["a=log:1"], "takes two numbers"),
        ([], ["a=log:0:1"], "0 < A < B"),
        ([], ["a=int:1.5:3"], "takes two numbers"),
        ([], ["a=uniform:2:2"], "A < B"),
        ([], ["a=uniform:0:inf"], "A < B"),
    ],
)
def test_a_bad_plan_is_refused(grid: list[str], random: list[str], words: str) -> None:
    with pytest.raises(Misuse, match=words):
        read_plan(grid, random, 3, 0)
    with pytest.raises(Misuse, match="needs --trials"):
        read_plan([], ["a=1,2"], None, 0)


def test_a_fingerprint_tells_sweeps_apart() -> None:
    def of(grid: str, draw: str, trials: int, seed: int, *job: str) -> str:
        return fingerprint(read_plan([grid], [draw], trials, seed), job, 2)

    first = of("a=1,2", "b=1,2", 5, 0, "job")
    assert first == of("a=1,2", "b=1,2", 50, 0, "job")
    others = {
        of("a=1,3", "b=1,2", 5, 0, "job"),
        of("a=1,2", "b=1,3", 5, 0, "job"),
        of("a=1,2", "b=1,2", 5, 1, "job"),
        of("a=1,2", "b=1,2", 5, 0, "job", "x"),
    }
    assert len(others) == 4 and first not in others


def row(trial: int, **more: str) -> dict[str, str]:
    told = {"trial": str(trial), "a": "1,5", "seed": "0", "loss": "0.25", "seconds": "1"}
    return {**told, "status": "ok", "reason": 'said "no"', "sweep": "s1", **more}


def table(path: Path, sweep: str = "s1", flags: tuple[str, ...] = ("a",)) -> Table:
    return Table(path, flags, "loss", sweep)


def test_a_table_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    first = table(path)
    assert first.add(row(3)) and first.add(row(0)) and not first.add(row(3))
    first.close()
    whole = path.read_bytes()
    with path.open(newline="") as file:
        assert [dict(one) for one in csv.DictReader(file)] == [row(3), row(0)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = table(path)
        assert whole.startswith(path.read_bytes()) or cut == 0
        lines = whole[:cut].count(b"\n")
        assert len(again.rows) == max(0, lines - 1)
        for one in (row(3), row(0)):
            again.add(one)
        again.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y\n1,2\n", "its columns are others"),
        ("{head}\n1,1,0,,1,ok,,s2\n", "line 2: of another sweep"),
        ("{head}\n1,1,0,,1,fine,,s1\n", "line 2: not a trial"),
        ("{head}\n1,1,0,,1,ok,,s1\n-1,1,0,,1,ok,,s1\n", "line 3: not a trial"),
        ("{head}\n1,1\n", "line 2: not a trial"),
        ("a\rb\n", "it is no CSV"),
    ],
)
def test_a_table_of_something_else_is_refused_untouched(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "out.csv"
    text = text.format(head="trial,a,seed,loss,seconds,status,reason,sweep") + "cut"
    path.write_bytes(text.encode())
    with pytest.raises(Misuse, match=words):
        table(path)
    assert path.read_bytes() == text.encode()
    with pytest.raises(Misuse, match="No such file"):
        table(tmp_path / "none" / "out.csv")
    with pytest.raises(Misuse, match="named as one of"):
        table(tmp_path / "new.csv", flags=("status",))


class FakeLink:
    """Messages among threads of this process; `dead` makes every call fail, as after a death."""

    def __init__(self, boxes: dict[tuple[int, int], queue.Queue[Any]], rank: int) -> None:
        self.boxes, self.rank, self.size, self.dead = boxes, rank, 1, False

    def isend(self, data: bytes, to: int, tag: int) -> None:
        if self.dead:
            raise PeerFailed("dead")
        self.boxes[to, tag].put((self.rank, data))

    def receive(self, source: int = -1, tag: int = -1, timeout_s: float | None = None) -> Any:
        until = time.monotonic() + (120.0 if timeout_s is None else 0.02)
        while time.monotonic() < until:
            if self.dead:
                raise PeerFailed("dead")
            try:
                sender, data = self.boxes[self.rank, tag].get(timeout=0.002)
            except queue.Empty:
                continue
            return SimpleNamespace(source=sender, data=memoryview(data))
        assert timeout_s is not None, "nothing came"
        return None

    def ack_deaths(self) -> None:
        self.dead = False


def leaders(count: int) -> tuple[FakeLink, list[Any]]:
    boxes: dict[tuple[int, int], queue.Queue[Any]] = collections.defaultdict(queue.Queue)
    groups = [
        SimpleNamespace(link=SimpleNamespace(rank=0, size=1), everyone=FakeLink(boxes, rank))
        for rank in range(count)
    ]
    return FakeLink(boxes, 0), groups


def test_the_desk_gives_the_next_trial_to_who_is_ready() -> None:
    link, (one, two) = leaders(2)
    kept: list[dict[str, str]] = []
    desk = Desk(link, [4, 7, 9], kept.append)
    assert next_trial(one, None) == 4 and next_trial(two, None) == 7
    assert next_trial(two, row(7)) == 9
    # Who finds nothing waits for the others: what they run may have to be run again.
    one.everyone.isend(json.dumps(row(4)).encode(), 0, 1)
    time.sleep(0.1)
    assert one.everyone.boxes[0, 2].empty()
    assert next_trial(two, row(9)) is None
    assert json.loads(one.everyone.receive(0, 2).data.tobytes()) is None
    assert [r["trial"] for r in kept] == ["7", "4", "9"]
    desk.close()


def test_after_a_death_all_meet_and_rows_are_kept_still() -> None:
    link, (one, two) = leaders(2)
    kept: list[dict[str, str]] = []
    desk = Desk(link, [1, 2, 3], kept.append)
    assert next_trial(one, None) == 1
    link.dead = True
    deadline = time.monotonic() + 60
    while link.dead and time.monotonic() < deadline:
        time.sleep(0.005)
    assert next_trial(one, row(1)) is None and next_trial(two, None) is None
    assert len(kept) == 1
    desk.close()


def test_a_leader_that_is_told_to_stop_runs_no_more() -> None:
    link, (one, two) = leaders(2)
    kept: list[dict[str, str]] = []
    desk = Desk(link, [1, 2, 3], kept.append)
    assert next_trial(one, None) == 1 and next_trial(two, None) == 2
    assert next_trial(one, row(1), lambda: "SIGUSR1") is None
    assert [r["trial"] for r in kept] == ["1"]
    desk.close()


def test_a_desk_that_cannot_write_ends_the_sweep() -> None:
    def full(row: dict[str, str]) -> None:
        raise OSError(28, "No space left on device")

    link, (one,) = leaders(1)
    desk = Desk(link, [1, 2], full)
    assert next_trial(one, None) == 1 and next_trial(one, row(1)) is None
    with pytest.raises(OSError, match="No space"):
        desk.close()


def test_a_trial_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIML_SPARES", "2")
    monkeypatch.setenv("DIML_SUPERVISED", "/x")
    before, path, here = dict(os.environ), list(sys.path), Path.cwd()
    with _aside(5, Outcome()):
        assert "DIML_SPARES" not in os.environ and "DIML_SUPERVISED" not in os.environ
        assert os.environ["DIML_SEED"] == "5"
        os.environ.update(HOME="/", DIML_SPARES="99", NEW="1")
        sys.path.clear()
        os.chdir("/")
    assert dict(os.environ) == before and sys.path == path and Path.cwd() == here


def test_a_signal_that_a_trial_took_over_is_not_lost() -> None:
    before, outcome = signal.getsignal(signal.SIGUSR1), Outcome()
    with _aside(5, outcome):
        StopRequest()  # as a job does that keeps checkpoints; it ends without another one
        signal.raise_signal(signal.SIGUSR1)
    assert outcome.told == "SIGUSR1" and signal.getsignal(signal.SIGUSR1) == before


def test_importing_a_sweep_starts_no_mpi() -> None:
    # A spawned replacement arms its guard before MPI starts.
    program = "import sys, diml.jobs.sweep\nassert 'mpi4py.MPI' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_replacement_that_comes_when_all_is_done_meets_nobody(tmp_path: Path) -> None:
    # The others are on their way out: they would not come.
    plan = read_plan(["a=1,2"], [], None, 0)
    flags = SimpleNamespace(csv=tmp_path / "out.csv", metric="loss", ranks_per_trial=1)
    rows = [row(trial, a=str(trial + 1)) for trial in (0, 1)]
    model = {"rows": rows, "lost": {}, "barren": 0}
    job = SimpleNamespace(
        rank=0, repairs=(), settings=SimpleNamespace(quiet=True),
        event=lambda what, **fields: None, identify=lambda **facts: None,
        load_checkpoint=lambda: (3, model, None),
    )  # fmt: skip
    flags.maximize = False
    stop = SimpleNamespace(name="")
    sweep: Any = Sweep(job, flags, plan, ["diml.jobs.logistic"], stop)  # type: ignore[arg-type]
    assert sweep.run() == {0: rows[0], 1: rows[1]}
    # Worker 0's predecessor may have died before it wrote them.
    assert (tmp_path / "out.csv").read_text().count("\n") == 3


def test_every_way_to_end_is_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def raises(error: BaseException) -> Any:
        raise error

    for error, status, words in (
        (SystemExit(), 0, ""), (SystemExit(75), 75, ""), (SystemExit("why"), 1, "why"),
        (Misuse("flag"), 2, "diml: flag"), (ValueError("x"), 1, "ValueError: x"),
        (KeyboardInterrupt(), 130, ""), (SystemExit(None), 0, ""),
    ):  # fmt: skip
        assert _status(lambda error=error: raises(error)) == status  # type: ignore[misc]
        assert words in capsys.readouterr().err
    assert _status(lambda: 3) == 3 and _status(lambda: None) == 0


def test_values_are_known_by_any_spelling() -> None:
    outcome = Outcome()
    outcome.hear({"what": "progress", "time": 1.0, "values": {"held-out_RMSE": 2, "rate": "3 M"}})
    outcome.hear({"what": "result", "time": 2.0, "values": {"held-out RMSE": 1.5}})
    outcome.hear({"what": "work", "time": 3.0})
    assert outcome.values == {"held_out_rmse": (2.0, 1.5)}
    assert plain("Test-AUC") == plain("test_auc")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--grid l1=1 --metric m --csv x", "no job given"),
        ("--grid l1=1 --csv x -- diml.jobs.logistic", "--metric"),
        ("--grid l1=1 --metric m --csv x --seed 1 -- diml.jobs.logistic --seed 2", "give --seed"),
        ("--grid l1=1 --metric m --csv x -- diml.jobs.flags", "is no job"),
        ("-n 0 --grid l1=1 -- diml.jobs.logistic", "at least one worker"),
        ("-n x", "not a whole number"),
    ],
)
def test_bad_words_are_one_line_and_status_2(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
