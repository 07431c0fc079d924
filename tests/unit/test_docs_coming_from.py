"""The tables of old and new names: nothing old is left out, everything new exists."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

from diml import cli
from diml.allreduce import rabit
from diml.allreduce.engine import Engine
from diml.allreduce.reduce import Allreduce
from diml.config import OPTIONS
from diml.docs.cli import coming_from, main
from diml.job import Job
from diml.jobs import lasso, logistic, mf_flags
from diml.ps.client import ParameterServer
from diml.ps.kv import KeyValues
from diml.ps.table import Table
from diml.strads import Program

OWNERS: dict[str, tuple[Any, ...]] = {
    "job": (Job, Engine, Allreduce),
    "ps": (ParameterServer,),
    "table": (Table,),
    "kv": (KeyValues,),
    "program": (Program,),
    "rabit": (rabit,),
}
OLD = {
    "Rabit": """init finalize get_rank get_world_size tracker_print get_processor_name broadcast
        allreduce load_checkpoint checkpoint LazyCheckPoint version_number prepare_fun MAX Reducer
        SerializeReducer Allgather InitAfterException rabit_global_replica rabit_local_replica
        rabit_bootstrap_cache rabit_timeout_sec rabit_reduce_ring_mincount rabit_debug mock
        report_stats""",
    "Petuum-PS": """Init CreateTable CreateTableDone GetTableOrDie RegisterRow RegisterThread Clock
        GlobalBarrier ShutDown Get Inc BatchInc DenseBatchInc GetAsync ThreadGet SSP SSPPush SSPAggr
        process_cache_capacity snapshot_clock resume_clock stats_path hostfile datafile offsetsfile
        output_prefix lambda init_step_size step_size_offset step_size_pow rng_seed K num_iterations
        staleness num_clients num_worker_threads client_id ps_row_in_memory_limit ps_stats_path
        ps_snapshot_clock ps_resume_clock ps_snapshot_dir ps_resume_dir num_clocks_per_iter
        num_clocks_per_eval""",
    "ps-lite": """Start Finalize KVWorker Push Pull PushPull ZPush ZPull Wait KVServer
        set_request_handle Barrier GetDeadNodes DMLC_NUM_WORKER DMLC_NUM_SERVER DMLC_ROLE
        DMLC_PS_ROOT_URI DMLC_PS_ROOT_PORT DMLC_NODE_HOST PS_HEARTBEAT_TIMEOUT PS_RESEND
        PS_VERBOSE""",
    "STRADS": """schedule push pull update_feat aggregator update_res object_calc set_init_priority
        check_dependency machfile data_xfile data_yfile samples columns lambda max_iter
        schedule_size scheduler threads_per_scheduler threads weight_sampling check_interference
        infthreshold pipeline logfreq algorithm outputfile_coeff ring4scheduler topology nzcount""",
}


def _rows(text: str) -> list[tuple[str, str, str]]:
    rows = []
    for line in text.splitlines():
        if line.startswith("| ") and "---" not in line:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 3, line
            rows.append((cells[0], cells[1], cells[2]))
    return rows


SECTIONS = {part.split("\n", 1)[0]: part for part in coming_from().split("\n## ")[1:]}
NEW = sorted(
    {name for _, new, more in _rows(coming_from()) for name in re.findall("`([^`]+)`", new + more)}
)


def _flags() -> set[str]:
    parsers = [mf_flags.parser(), lasso.parser(), logistic.parser()]
    known = {option for made in parsers for action in made._actions for option in
             action.option_strings}  # fmt: skip
    return known | {option.flag for option in OPTIONS} | {"--hosts"}


FLAGS = _flags()


def _exists(name: str) -> bool:
    """Whether what a table promises is there: a flag, a command, a name of the API."""
    if name.startswith("--"):
        return name in FLAGS
    if name.startswith("diml ") and name.split()[1] in (*cli._ELSEWHERE, "run", "doctor"):
        return True
    owner, _, member = name.partition(".")
    if owner in OWNERS and member:
        return any(hasattr(kind, member) or member in _attributes(kind) for kind in OWNERS[owner])
    if owner == "diml":
        return _importable(name)
    return name in ("mpirun -n N", "with diml.init()") or bool(re.fullmatch(r"[a-z_]+=.*", name))


def _attributes(kind: Any) -> set[str]:
    """Attributes that a class's docstring promises."""
    return set(re.findall(r"\b\w+\b", kind.__doc__ or ""))


def _importable(name: str) -> bool:
    module, _, member = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        return hasattr(importlib.import_module(module), member)
    return True


@pytest.mark.parametrize("name", NEW)
def test_what_is_new_exists(name: str) -> None:
    assert _exists(name)


def test_what_does_not_exist_would_be_seen() -> None:
    assert not _exists("job.all_reduce")
    assert not _exists("--nonsense")
    assert not _exists("diml.strads.Nothing")
    assert not _exists("diml fly")


@pytest.mark.parametrize("system", OLD)
def test_no_old_name_is_left_out(system: str) -> None:
    section = next(text for title, text in SECTIONS.items() if title.startswith(system))
    old = " ".join(cells[0] for cells in _rows(section))
    named = set(re.findall(r"\w+", old))
    missing = [name for name in OLD[system].split() if name not in named]
    assert not missing


def test_rabits_python_names_are_all_there() -> None:
    named = set(re.findall(r"`rabit\.(\w+)`", SECTIONS["Rabit"]))
    public = {n for n, v in vars(rabit).items() if callable(v) and v.__module__ == rabit.__name__}
    assert {name for name in public if not name.startswith("_")} <= named


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coming-from"]) == 0
    assert capsys.readouterr().out.startswith("# Coming from Rabit")
