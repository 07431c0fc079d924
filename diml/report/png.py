"""The report of one run, or of several beside each other, as a picture for papers (`--png`).

Owns what is drawn and how. Needs matplotlib, which DiML does not require (`pip install
'diml[plots]'`). Must not know event logs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diml.errors import Misuse
from diml.report.run import Run

_COLOURS = ("#1f6feb", "#e07b00", "#1a8f5a", "#a347ba", "#0097a7", "#c2185b", "#7a6a00", "#5d6b7a")
_BAD = "#c62828"
_WIDTH_IN, _HEIGHT_IN, _DPI = 5.2, 3.2, 200


def draw(runs: Sequence[tuple[str, Run]], path: Path) -> None:
    """Draw all that the runs have in common; of a single run also who lived when.

    Raises Misuse if matplotlib is missing, if there is nothing to draw, and if the file cannot be
    written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Misuse("--png needs matplotlib: pip install 'diml[plots]'") from None
    panels = _panels(runs)
    if not panels:
        raise Misuse("--png: the runs have nothing in common that can be drawn")
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(_WIDTH_IN * across, _HEIGHT_IN * down), layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(down, across, place)
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes)
    try:
        figure.savefig(path, dpi=_DPI, format="png")
    except OSError as error:
        raise Misuse(f"--png {path}: {error.strerror}") from None


def _panels(runs: Sequence[tuple[str, Run]]) -> list[Callable[[Any], None]]:
    panels: list[Callable[[Any], None]] = []
    if len(runs) == 1:
        panels.append(partial(_lives, run=runs[0][1]))
    shared = [n for n in runs[0][1].series if all(n in run.series for _, run in runs)]
    panels += [partial(_curves, name=name, runs=runs) for name in shared]
    rates = [
        (name, {r: w.units / w.seconds for r, w in run.work.items() if w.seconds > 0})
        for name, run in runs
    ]
    unit = next((w.unit for _, run in runs for w in run.work.values() if w.unit), "units")
    shares = [
        (name, {r: 100 * w.waiting for r, w in run.work.items() if w.waiting is not None})
        for name, run in runs
    ]
    for title, values in ((f"throughput ({unit}/s)", rates), ("waiting (%)", shares)):
        if any(by_rank for _, by_rank in values):
            panels.append(partial(_bars, title=title, values=values))
    return panels


def _curves(axes: Any, name: str, runs: Sequence[tuple[str, Run]]) -> None:
    for number, (label, run) in enumerate(runs):
        times, values = zip(*run.series[name], strict=True)
        axes.plot(times, values, color=_COLOURS[number % len(_COLOURS)], label=label)
        for death in run.deaths:
            axes.axvline(death.time, color=_BAD, linestyle="--", linewidth=1)
    axes.set(xlabel="seconds since the start", ylabel=name)
    if len(runs) > 1:
        axes.legend(frameon=False)


def _lives(axes: Any, run: Run) -> None:
    names = list(
        dict.fromkeys(
            f"process {life.uid}" if life.role == "spare" else f"{life.role} {life.rank}"
            for life in run.lives
        )
    )
    for life in run.lives:
        spare = life.role == "spare"
        name = f"process {life.uid}" if spare else f"{life.role} {life.rank}"
        colour = _COLOURS[-1 if spare else life.incarnation % len(_COLOURS)]
        axes.barh(names.index(name), life.end - life.begin, left=life.begin, color=colour)
    for death in run.deaths:
        name = f"{death.life.role} {death.life.rank}"
        if name in names:
            axes.plot(death.time, names.index(name), "x", color=_BAD, markersize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the start")


def _bars(axes: Any, title: str, values: Sequence[tuple[str, dict[int, float]]]) -> None:
    width = 0.8 / len(values)
    for number, (label, by_rank) in enumerate(values):
        places = [rank + (number - (len(values) - 1) / 2) * width for rank in by_rank]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.bar(places, list(by_rank.values()), width, color=colour, label=label)
    axes.set(xlabel="worker", ylabel=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(values) > 1:
        axes.legend(frameon=False)
