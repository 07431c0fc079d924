"""The Lasso beside scikit-learn, celer and skglm: time to a gap of 1e-6, paths, ranks, memory.

    python bench/lasso.py [--quick] [--data text-small ...] [--allow-missing]

Every answer is scored by one gap computed here from X, y and the coefficients; an answer above
1e-6·‖y‖²/n does not count. A peer whose tolerance means something else is run at falling tolerances
and its first good answer counts. Kernels are compiled before the clock starts, on all sides. Each
measurement is a process of its own, one thread, so that its peak memory is its own. Exit status: 0,
or 1 when a peer is missing (unless --allow-missing); a missed target does not change it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for _variable in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ[f"{_variable}_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# After the environment and the path are set.
import numpy as np  # noqa: E402
import scipy.sparse  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from diml.data import design_planted  # noqa: E402
from diml.data.design import read_design  # noqa: E402

Floats = NDArray[np.float64]
GOAL = 1e-6
RATIOS = (0.1, 0.02)
PEERS = {"sklearn": "sklearn", "celer": "celer", "skglm": "skglm"}
DATA: dict[str, Callable[[bool], design_planted.Planted]] = {
    "text-small": lambda quick: design_planted.text_like(nonzeros=620_000),
    "text-large": lambda quick: design_planted.text_like(
        nonzeros=2_000_000 if quick else 23_000_000
    ),
    "expression": lambda quick: design_planted.expression_like(),
    "tall": lambda quick: design_planted.tall(50_000 if quick else 500_000),
}


def gap_of(X: Any, y: Floats, coef: Floats, lam: float) -> float:
    """The duality gap of `coef` in units of ‖y‖²/n (no intercept)."""
    n = len(y)
    r = y - X @ coef
    top = np.abs(X.T @ r).max() / n
    s = min(1.0, lam / top)
    primal = r @ r / (2 * n) + lam * np.abs(coef).sum()
    return float((primal - (s * (r @ y) / n - s * s * (r @ r) / (2 * n))) / (y @ y / n))


def load(path: Path) -> tuple[Any, Floats]:
    """X and y as peers take them: CSC with 32-bit indices, or Fortran order."""
    with np.load(path) as held:
        if "X" in held:
            return np.asfortranarray(held["X"]), held["y"]
        parts = (held["data"], held["indices"], held["indptr"].astype(np.int32))
        return scipy.sparse.csc_matrix(parts, shape=tuple(held["shape"])), held["y"]


# ------------------------------------------------------------------------ one measurement


def peak_kib() -> int:
    """Peak resident memory of this process since it began (getrusage inherits the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def timed(call: Callable[[], Any], times: int = 10) -> tuple[float, Any]:
    """(least seconds, last answer) of some calls: up to `times` within a second, at least one."""
    least, spent, answer = float("inf"), 0.0, None
    for _ in range(times):
        start = time.perf_counter()
        answer = call()
        seconds = time.perf_counter() - start
        least, spent = min(least, seconds), spent + seconds
        if spent > 1.0:
            break
    return least, answer


def peer_fit(tool: str, X: Any, y: Floats, lam: float, tol: float) -> Floats:
    if tool == "celer":
        from celer import Lasso  # type: ignore[import-untyped,unused-ignore]
    elif tool == "skglm":
        from skglm import Lasso  # type: ignore[import-untyped,unused-ignore]

        tol = tol * 100 * lam  # skglm stops on the worst KKT violation
    else:
        from sklearn.linear_model import Lasso
    options = {"max_iter": 1_000_000} if tool == "sklearn" else {}
    coef: Floats = Lasso(alpha=lam, fit_intercept=False, tol=tol, **options).fit(X, y).coef_
    return coef


def peer_path(tool: str, X: Any, y: Floats, lams: Floats, tol: float) -> Floats:
    if tool == "celer":
        from celer import celer_path

        return np.asarray(celer_path(X, y, "lasso", alphas=lams, tol=tol)[1])
    if tool == "skglm":
        from skglm import Lasso

        model = Lasso(fit_intercept=False, tol=tol * 10 * lams[-1])
        return np.asarray(model.path(X, y, lams)[1])
    from sklearn.linear_model import lasso_path

    return np.asarray(lasso_path(X, y, alphas=lams, tol=tol, max_iter=1_000_000)[1])


def measure_peer(tool: str, path: Path, ratios: list[float], is_path: bool) -> dict[str, Any]:
    X, y = load(path)
    lam_max = float(np.abs(X.T @ y).max() / len(y))
    lams = lam_max * np.array(ratios)
    warnings.simplefilter("ignore")
    peer_fit(tool, X, y, lam_max / 2, 1e-2)
    result: dict[str, Any] = {}
    for tol in (GOAL, GOAL / 10, GOAL / 100):
        if is_path:
            result["seconds"], columns = timed(partial(peer_path, tool, X, y, lams, tol))
            coefs = columns.T
        else:
            lam = float(lams[0])
            result["seconds"], coef = timed(partial(peer_fit, tool, X, y, lam, tol))
            coefs = coef[None, :]
        picked = range(0, len(lams), max(1, len(lams) // 10))
        result["gap"] = max(gap_of(X, y, coefs[k], float(lams[k])) for k in picked)
        if result["gap"] <= GOAL:
            break
    return result


def measure_diml(path: Path, ratios: list[float]) -> dict[str, Any] | None:
    """Ours, on as many ranks as run; the result comes from rank 0."""
    import diml
    from diml.strads.columns import columns_from, columns_of
    from diml.strads.lasso import solve_lasso, warm_up
    from diml.strads.lasso_problem import Grid, Stop

    # Without a spare, which would be started on the same two cores in the midst of it.
    with diml.init(spares=0) as job:
        for tiny in (np.eye(4, 3), scipy.sparse.csc_matrix(np.eye(4, 3))):
            warm_up(columns_of(tiny))
        bare = peak_kib()
        part, y = read_design(path, None, job.rank, job.size)
        held = columns_from(part)
        warm_up(held)
        job.barrier()
        arrays = (part.X,) if hasattr(part, "X") else (part.data, part.indices, part.indptr)
        own = sum(array.nbytes for array in arrays) // 1024
        solve = partial(
            solve_lasso, held, y, Grid(ratios=tuple(ratios)), Stop(GOAL), intercept=False
        )
        solve(job=job)
        used = peak_kib()  # of one solve: the log of collectives grows with their number
        if job.size == 1:
            seconds, program = timed(solve)
        else:
            runs = []
            for _ in range(5):
                job.barrier()
                runs.append(timed(partial(solve, job=job), times=1))
            seconds, program = min(runs, key=lambda run: run[0])
        memory = job.allgather(np.array([[used, used - bare, own]], np.int64)).max(axis=0) / 1024
        if job.rank != 0:
            return None
    X, y = load(path)
    picked = program.solutions[:: max(1, len(ratios) // 10)]
    gap = max(gap_of(X, y, s.dense(X.shape[1]), s.lam) for s in picked)
    peak, beyond, own_mib = map(float, memory)
    return {"seconds": seconds, "gap": gap, "mib": peak, "beyond_mib": beyond, "own_mib": own_mib}


def child(arguments: list[str]) -> None:
    tool, path, ratios, is_path = json.loads(arguments[0])
    result: dict[str, Any] | None
    if tool == "diml":
        result = measure_diml(Path(path), ratios)
    else:
        result = measure_peer(tool, Path(path), ratios, is_path)
        result["mib"] = peak_kib() / 1024
    if result is not None:
        print(json.dumps(result))


# ------------------------------------------------------------------------------- the table


def run(tool: str, path: Path, ratios: list[float], repeats: int, ranks: int = 1) -> dict[str, Any]:
    """The fastest of some processes that measure one tool on one problem."""
    spec = json.dumps([tool, str(path), ratios, len(ratios) > 1])
    command = [sys.executable, str(Path(__file__).resolve()), "--child", spec]
    if ranks > 1:
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = [mpirun, "-n", str(ranks), *command]
    runs = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            raise SystemExit(f"{tool} failed: {done.stderr[-2000:]}")
        runs.append(json.loads(lines[-1]))
    best: dict[str, Any] = min(runs, key=lambda result: result["seconds"])
    return best


def row(data: str, what: str, results: dict[str, dict[str, Any]], target: float) -> None:
    peers = {t: r for t, r in results.items() if t != "diml" and r["gap"] <= GOAL}
    ours = results["diml"]
    cells = [f"{t} {r['seconds']:.4f} s ({r['gap']:.0e})" for t, r in results.items()]
    verdict = "no peer reached the gap"
    if peers:
        fastest = min(peers, key=lambda tool: peers[tool]["seconds"])
        ratio = ours["seconds"] / peers[fastest]["seconds"]
        met = "met" if ratio <= target and ours["gap"] <= GOAL else "MISSED"
        verdict = f"{ratio:.2f}x of {fastest} (target {target:g}: {met})"
    memory = "  ".join(f"{t} {r['mib']:.0f}" for t, r in results.items())
    print(f"{data:11} {what:8} {'  '.join(cells)}  -> {verdict}\n{'':20} peak MiB: {memory}")


def ranks_row(data: str, path: Path, ratios: list[float], repeats: int) -> None:
    one, two = run("diml", path, ratios, repeats), run("diml", path, ratios, repeats, ranks=2)
    factor = one["seconds"] / two["seconds"]
    met = "met" if factor >= 1.5 else "MISSED"
    print(
        f"{data:11} 2 ranks  {one['seconds']:.3f} s -> {two['seconds']:.3f} s: {factor:.2f}x "
        f"(target 1.5: {met})\n{'':20} peak MiB a rank: {one['mib']:.0f} -> {two['mib']:.0f}, of "
        f"which its data {one['own_mib']:.0f} -> {two['own_mib']:.0f}, all beyond the program "
        f"itself {one['beyond_mib']:.0f} -> {two['beyond_mib']:.0f}"
    )


def save(data: str, path: Path, quick: bool) -> None:
    planted = DATA[data](quick)
    if scipy.sparse.issparse(planted.X):
        X: Any = planted.X
        parts = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": X.shape}
        np.savez(path, y=planted.y, **parts)
    else:
        np.savez(path, X=planted.X, y=planted.y)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller data, each once, the first lambda, no path"
    )
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--skip-path", action="store_true", help="single values of lambda only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--allow-missing", action="store_true", help="missing peers are all right")
    flags = parser.parse_args()
    ratios = RATIOS[:1] if flags.quick else RATIOS
    if flags.quick:
        flags.repeats, flags.skip_path = 1, True
    present = [tool for tool, name in PEERS.items() if importlib.util.find_spec(name)]
    for tool in PEERS.keys() - set(present):
        print(f"{tool}: absent")
    path_ratios = np.geomspace(1.0, 0.01, 100).tolist()
    with tempfile.TemporaryDirectory() as folder:
        for data in flags.data:
            path = Path(folder) / f"{data}.npz"
            save(data, path, flags.quick)
            for ratio in ratios:
                results = {
                    tool: run(tool, path, [ratio], flags.repeats) for tool in ["diml", *present]
                }
                row(data, f"1/{1 / ratio:g}", results, 1.0)
            if data == "text-large" and not flags.quick:
                for ratio in ratios:
                    ranks_row(data, path, [ratio], flags.repeats)
            if not flags.skip_path:
                results = {tool: run(tool, path, path_ratios, 1) for tool in ["diml", *present]}
                row(data, "path", results, 0.7)
            path.unlink()
    return 0 if flags.allow_missing or len(present) == len(PEERS) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        sys.exit(main())
