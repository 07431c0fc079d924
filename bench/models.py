"""Cross-validation beside scikit-learn and celer: 5 folds of a path of 100 λ, on two cores.

    python bench/models.py [--quick] [--allow-missing]

Two ranks of DiML against each peer's own parallelism (`n_jobs=2`), on the sparse text-like data of
`bench/lasso.py` with about 500,000 entries. All get the same folds, the same λ, no intercept and a
gap of 1e-6·‖y‖²/n; each table of errors is compared with ours. Kernels are compiled, and pools of
processes started, before the clock starts. Exit status: 0, or 1 when a peer is missing (unless
--allow-missing); a missed target does not change it.
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
from pathlib import Path
from typing import Any

for _variable in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ[f"{_variable}_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# After the environment and the path are set.
import numpy as np  # noqa: E402
import scipy.sparse  # noqa: E402

from diml.data.design_planted import text_like  # noqa: E402

FOLDS, SMALLEST, TARGET, GOAL = 5, 0.01, 0.7, 1e-6
PEERS = {"sklearn": "sklearn", "celer": "celer"}


def measure_diml(path: Path, count: int) -> dict[str, Any] | None:
    """Ours, on as many ranks as run; the result comes from rank 0."""
    import diml
    from diml.strads import LassoCV

    X, y = load(path)
    with diml.init() as job:
        LassoCV(n_alphas=3, eps=0.5, cv=2, fit_intercept=False, job=job).fit(X, y)
        seconds = []
        for _ in range(3):
            job.barrier()
            start = time.perf_counter()
            model = LassoCV(
                n_alphas=count, eps=SMALLEST, cv=FOLDS, fit_intercept=False, tol=GOAL, job=job
            ).fit(X, y)
            seconds.append(time.perf_counter() - start)
        if job.rank != 0:
            return None
    errors = model.mse_path_.mean(axis=1).tolist()
    return {"seconds": min(seconds), "alpha": model.alpha_, "errors": errors}


def celer_fold(X: Any, y: Any, lambdas: Any, fit: Any, out: Any) -> Any:
    """Squared errors of celer's path on the rows left out."""
    from celer import celer_path

    coefs = celer_path(X[fit].tocsc(), y[fit], "lasso", alphas=lambdas, tol=GOAL)[1]
    return ((y[out][:, None] - X[out] @ coefs) ** 2).mean(axis=0)


def measure_peer(tool: str, path: Path, count: int) -> dict[str, Any]:
    """scikit-learn's LassoCV; celer's path over folds by joblib, as its LassoCV does (which does
    not run with scikit-learn from 1.9 on)."""
    from joblib import Parallel, delayed
    from sklearn.linear_model import LassoCV
    from sklearn.model_selection import KFold

    warnings.simplefilter("ignore")
    X, y = load(path)
    top = float(np.abs(X.T @ y).max() / len(y))
    lambdas = top * np.geomspace(1.0, SMALLEST, count)
    options = {"fit_intercept": False, "tol": GOAL, "n_jobs": 2, "max_iter": 1_000_000}

    def errors(alphas: Any) -> Any:
        if tool == "sklearn":
            model = LassoCV(alphas=alphas, cv=FOLDS, **options).fit(X, y)
            return model.mse_path_.mean(axis=1)
        rows = X.tocsr()
        folds = KFold(FOLDS).split(X)
        table = Parallel(n_jobs=2)(delayed(celer_fold)(rows, y, alphas, *fold) for fold in folds)
        return np.mean(table, axis=0)

    errors(lambdas[:2])
    start = time.perf_counter()
    found = errors(lambdas)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "alpha": float(lambdas[np.argmin(found)]),
        "errors": found.tolist(),
    }


def load(path: Path) -> tuple[Any, Any]:
    with np.load(path) as held:
        parts = (held["data"], held["indices"].astype(np.int32), held["indptr"].astype(np.int32))
        return scipy.sparse.csc_matrix(parts, shape=tuple(held["shape"])), held["y"]


def child(arguments: list[str]) -> None:
    tool, path, count = json.loads(arguments[0])
    peer = tool != "diml"
    result = measure_peer(tool, Path(path), count) if peer else measure_diml(Path(path), count)
    if result is not None:
        print(json.dumps(result))


def run(tool: str, path: Path, count: int) -> dict[str, Any]:
    spec = json.dumps([tool, str(path), count])
    command = [sys.executable, str(Path(__file__).resolve()), "--child", spec]
    if tool == "diml":
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = [mpirun, "-n", "2", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"{tool} failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 values of lambda")
    parser.add_argument("--allow-missing", action="store_true", help="missing peers are all right")
    flags = parser.parse_args()
    present = [tool for tool, name in PEERS.items() if importlib.util.find_spec(name)]
    for tool in PEERS.keys() - set(present):
        print(f"{tool}: absent")
    count = 20 if flags.quick else 100
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.npz"
        planted = text_like(nonzeros=620_000)
        X = planted.X
        np.savez(path, y=planted.y, data=X.data, indices=X.indices, indptr=X.indptr, shape=X.shape)
        results = {tool: run(tool, path, count) for tool in ["diml", *present]}
    ours = results.pop("diml")
    print(f"{FOLDS} folds of {count} lambdas, two cores")
    print(f"{'diml':8} {ours['seconds']:8.2f} s  lambda {ours['alpha']:.6g}")
    for tool, result in results.items():
        off = max(abs(np.array(result["errors"]) / np.array(ours["errors"]) - 1.0))
        print(
            f"{tool:8} {result['seconds']:8.2f} s  lambda {result['alpha']:.6g}  "
            f"ratio {ours['seconds'] / result['seconds']:.3f}  errors differ by {off:.1e}"
        )
    if results:
        ratio = ours["seconds"] / min(result["seconds"] for result in results.values())
        met = "met" if ratio <= TARGET else "MISSED"
        print(f"{ratio:.2f}x of the fastest peer (target {TARGET:g}: {met})")
    return 0 if flags.allow_missing or len(present) == len(PEERS) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        sys.exit(main())
