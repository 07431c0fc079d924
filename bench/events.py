"""What the event log costs: the time of an event, and its share of a real run.

    python bench/events.py [--quick] [--allow-missing]

The share is events a second and process in a run of each job, times the time of one event. Target:
1 % at most. Exits with 1 where it is missed (not with --quick). There is no peer.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from diml.events import EventLog, read_events
from diml.world.doctor import find_launcher

TARGET = 0.01
JOBS = {
    "mf": ["-m", "diml.jobs.mf", "--generate", "--K", "8", "--update", "adagrad", "--servers", "1"],
    "kmeans": ["-m", "diml.jobs.kmeans", "--generate", "400000", "--tolerance", "0"],
}


def microseconds_an_event(rounds: int) -> float:
    """Median over so many rounds of 2,000 events of a usual size."""
    with tempfile.TemporaryDirectory() as scratch:
        log = EventLog(Path(scratch) / "log.jsonl", run="bench", uid=0)
        values = {"objective": 0.325, "test loss": 0.324, "test accuracy": 0.85}
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            for done in range(2000):
                log("progress", done=done, total=2000, values=values)
            times.append((time.perf_counter() - begun) / 2000 * 1e6)
        log.close()
    return statistics.median(times)


def events_a_second(job: list[str], iterations: int) -> float:
    """Of the process that writes most, in a run on two workers."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log.jsonl"
        processes = "3" if "--servers" in job else "2"
        words = [*job, "--num_iterations", str(iterations), "--events", str(log), "--quiet"]
        command = [str(find_launcher()), "-n", processes, sys.executable, *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=80)
        events = read_events(log)
    training = [e["time"] for e in events if e["what"] == "progress"]
    seconds = max(training) - min(training)
    during = Counter(e["uid"] for e in events if min(training) <= e["time"] <= max(training))
    return max(during.values()) / seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    parser.add_argument("--allow-missing", action="store_true", help="there is no peer")
    flags = parser.parse_args()
    cost = microseconds_an_event(5 if flags.quick else 20)
    print(f"one event: {cost:.1f} us (median)")
    print(f"{'job':<8} {'events/s':>9} {'share':>8}  (target: 1 % at most)")
    met = True
    for name, job in JOBS.items():
        rate = events_a_second(job, 20 if flags.quick else 60)
        share = rate * cost * 1e-6
        met &= share <= TARGET
        print(f"{name:<8} {rate:9.1f} {100 * share:7.3f} %")
    sys.exit(0 if met or flags.quick else 1)


if __name__ == "__main__":
    main()
