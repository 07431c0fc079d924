"""What the logistic job's loss files hold."""

from __future__ import annotations

from pathlib import Path


def loss_lines(path: Path) -> list[list[str]]:
    """The cells by line, after the check that no time ever falls, not by a death either."""
    head, *lines = [line.split(",") for line in path.read_text().splitlines()]
    for name in ("seconds", "eval_seconds"):
        times = [float(line[head.index(name)]) for line in lines]
        assert times == sorted(times) and times[-1] > times[0], (name, times)
    return lines
