"""The report as one HTML page that needs nothing else: no scripts, nothing fetched.

Owns the words and the order of what is shown, for one run or for several beside each other. Must
not know files. Light and dark follow the reader's system; on a narrow screen the plots stand one
below the other.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from diml.report import svg
from diml.report.run import Death, Life, Run, span, told

_BINS = 12  # bars of a histogram, at most
_STYLE = """
:root { color-scheme: light dark; --page:#fff; --card:#f6f7f9; --ink:#1c2330; --soft:#5a6475;
  --faint:#d5dae2; --bad:#c62828; --c0:#1f6feb; --c1:#e07b00; --c2:#1a8f5a; --c3:#a347ba;
  --c4:#0097a7; --c5:#c2185b; --c6:#7a6a00; --c7:#5d6b7a; }
@media (prefers-color-scheme: dark) { :root { --page:#12161d; --card:#1b212b; --ink:#e6e9ef;
  --soft:#a1abba; --faint:#39424f; --bad:#ff6b6b; --c0:#6cb0ff; --c1:#ffb055; --c2:#5fd39b;
  --c3:#d79bea; --c4:#55d0de; --c5:#ff86b3; --c6:#d8c65a; --c7:#a3b1c2; } }
* { box-sizing: border-box; }
body { margin:0 auto; max-width:1000px; padding:16px; background:var(--page); color:var(--ink);
  font:16px/1.5 system-ui, sans-serif; overflow-wrap:anywhere; }
h1 { font-size:1.5rem; margin:.2em 0; } h2 { font-size:1.15rem; margin:1.6em 0 .5em; }
.soft { color:var(--soft); }
.plots, .beside { display:grid; gap:16px; align-items:start;
  grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr)); }
figure { margin:0; padding:12px; background:var(--card); border-radius:8px; }
figcaption { font-weight:600; margin-bottom:6px; }
svg { width:100%; height:auto; display:block; }
svg text { font:12px system-ui, sans-serif; fill:var(--soft); }
.grid { stroke:var(--faint); fill:none; }
.line { fill:none; stroke-width:2; stroke-linejoin:round; }
.death { stroke:var(--bad); stroke-dasharray:4 3; fill:none; stroke-width:1.5; }
.cross { stroke:var(--bad); stroke-width:3; fill:none; }
.repair { fill:var(--bad); opacity:.28; }
.legend span { margin-right:14px; font-size:.85rem; } .legend i { display:inline-block; width:10px;
  height:10px; border-radius:2px; margin-right:5px; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; font-size:.92rem; }
th, td { text-align:left; padding:4px 14px 4px 0; border-bottom:1px solid var(--faint);
  vertical-align:top; } th { white-space:nowrap; } .account td { overflow-wrap:normal; }
.account td:nth-child(5) { min-width:14em; } .beside td:first-child { overflow-wrap:normal; }
"""


def page(run: Run, source: str) -> str:
    """The report of one run. `source` names its event log."""
    marks = [(death.time, told(death)) for death in run.deaths]
    curves = [
        svg.lines(name, {name: points}, "seconds since the start", marks)
        for name, points in run.series.items()
    ]
    plots = [*curves, _throughput(run), _waiting(run), _sent(run), _staleness(run)]
    body = [
        f"<h1>{escape(title_of(run))}</h1>",
        f'<p class="soft">{escape(_summary(run))}</p>',
        '<div class="plots">',
        _timeline(run),
        *plots,
        "</div>",
        "<h2>What happened</h2>",
        _story(run),
        f'<div class="beside">{_settings(run)}{_environment(run, source)}</div>',
    ]
    return _document(title_of(run), body)


def comparison(runs: Sequence[tuple[str, Run]]) -> str:
    """Several runs beside each other; each comes with its name."""
    names = [name for name, _ in runs]
    shared = [n for n in runs[0][1].series if all(n in run.series for _, run in runs)]
    plots = [
        svg.lines(n, {name: run.series[n] for name, run in runs}, "seconds since the start")
        for n in shared
    ]
    rows = [[label, *cells] for label, cells in facts(runs)]
    body = [
        f"<h1>{escape(' and '.join(names))}</h1>",
        table(["", *names], rows),
        '<h2>Over time</h2><div class="plots">' if plots else "<div>",
        *plots,
        "</div>",
        "<h2>What differs in the settings</h2>",
        _differences(runs),
    ]
    return _document(" and ".join(names), body)


def facts(runs: Sequence[tuple[str, Run]]) -> list[tuple[str, list[str]]]:
    """What can be said of each run in a few words, by label."""
    last: dict[str, list[str]] = {}
    for name in dict.fromkeys(n for _, run in runs for n in run.series):
        values = [run.series.get(name) for _, run in runs]
        last[f"last {name}"] = [f"{v[-1][1]:.6g}" if v else "-" for v in values]
    return [
        ("wall time", [span(run.seconds) for _, run in runs]),
        ("workers", [str(run.workers) for _, run in runs]),
        *last.items(),
        ("bytes sent", [svg.size(sum(run.sent.values())) for _, run in runs]),
        ("waiting share", [_share(mean_waiting(run)) for _, run in runs]),
        ("deaths", [str(len(run.deaths)) for _, run in runs]),
        ("in repairs", [span(sum(d.repair_s for d in run.deaths)) for _, run in runs]),
        ("ended in good order", ["yes" if run.finished else "no" for _, run in runs]),
    ]


def mean_waiting(run: Run) -> float | None:
    """The share of their time that workers waited, over all that know it."""
    known = [work.waiting for work in run.work.values() if work.waiting is not None]
    return sum(known) / len(known) if known else None


def title_of(run: Run) -> str:
    """The command without its path, or the run's number."""
    command = run.about.get("command")
    if not command:
        return f"run {run.name}"
    program = str(command[0])
    if "/diml/jobs/" in program:
        return "diml.jobs." + program.rsplit("/", 1)[1].removesuffix(".py")
    return program.rsplit("/", 1)[-1]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _summary(run: Run) -> str:
    began = datetime.datetime.fromtimestamp(run.began).astimezone()
    words = [f"{began:%Y-%m-%d %H:%M:%S %Z}", f"{span(run.seconds)} of wall time"]
    seats = {life.seat for life in run.lives if life.role != "spare"}
    for role in ("worker", "server"):
        count = sum(seat[0] == role for seat in seats)
        if count:
            words.append(f"{count} {role}{'s' * (count != 1)}")
    spares = len({life.uid for life in run.lives if life.role == "spare" and life.begin < 1.0})
    if spares:
        words.append(f"{spares} spare{'s' * (spares != 1)} at the start")
    words.append(f"{len(run.deaths)} death{'s' * (len(run.deaths) != 1)}")
    if run.of > 1:
        words.append(f"run {run.number} of the {run.of} in its log")
    if not run.finished:
        words.append("did not end in good order")
    return ", ".join(words)


def _row_name(life: Life) -> str:
    return f"process {life.uid}" if life.role == "spare" else f"{life.role} {life.rank}"


def _timeline(run: Run) -> str:
    rows: dict[str, list[tuple[float, float, int, str]]] = {}
    for life in run.lives:
        shade = 7 if life.role == "spare" else life.incarnation
        waits = "waits as a spare" if life.role == "spare" else f"life {life.incarnation + 1}"
        words = f"process {life.uid}, {waits}: {life.begin:.2f} s to {life.end:.2f} s"
        rows.setdefault(_row_name(life), []).append((life.begin, life.end, shade, words))
    crosses = [(_row_name(d.life), d.time, told(d)) for d in run.deaths]
    repairs = [
        (death.repaired - death.repair_s, death.repaired, f"repair: {span(death.repair_s)}")
        for death in run.deaths
    ]
    return svg.timeline("Who lived when", list(rows.items()), crosses, repairs, run.seconds)


def _throughput(run: Run) -> str:
    rates = {f"worker {r}": w.units / w.seconds for r, w in run.work.items() if w.seconds > 0}
    units = {w.unit for w in run.work.values() if w.unit}
    text = {name: f"{svg.number(rate)}/s" for name, rate in rates.items()}
    return svg.bars(f"Throughput ({', '.join(sorted(units))} a second)", rates, text)


def _waiting(run: Run) -> str:
    shares = {f"worker {r}": w.waiting for r, w in run.work.items() if w.waiting is not None}
    text = {name: _share(share) for name, share in shares.items()}
    return svg.bars("Share of the time spent waiting", shares, text, most=1.0)


def _sent(run: Run) -> str:
    sent = {f"{role} {rank}": float(nbytes) for (role, rank), nbytes in run.sent.items()}
    text = {name: svg.size(nbytes) for name, nbytes in sent.items()}
    return svg.bars("Bytes sent", sent, text)


def _staleness(run: Run) -> str:
    reads = {f"{span} clocks": float(n) for span, n in binned(run.staleness).items()}
    text = {name: svg.number(n) for name, n in reads.items()}
    bound = "none" if run.bound is None else str(run.bound)
    return svg.bars(f"Staleness of reads (bound: {bound})", reads, text)


def binned(counts: Mapping[int, int]) -> dict[str, int]:
    """Counts by whole number, in their order; where there are many, by spans: 0, 1, 2-3, 4-7."""
    if len(counts) <= _BINS:
        return {str(value): counts[value] for value in sorted(counts)}
    spans: dict[str, int] = {}
    for value in sorted(counts):
        low = 1 << value.bit_length() - 1 if value else 0
        name = str(low) if low < 2 else f"{low}-{2 * low - 1}"
        spans[name] = spans.get(name, 0) + counts[value]
    return spans


def _story(run: Run) -> str:
    if not run.deaths:
        return "<p>Nobody died.</p>"
    items = "".join(f"<li>{escape(told(death))}</li>" for death in run.deaths)
    rows = [_death_row(death) for death in run.deaths]
    head = ["who", "died at", "noticed", "repair", "phases", "load", "together again"]
    return f'<ol>{items}</ol><div class="account">{table(head, rows)}</div>'


def _death_row(death: Death) -> list[str]:
    def time(seconds: float | None) -> str:
        return "-" if seconds is None else span(seconds)

    after = None if death.together is None else death.together - death.time
    phases = ", ".join(f"{name} {span(s)}" for name, s in death.phases.items())
    return [
        _row_name(death.life), f"{death.time:.2f} s", time(death.noticed_s),
        time(death.repair_s), phases, time(death.load_s), time(after),
    ]  # fmt: skip


def _settings(run: Run) -> str:
    settings: Mapping[str, Any] = run.about.get("settings", {})
    if not settings:
        return ""
    rows = [[name, _plain(value)] for name, value in settings.items()]
    return f"<section><h2>Settings</h2>{table(['', ''], rows)}</section>"


def _environment(run: Run, source: str) -> str:
    rows = [["hosts", ", ".join(run.hosts)], ["run", run.name], ["event log", source]]
    if "command" in run.about:
        rows.insert(0, ["command", shlex.join(map(str, run.about["command"]))])
    if "cores" in run.about:
        rows.append(["cores of the first host", str(run.about["cores"])])
    rows += [[name, str(value)] for name, value in run.about.get("versions", {}).items()]
    return f"<section><h2>Environment</h2>{table(['', ''], rows)}</section>"


def _differences(runs: Sequence[tuple[str, Run]]) -> str:
    every = [run.about.get("settings", {}) for _, run in runs]
    names = dict.fromkeys(name for settings in every for name in settings)
    rows = []
    for name in names:
        cells = [_plain(settings.get(name)) for settings in every]
        if len(set(cells)) > 1:
            rows.append([name, *cells])
    return table(["", *(n for n, _ in runs)], rows) if rows else "<p>Nothing.</p>"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "-"
    if isinstance(value, Mapping):
        return ",".join(_plain(item) for item in value.values())
    return str(value)


def _document(title: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - DiML report</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
