"""The settings of a run: frozen, validated, each with its unit in its name.

Owns what can be set, how it is spelled as a flag and as a variable, the defaults, and the order
of precedence: flag > environment (DIML_*; an empty one is unset) > argument of `diml.init` >
default. Pure: the environment and the flags come as arguments. Must not know jobs, whose own
flags are theirs, nor the number of ranks: what needs it is checked where the ranks are known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from diml.drill import Drill, parse_drills
from diml.errors import Misuse

RESUME = ("auto", "never", "must")
ON_FAILURE = ("spare", "respawn", "shrink", "stop")


class _Invalid(Misuse):
    """A setting that cannot be: its name apart from the reason, so that its source can be named."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}")
        self.setting, self.reason = setting, reason


@dataclass(frozen=True)
class Settings:
    """What a run was told. Raises Misuse when values or relations between them are impossible."""

    spares: int | Literal["auto"] = "auto"
    """Of mpirun's n, processes that wait for a death. "auto" takes none, and spawns one later."""
    servers: int | None = None
    """Of mpirun's n, processes that hold parameters. None: the job's own default."""
    seed: int = 0
    checkpoint_dir: Path | None = None
    """Where durable checkpoints go. None: state is kept in memory only."""
    checkpoint_every_s: float = 30.0
    """A durable checkpoint is made at the first commit after so many seconds."""
    keep: int = 2
    """Whole versions that stay in the checkpoint directory."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on from a durable checkpoint if there is one; never; or fail without one."""
    drills: tuple[Drill, ...] = ()
    events: Path | None = None
    """File of the event log (JSON lines)."""
    tensorboard: Path | None = None
    """Directory for TensorBoard's event files."""
    prometheus: Path | None = None
    """Text file for Prometheus's textfile collector."""
    quiet: bool = False
    on_failure: Literal["spare", "respawn", "shrink", "stop"] = "respawn"
    """How far a gap may be filled: by spares only; else by new processes; else by going on with
    fewer ranks, where the job can. "stop" leaves at once, to be resumed (exit status 75)."""
    replicas: int = 2
    """Ranks that hold a copy of each rank's local state; as many adjacent deaths are survived."""
    ps_replicas: int = 1
    """Copies of each server's rows on other processes."""
    deadline_s: float = 1800.0
    """A rank is late when it reaches a call so long after its first peer, and is replaced."""
    frozen_deadline_s: float = 10.0
    """A process that the operating system has stopped for so long is killed and replaced."""
    repair_deadline_s: float = 120.0
    """A repair that takes longer is given up."""
    log_budget_bytes: int = 1 << 30
    """Memory of a rank for the results since the last checkpoint."""
    check: bool = False
    """Compare the signatures of all ranks before each collective (slow; finds a divergence)."""

    def __post_init__(self) -> None:
        for name in ("servers", "seed", "replicas", "ps_replicas"):
            _at_least(name, getattr(self, name), 0)
        if self.spares != "auto":
            _at_least("spares", self.spares, 0)
        for name in ("log_budget_bytes", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("checkpoint_every_s", "deadline_s", "frozen_deadline_s", "repair_deadline_s"):
            seconds = getattr(self, name)
            if not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
                raise _Invalid(name, f"{seconds!r} is not a positive number of seconds")
        for name, words in (("resume", RESUME), ("on_failure", ON_FAILURE)):
            if getattr(self, name) not in words:
                raise _Invalid(name, f"{getattr(self, name)!r} is none of {', '.join(words)}")
        if self.resume == "must" and self.checkpoint_dir is None:
            raise _Invalid("resume", "'must' needs a checkpoint directory (--checkpoint-dir)")
        if self.frozen_deadline_s > self.deadline_s:
            reason = f"{self.frozen_deadline_s:g} s is longer than the deadline for late ranks"
            raise _Invalid("frozen_deadline_s", f"{reason}, {self.deadline_s:g} s")


@dataclass(frozen=True)
class Option:
    """How one setting is spelled. `read` makes the value of a text, or raises ValueError."""

    setting: str
    read: Callable[[str], Any]
    metavar: str
    help: str
    everyday: bool = False
    """Everyday flags come first in --help, the others in a group of their own."""

    @property
    def name(self) -> str:
        """As flags and variables have it: one drill a flag; the unit stands in the help."""
        return "drill" if self.setting == "drills" else self.setting.removesuffix("_s")

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "DIML_" + self.name.upper()


def settings_from(
    env: Mapping[str, str], flags: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Settings:
    """Settle every setting: flag > variable > argument of diml.init > default.

    `flags` are values by setting name (`vars` of a parsed command line will do: None counts as
    not given, and names that are no settings are the job's own). `arguments` may hold values or
    their texts. Raises Misuse with one line that names the flag, variable or argument at fault.
    """
    unknown = [name for name in arguments if name not in _BY_SETTING]
    if unknown:
        known = ", ".join(sorted(_BY_SETTING))
        raise Misuse(f"diml.init has no argument {unknown[0]!r}; it has {known}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        given = _given(option, env, flags, arguments)
        if given is None:
            continue
        raw, source = given
        sources[option.setting] = source
        try:
            values[option.setting] = _value(option, raw)
        except (ValueError, Misuse) as error:
            raise Misuse(f"{source}: {error}") from None
    if "frozen_deadline_s" not in values and "deadline_s" in values:
        # Who sets the one low does not mean to be told of the other.
        values["frozen_deadline_s"] = min(Settings.frozen_deadline_s, values["deadline_s"])
    try:
        return Settings(**values)
    except _Invalid as error:
        raise Misuse(f"{sources.get(error.setting, error.setting)}: {error.reason}") from None


def _given(
    option: Option, env: Mapping[str, str], flags: Mapping[str, Any], arguments: Mapping[str, Any]
) -> tuple[Any, str] | None:
    """The value of an option as its first source has it, and that source's name."""
    if flags.get(option.setting) is not None:
        return flags[option.setting], option.flag
    if env.get(option.variable):
        return env[option.variable], option.variable
    if arguments.get(option.setting) is not None:
        return arguments[option.setting], f"diml.init({option.setting}=...)"
    return None


def _value(option: Option, raw: Any) -> Any:
    if option.setting == "drills" and not isinstance(raw, str) and isinstance(raw, Iterable):
        drills = [(item,) if isinstance(item, Drill) else parse_drills(item) for item in raw]
        return tuple(drill for group in drills for drill in group)
    return option.read(raw) if isinstance(raw, str) else _typed(option, raw)


def _typed(option: Option, raw: Any) -> Any:
    """A value that came as such: refused if it has another type than its text would give."""
    if option.read is _path and isinstance(raw, os.PathLike):
        return Path(raw)
    if option.read is _flag and isinstance(raw, bool):
        return raw
    if option.read in (_whole, _whole_or_auto) and isinstance(raw, int):
        return raw
    if option.read is _seconds and isinstance(raw, int | float):
        return float(raw)
    raise ValueError(f"{raw!r} is not {option.metavar}")


def _at_least(setting: str, value: object, least: int) -> None:
    if value is None and setting == "servers":
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _Invalid(setting, f"{value!r} is not a whole number from {least} on")


def _whole(text: str) -> int:
    if not re.fullmatch("-?[0-9]+", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _whole_or_auto(text: str) -> int | str:
    return text if text == "auto" else _whole(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of seconds") from None


def _path(text: str) -> Path:
    return Path(text)


def _flag(text: str) -> bool:
    truth = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in truth:
        raise ValueError(f"{text!r} is neither 1 nor 0")
    return truth[text.lower()]


OPTIONS = (
    Option("spares", _whole_or_auto, "S", "processes of mpirun's n that wait for a death", True),
    Option("servers", _whole, "S", "processes of mpirun's n that hold the parameters", True),
    Option("seed", _whole, "N", "start of all random numbers (default 0)", True),
    Option("checkpoint_dir", _path, "DIR", "keep durable checkpoints in this directory", True),
    Option("resume", str, "WHEN", "go on from a checkpoint: auto (default), never, must", True),
    Option("drills", parse_drills, "SPEC", "who dies when, to see it recover; repeatable", True),
    Option("events", _path, "FILE", "write an event log, one JSON line an event", True),
    Option("tensorboard", _path, "DIR", "write the progress for TensorBoard", True),
    Option("prometheus", _path, "FILE", "keep the newest numbers in a file for Prometheus", True),
    Option("quiet", _flag, "1 or 0", "print neither progress nor remarks", True),
    Option("checkpoint_every_s", _seconds, "SECONDS", "between durable checkpoints (default 30)"),
    Option("keep", _whole, "N", "whole durable checkpoints that stay (default 2)"),
    Option("on_failure", str, "HOW", "fill a gap by: spare, respawn (default), shrink; or stop"),
    Option("replicas", _whole, "K", "copies of a rank's local state on other ranks (default 2)"),
    Option("ps_replicas", _whole, "K", "copies of a server's rows on other processes (default 1)"),
    Option("deadline_s", _seconds, "SECONDS", "until a late rank is replaced (default 1800)"),
    Option("frozen_deadline_s", _seconds, "SECONDS", "until a stopped one is (default 10)"),
    Option("repair_deadline_s", _seconds, "SECONDS", "until a repair is given up (default 120)"),
    Option("log_budget_bytes", _whole, "BYTES", "for results since a checkpoint (default 1 GiB)"),
    Option("check", _flag, "1 or 0", "compare all ranks before each collective (slow)"),
)
_BY_SETTING = {option.setting: option for option in OPTIONS}
assert set(_BY_SETTING) == {field.name for field in fields(Settings)}
