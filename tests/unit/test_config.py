"""Settings: precedence, types, relations, and that each mistake names where it was made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from diml.config import OPTIONS, Settings, settings_from
from diml.drill import Drill
from diml.errors import Misuse


def test_defaults() -> None:
    settings = settings_from({}, {}, {})
    assert settings == Settings()
    assert (settings.spares, settings.servers, settings.resume) == ("auto", None, "auto")
    with pytest.raises(FrozenInstanceError):
        settings.spares = 3  # type: ignore[misc]


def test_flag_wins_over_variable_over_argument() -> None:
    env, flags, arguments = {"DIML_SPARES": "2"}, {"spares": "3"}, {"spares": 1}
    assert settings_from(env, flags, arguments).spares == 3
    assert settings_from(env, {"spares": None}, arguments).spares == 2
    assert settings_from({"DIML_SPARES": ""}, {}, arguments).spares == 1
    assert settings_from({}, {"spares": "auto"}, arguments).spares == "auto"


def test_a_flag_of_a_switch_wins_over_the_variable() -> None:
    assert settings_from({"DIML_QUIET": "0"}, {"quiet": True}, {}).quiet
    assert not settings_from({"DIML_QUIET": "no"}, {"quiet": None}, {"quiet": True}).quiet


def test_texts_and_values_are_read_alike() -> None:
    drills = (Drill(1, 2, 3, 0), Drill(0, 0, 0, 1, "load"))
    env = {
        "DIML_CHECKPOINT_DIR": "/x",
        "DIML_DRILL": "1,2,3,0 0,0,0,1,load",
        "DIML_DEADLINE": "60",
        "DIML_FROZEN_DEADLINE": "2.5",
    }
    arguments = {
        "checkpoint_dir": Path("/x"),
        "drills": [drills[0], "0,0,0,1,load"],
        "deadline_s": 60,
        "frozen_deadline_s": 2.5,
    }
    expected = Settings(
        checkpoint_dir=Path("/x"), drills=drills, deadline_s=60.0, frozen_deadline_s=2.5
    )
    assert settings_from(env, {}, {}) == settings_from({}, {}, arguments) == expected
    assert settings_from({}, {"drills": ["1,2,3,0", "0,0,0,1,load"]}, {}).drills == drills


@pytest.mark.parametrize(
    ("env", "flags", "arguments", "line"),
    [
        ({}, {"spares": "x"}, {}, "--spares: 'x' is not a whole number"),
        ({}, {"spares": "-1"}, {}, "--spares: -1 is not a whole number from 0 on"),
        ({"DIML_SERVERS": "1.5"}, {}, {}, "DIML_SERVERS: '1.5' is not a whole number"),
        ({}, {}, {"servers": 1.5}, r"diml.init\(servers=...\): 1.5 is not S"),
        ({}, {}, {"servers": True}, r"diml.init\(servers=...\): True is not"),
        ({}, {"resume": "perhaps"}, {}, "--resume: 'perhaps' is none of auto, never, must"),
        ({}, {"resume": "must"}, {}, "--resume: 'must' needs .*--checkpoint-dir"),
        ({}, {"drills": ["1,2"]}, {}, "--drill: drill '1,2': 2 of the 4"),
        ({"DIML_DRILL": "1,2"}, {}, {}, "DIML_DRILL: drill '1,2'"),
        ({"DIML_QUIET": "maybe"}, {}, {}, "DIML_QUIET: 'maybe' is neither"),
        ({}, {"deadline_s": "0"}, {}, "--deadline: 0.0 is not a positive number"),
        ({}, {"deadline_s": "nan"}, {}, "--deadline: nan is not a positive number"),
        ({}, {"deadline_s": "soon"}, {}, "--deadline: 'soon' is not a number of seconds"),
        ({}, {"frozen_deadline_s": "1801"}, {}, "--frozen-deadline: 1801 s is longer"),
        ({}, {"on_failure": "pray"}, {}, "--on-failure: 'pray' is none of spare"),
        ({}, {}, {"spare": 1}, "diml.init has no argument 'spare'"),
    ],
)
def test_mistakes_name_their_source(
    env: dict[str, str], flags: dict[str, Any], arguments: dict[str, Any], line: str
) -> None:
    with pytest.raises(Misuse, match=line) as failure:
        settings_from(env, flags, arguments)
    assert "\n" not in str(failure.value)


def test_flags_of_the_job_are_not_settings() -> None:
    assert settings_from({"DIML_K": "3"}, {"K": 5, "lambda": 0.1}, {}) == Settings()


def test_spellings() -> None:
    spelled = {option.setting: (option.flag, option.variable) for option in OPTIONS}
    assert spelled["drills"] == ("--drill", "DIML_DRILL")
    assert spelled["checkpoint_dir"] == ("--checkpoint-dir", "DIML_CHECKPOINT_DIR")
    assert spelled["checkpoint_every_s"] == ("--checkpoint-every", "DIML_CHECKPOINT_EVERY")


def test_a_low_deadline_takes_that_of_stopped_processes_along() -> None:
    assert settings_from({}, {"deadline_s": "4"}, {}).frozen_deadline_s == 4
    assert settings_from({}, {"deadline_s": "40"}, {}).frozen_deadline_s == 10
    with pytest.raises(Misuse, match="--deadline: 0"):
        settings_from({}, {"deadline_s": "0"}, {})
    with pytest.raises(Misuse, match="--frozen-deadline: 6 s is longer"):
        settings_from({}, {"deadline_s": "4", "frozen_deadline_s": "6"}, {})
