"""The flags of every job: both spellings, one line for a mistake, one voice among the ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from diml.config import settings_from
from diml.errors import CorruptState, Misuse
from diml.jobs.flags import JobParser, as_declared, at_least, job_parser, parse, real, run_job


def parser() -> JobParser:
    made = job_parser("mf", "Matrix factorization")
    made.add_argument("--num_iterations", type=at_least(1), default=100)
    made.add_argument("--lambda", dest="lambda_", type=real(least=0), default=0.0)
    made.tuning.add_argument("--block-rows", type=at_least(1), default=8192)
    return made


def test_underscores_and_hyphens_are_one_spelling() -> None:
    for words in (
        ["--num_iterations", "7", "--block_rows=5", "--checkpoint_dir", "a_b"],
        ["--num-iterations=7", "--block-rows", "5", "--checkpoint-dir=a_b"],
    ):
        flags = parse(parser(), words)
        assert (flags.num_iterations, flags.block_rows, flags.checkpoint_dir) == (7, 5, "a_b")


def test_only_names_are_respelled() -> None:
    known = ["--a-b", "--c_d"]
    words = ["--a_b", "x_y", "--c-d=e_f", "-a_b", "--u_v", "--", "--a_b"]
    assert as_declared(words, known) == [
        *["--a-b", "x_y", "--c_d=e_f", "-a_b", "--u_v"],
        *["--", "--a_b"],
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--no_such"], "unrecognized arguments: --no_such"),
        (["--num", "3"], "unrecognized arguments: --num"),
        (["--num_iterations", "0"], "'0' is not a whole number from 1 on"),
        (["--num_iterations", "--7"], "expected one argument"),
        (["--num_iterations"], "expected one argument"),
        (["--lambda", "nan"], "'nan' is not a finite number"),
        (["--lambda", "-0.1"], "'-0.1' is below 0"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_mistakes_are_one_line(words: list[str], line: str) -> None:
    with pytest.raises(Misuse, match=line) as failure:
        parse(parser(), words)
    assert "\n" not in str(failure.value)


def test_flags_feed_settings() -> None:
    flags = parse(parser(), ["--spares", "2", "--drill=1,2,3,0", "--drill", "0,1,1,0", "--quiet"])
    settings = settings_from({"DIML_SPARES": "1", "DIML_SERVERS": "3"}, vars(flags), {})
    assert (settings.spares, settings.servers, settings.quiet) == (2, 3, True)
    assert [drill.rank for drill in settings.drills] == [1, 0]


def test_help_puts_everyday_flags_before_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(parser(), ["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out.partition("Matrix factorization")[2]
    order = ["--num_iterations", "--spares", "--drill", "tuning knobs", "--block-rows"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_help_and_errors_come_from_rank_0_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, speaks in (("0", True), ("3", False)):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        with pytest.raises(SystemExit):
            parse(parser(), ["--help"])
        assert bool(capsys.readouterr().out) == speaks


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (Misuse("no such file"), 2, "diml: no such file\n"),
        (CorruptState("torn"), 1, "diml: torn\n"),
        (KeyboardInterrupt(), 130, ""),
        (None, 0, ""),
    ],
)
def test_run_job_maps_errors_to_status(
    error: BaseException | None,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(arguments: Sequence[str]) -> None:
        assert arguments == ["--K", "3"]
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["job", "--K", "3"])
    with pytest.raises(SystemExit) as leaving:
        run_job(main)
    assert leaving.value.code == status
    assert capsys.readouterr().err == line
