"""The parameter server against its limit.

    python bench/ps.py [PART ...] [--quick] [--allow-missing]

Prints one table a part: messages, throughput, replication, idle, stragglers. The limit of get +
inc is the raw mpi4py ping-pong of the same bytes, with the settings of MPI that DiML makes, plus
the bare gather and scatter kernels, all measured in this run on this machine. Every figure is the
least disturbed of several starts' rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

PARTS = Path(__file__).with_name("ps_parts.py")
TIMEOUT_S = 120
QUICK = False
SERVER = {"DIML_SERVERS": "1"}
STANDBY = {**SERVER, "DIML_SPARES": "1"}
WITHOUT = {**STANDBY, "DIML_PS_REPLICAS": "0"}


class Start(NamedTuple):
    """A part of bench/ps_parts.py on so many ranks."""

    ranks: int
    part: str
    args: tuple[int, ...]
    env: Mapping[str, str] = {}


def _once(start: Start) -> dict[str, float]:
    """The numbers that a start prints."""
    mpirun = Path(sys.executable).with_name("mpirun")
    given = {
        **os.environ,
        **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "NUMBA")},
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": str(PARTS.parent.parent),
        "DIML_QUIET": "1",
        **start.env,
    }
    command = [str(mpirun), "-n", str(start.ranks), sys.executable, str(PARTS), start.part]
    done = subprocess.run(
        [*command, *map(str, start.args)],
        env=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{' '.join(command)} gave nothing:\n{done.stdout}\n{done.stderr}")
    numbers: dict[str, float] = json.loads(lines[-1])
    return numbers


def _best(*starts: Start, rounds: int = 3) -> list[dict[str, float]]:
    """Each number's best over several rounds of these starts: the least time, the highest rate.
    They take turns, so that a machine that others use too disturbs all of them alike."""
    runs = [
        [_once(start) for start in starts] for _ in range((rounds + 1) // 3 if QUICK else rounds)
    ]
    return [
        {
            name: (max if name.endswith("per_s") else min)(number[name] for number in numbers)
            for name in numbers[0]
        }
        for numbers in zip(*runs, strict=True)
    ]


def _line(what: str, value: str, ratio: str, target: str) -> None:
    print(f"  {what:<50} {value:>16} {ratio:>10}   {target}", flush=True)


def messages() -> None:
    """One worker, one server."""
    print("get + inc + clock, one worker, one server, rows of 32 float32")
    for rows, target in ((100, "at most 3.0 of the messages"), (10_000, "at least 0.70")):
        default, bare, *runs = _best(
            *(Start(2, "raw", (rows, as_diml)) for as_diml in (0, 1)),
            *(Start(2, "table", (rows, staleness), SERVER) for staleness in (0, 1)),
            # A host may move a virtual machine's cores between places that are near to each other
            # and far apart, from one start to the next: a message takes three times as long there.
            rounds=5,
        )
        hand_us = bare.pop("hand_us")
        limit, alone = sum(bare.values()), bare["message_us"]
        default_us = default["message_us"]
        _line(f"{rows} rows: raw messages, MPI set as DiML sets it", f"{alone:.1f} us", "", "")
        _line(f"{rows} rows: raw messages, Open MPI's settings", f"{default_us:.1f} us", "", "")
        _line(f"{rows} rows: with gather and scatter", f"{limit:.0f} us", "1.00", "the limit")
        _line(f"{rows} rows: both by hand in one loop", f"{hand_us:.0f} us", "", "")
        for staleness, run in enumerate(runs):
            step_us = run["step_us"]
            ratio = limit / step_us if rows > 1000 else step_us / alone
            by_hand = hand_us / step_us if rows > 1000 else step_us / hand_us
            what = f"{rows} rows: staleness {staleness}"
            _line(what, f"{step_us:.0f} us", f"{ratio:.2f}", f"{target}; {by_hand:.2f} of by hand")


def throughput() -> None:
    """Two workers, one server."""
    print("row updates a second, two workers, one server, 10,000 rows of 32 float32 a clock")
    source = np.ones(1 << 25, np.float32)
    copy = np.empty_like(source)
    begun = time.perf_counter()
    for _ in range(5):
        np.copyto(copy, source)
    bandwidth = 5 * 2 * source.nbytes / (time.perf_counter() - begun) / 1e9
    _line("memory bandwidth of a copy (read + write)", f"{bandwidth:.1f} GB/s", "", "")
    (run,) = _best(Start(3, "table", (10_000, 1), SERVER))
    _line("staleness 1", f"{run['updates_per_s'] / 1e6:.2f} M/s", "", "at least 15 M/s")


def replication() -> None:
    """The same with and without a replica."""
    print("replication, one worker, one server, rows of 32 float32")
    small = _best(*(Start(3, "table", (100, 1), env) for env in (WITHOUT, STANDBY)))
    *large, alone, whole, pieces = _best(
        *(Start(3, "table", (10_000, 0), env) for env in (WITHOUT, STANDBY)),
        *(Start(3, "replicated", (10_000, how)) for how in range(3)),
    )
    for rows, runs, target in (("100", small, ""), ("10,000", large, "at most 1.25")):
        off_us, on_us = (run["step_us"] for run in runs)
        _line(f"{rows} rows a clock: off", f"{off_us:.1f} us", "1.00", "")
        _line(f"{rows} rows a clock: on", f"{on_us:.1f} us", f"{on_us / off_us:.2f}", target)
    alone_us = alone["step_us"]
    _line("by hand in one loop: off", f"{alone_us:.1f} us", "1.00", "")
    for how, run in (("whole", whole), ("piece by piece", pieces)):
        what, step_us = f"replication by hand in one loop, forwarded {how}", run["step_us"]
        _line(what, f"{step_us:.1f} us", f"{step_us / alone_us:.2f}", "")


def idle() -> None:
    """What waiting processes cost those that compute on the same cores."""
    print("pure compute on two workers, beside processes that wait")
    seconds = 1 if QUICK else 2
    alone, server, standby = (
        run["passes_per_s"]
        for run in _best(
            Start(2, "compute", (seconds,), {"DIML_SERVERS": "0"}),
            Start(3, "compute", (seconds, 1), SERVER),
            Start(4, "compute", (seconds, 1), STANDBY),
        )
    )
    _line("alone", f"{alone:.0f} passes/s", "1.00", "")
    for what, rate in (("a server", server), ("a server and its standby", standby)):
        _line(f"beside {what}", f"{rate:.0f} passes/s", f"{rate / alone:.2f}", "at least 0.95")


def stragglers() -> None:
    """SSP against BSP where one worker at a time is slow."""
    clocks = 20 if QUICK else 60
    print(f"{clocks} clocks on three workers, one of them held up tenfold in each clock")
    bsp, ssp = (
        run["seconds"]
        for run in _best(
            *(Start(4, "stragglers", (staleness, clocks), SERVER) for staleness in (0, 3))
        )
    )
    _line("bsp", f"{bsp:.2f} s", "1.00", "")
    _line("ssp(3)", f"{ssp:.2f} s", f"{ssp / bsp:.2f}", "at most 0.60")


def main() -> int:
    """The command line; 0 whatever was measured."""
    global QUICK
    parts = {part.__name__: part for part in (messages, throughput, replication, idle, stragglers)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--quick", action="store_true", help="each start once; under a minute")
    parser.add_argument("--allow-missing", action="store_true", help="there are no peers")
    flags = parser.parse_args()
    if unknown := [name for name in flags.parts if name not in parts]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    QUICK = flags.quick
    for name in flags.parts or parts:
        parts[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
