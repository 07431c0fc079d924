"""Plots as inline SVG text: lines over time, bars, lives of processes.

Pure: numbers and words in, markup out. Must not know runs or pages. Invariants: every text is
escaped; colours are the page's CSS variables (--ink, --faint, --c0 .. --c7, --bad), so that one
picture is right in light and in dark; nothing is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeAlias

Points: TypeAlias = Sequence[tuple[float, float]]

# A plot's own units; narrow enough that its letters can still be read on a telephone.
_WIDTH, _HEIGHT = 420.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 14.0, 34.0
_COLOURS = 8


def colour(number: int) -> str:
    """The CSS colour of the series of that number; they repeat after eight."""
    return f"var(--c{number % _COLOURS})"


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that lie in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as short as a label must be: 0.325, 12k, 2.4M."""
    size = abs(value)
    for least, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= least:
            scale = 1e3 if letter == "k" else least
            return f"{value / scale:.3g}{letter}"
    return f"{value:.6g}"


def size(nbytes: float) -> str:
    """Bytes as a label: 17 B, 44.4 MB."""
    for least, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= least:
            return f"{nbytes / least:.3g} {unit}"
    return f"{nbytes:.0f} B"


def lines(
    title: str, series: Mapping[str, Points], x_label: str, marks: Sequence[tuple[float, str]] = ()
) -> str:
    """Curves over a common x axis; `marks` are upright lines with the words of their tooltip."""
    points = [p for curve in series.values() for p in curve]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x0, x1 = min([*xs, 0.0]), max(xs + [x for x, _ in marks])
    y0, y1 = min(ys), max(ys)
    y0, y1 = (y0 - abs(y0) * 0.05 - 1e-12, y1 + abs(y1) * 0.05 + 1e-12) if y0 == y1 else (y0, y1)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        return _LEFT + across * wide, _TOP + (1 - (y - y0) / (y1 - y0)) * tall

    parts = []
    for y in ticks(y0, y1):
        _, v = at(x0, y)
        parts.append(f'<path class="grid" d="M{_LEFT} {v:.1f}h{wide}"/>')
        parts.append(_text(_LEFT - 6, v + 4, number(y), "end"))
    for x in ticks(x0, x1):
        u, _ = at(x, y0)
        parts.append(_text(u, _HEIGHT - _BOTTOM + 16, number(x), "middle"))
    parts.append(_text(_LEFT + wide / 2, _HEIGHT - 3, x_label, "middle"))
    for x, words in marks:
        u, _ = at(x, y0)
        mark = f'<path class="death" d="M{u:.1f} {_TOP}v{tall}"/>'
        parts.append(f"<g><title>{escape(words)}</title>{mark}</g>")
    for index, (name, curve) in enumerate(series.items()):
        path = "L".join(f"{u:.1f} {v:.1f}" for u, v in (at(x, y) for x, y in thinned(curve)))
        line = f'<path class="line" style="stroke:{colour(index)}" d="M{path}"/>'
        parts.append(f"<g><title>{escape(name)}</title>{line}</g>")
    return _figure(title, parts, _HEIGHT, [*series] if len(series) > 1 else [])


def bars(
    title: str, values: Mapping[str, float], text: Mapping[str, str], most: float | None = None
) -> str:
    """One bar a name, lying, with its text behind it; `most` is the length of a whole bar."""
    if not values:
        return ""
    row, left, right = 26.0, 86.0, 78.0
    top = most if most is not None else max(values.values())
    wide = _WIDTH - left - right
    parts = []
    for index, (name, value) in enumerate(values.items()):
        y = 6 + index * row
        length = max(1.0, wide * value / top) if top > 0 else 1.0
        parts.append(_text(left - 8, y + 15, name, "end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="18" rx="3"'
            f' style="fill:{colour(0)}"><title>{escape(name)}: {escape(text[name])}</title></rect>'
        )
        parts.append(_text(left + length + 6, y + 15, text[name], "start"))
    return _figure(title, parts, 12 + row * len(values), [])


def timeline(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[float, float, int, str]]]],
    deaths: Sequence[tuple[str, float, str]],
    repairs: Sequence[tuple[float, float, str]],
    seconds: float,
) -> str:
    """Lives of processes by seat.

    Args:
        rows: a seat's name, and its lives as (begin, end, colour number, words).
        deaths: (seat, time, words), drawn as crosses.
        repairs: (begin, end, words), drawn through all rows.
        seconds: length of the whole.
    """
    row, label = 30.0, 92.0
    height = 14 + row * len(rows) + 34
    span = seconds or 1.0
    wide = _WIDTH - label - _RIGHT

    def at(time: float) -> float:
        return label + wide * min(max(time / span, 0.0), 1.0)

    parts = []
    for begin, end, words in repairs:
        width = max(2.0, at(end) - at(begin))
        parts.append(
            f'<rect class="repair" x="{at(begin):.1f}" y="6" width="{width:.1f}"'
            f' height="{row * len(rows) + 4}"><title>{escape(words)}</title></rect>'
        )
    for index, (name, lives) in enumerate(rows):
        y = 12 + index * row
        parts.append(_text(label - 8, y + 14, name, "end"))
        for begin, end, shade, words in lives:
            width = max(1.5, at(end) - at(begin))
            parts.append(
                f'<rect x="{at(begin):.1f}" y="{y}" width="{width:.1f}" height="18" rx="3"'
                f' style="fill:{colour(shade)}"><title>{escape(words)}</title></rect>'
            )
        for seat, time, words in deaths:
            if seat == name:
                cross = f"M{at(time) - 6:.1f} {y + 3}l12 12m0-12l-12 12"
                parts.append(
                    f'<g><title>{escape(words)}</title><path class="cross" d="{cross}"/></g>'
                )
    for time in ticks(0.0, span):
        parts.append(_text(at(time), height - 18, number(time), "middle"))
    parts.append(_text(label + wide / 2, height - 3, "seconds since the start", "middle"))
    return _figure(title, parts, height, [])


def thinned(curve: Points, most: int = 400) -> Points:
    """At most about so many points of a curve, the ends among them."""
    if len(curve) <= most:
        return curve
    step = (len(curve) - 1) / (most - 1)
    return [curve[round(n * step)] for n in range(most)]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _figure(title: str, parts: Sequence[str], height: float, legend: Sequence[str]) -> str:
    names = "".join(
        f'<span><i style="background:{colour(n)}"></i>{escape(name)}</span>'
        for n, name in enumerate(legend)
    )
    below = f'<div class="legend">{names}</div>' if names else ""
    head = f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}">'
    body = "".join(parts)
    return f"<figure><figcaption>{escape(title)}</figcaption>{head}{body}</svg>{below}</figure>"
