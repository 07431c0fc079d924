"""What becomes of a process in which MPI does not start."""

from __future__ import annotations

import os
import sys

import pytest

from diml.errors import PeerFailed
from diml.world import orphan

_FAILED = "MPI_Init_thread() failed [error code: 14]"


def test_a_spawned_process_leaves_with_a_status_that_is_not_taken_for_the_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setitem(sys._xoptions, "diml_spawned", f"{os.getpid()}@elsewhere")
    for error in (RuntimeError("cannot load MPI library"), ImportError("no such module")):
        with pytest.raises(type(error)), orphan.Guard():
            raise error
    assert not left
    guard = orphan.Guard()
    with pytest.raises(RuntimeError, match="MPI_Init"), guard:
        raise RuntimeError(_FAILED)
    guard.dismiss()
    assert left == [0]


def test_a_rank_hears_that_the_job_could_not_begin() -> None:
    with pytest.raises(PeerFailed, match="could not begin: MPI_Init"), orphan.StartGuard(60.0, {}):
        raise RuntimeError(_FAILED)
