"""The parameter server against its limit: `python bench/ps.py [PART ...]`.

Prints one table a part: messages, throughput, replication, idle, stragglers. The limit of get +
inc is the raw mpi4py ping-pong of the same bytes plus the bare gather and scatter kernels, all
measured in this run on this machine. Every figure is the least disturbed of several starts' rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PARTS = Path(__file__).with_name("ps_parts.py")
STARTS = 3
TIMEOUT_S = 120


def _once(n: int, part: str, *args: int, **env: str) -> dict[str, float]:
    """One start of a part; the numbers that it prints."""
    mpirun = Path(sys.executable).with_name("mpirun")
    given = {
        **os.environ,
        **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "NUMBA")},
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONPATH": str(PARTS.parent.parent),
        "DIML_QUIET": "1",
        **env,
    }
    command = [str(mpirun), "-n", str(n), sys.executable, str(PARTS), part, *map(str, args)]
    done = subprocess.run(
        command, env=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{part} on {n} ranks gave nothing:\n{done.stdout}\n{done.stderr}")
    numbers: dict[str, float] = json.loads(lines[-1])
    return numbers


def _best(n: int, part: str, *args: int, **env: str) -> dict[str, float]:
    """Each number's best over several starts: the least time, the highest rate."""
    runs = [_once(n, part, *args, **env) for _ in range(STARTS)]
    return {
        name: (max if name.endswith("per_s") else min)(run[name] for run in runs)
        for name in runs[0]
    }


def _line(what: str, value: str, ratio: str, target: str) -> None:
    print(f"  {what:<44} {value:>16} {ratio:>10}   {target}", flush=True)


def messages() -> None:
    """One worker, one server."""
    print("get + inc + clock, one worker, one server, rows of 32 float32")
    for rows, target in ((100, "at most 3.0 of the messages"), (10_000, "at least 0.70")):
        bare = _best(2, "raw", rows)
        limit = sum(bare.values())
        _line(f"{rows} rows: raw messages", f"{bare['message_us']:.0f} us", "", "")
        _line(f"{rows} rows: with gather and scatter", f"{limit:.0f} us", "1.00", "the limit")
        for staleness in (0, 1):
            step_us = _best(2, "table", rows, staleness, DIML_SERVERS="1")["step_us"]
            ratio = limit / step_us if rows > 1000 else step_us / bare["message_us"]
            _line(
                f"{rows} rows: staleness {staleness}", f"{step_us:.0f} us", f"{ratio:.2f}", target
            )


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
    rate = _best(3, "table", 10_000, 1, DIML_SERVERS="1")["updates_per_s"] / 1e6
    _line("staleness 1", f"{rate:.2f} M/s", "", "at least 15 M/s")


def replication() -> None:
    """The same with and without a replica."""
    print("replication, one worker, one server, 10,000 rows of 32 float32 a clock")
    env = {"DIML_SERVERS": "1", "DIML_SPARES": "1"}
    without = _best(3, "table", 10_000, 0, DIML_PS_REPLICAS="0", **env)["step_us"]
    with_one = _best(3, "table", 10_000, 0, **env)["step_us"]
    _line("off", f"{without:.0f} us", "1.00", "")
    _line("on", f"{with_one:.0f} us", f"{with_one / without:.2f}", "at most 1.25")


def idle() -> None:
    """What waiting processes cost those that compute on the same cores."""
    print("pure compute on two workers, beside processes that wait")
    alone = _best(2, "compute", 2, DIML_SERVERS="0")["passes_per_s"]
    _line("alone", f"{alone:.0f} passes/s", "1.00", "")
    for what, env in (
        ("beside a server", {"DIML_SERVERS": "1"}),
        ("beside a server and its standby", {"DIML_SERVERS": "1", "DIML_SPARES": "1"}),
    ):
        rate = _best(1 + 1 + len(env), "compute", 2, 1, **env)["passes_per_s"]
        _line(what, f"{rate:.0f} passes/s", f"{rate / alone:.2f}", "at least 0.95")


def stragglers() -> None:
    """SSP against BSP where one worker at a time is slow."""
    print("60 clocks on three workers, one of them held up tenfold in each clock")
    bsp = _best(4, "stragglers", 0, DIML_SERVERS="1")["seconds"]
    _line("bsp", f"{bsp:.2f} s", "1.00", "")
    ssp = _best(4, "stragglers", 3, DIML_SERVERS="1")["seconds"]
    _line("ssp(3)", f"{ssp:.2f} s", f"{ssp / bsp:.2f}", "at most 0.60")


def main() -> None:
    """Run the parts that are named, or all."""
    parts = (messages, throughput, replication, idle, stragglers)
    named = [part for part in parts if part.__name__ in sys.argv[1:]] or parts
    for part in named:
        part()


if __name__ == "__main__":
    main()
