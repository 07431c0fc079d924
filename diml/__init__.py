"""DiML: distributed machine learning over MPI that survives dead ranks.

    import diml

    with diml.init() as job:
        total = job.allreduce(gradient, "sum")

Owns the public names. Importing it must not start MPI: `init` does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from diml.errors import Shrunk

if TYPE_CHECKING:
    from diml.job import Job, init

if os.environ.get("DIML_SUPERVISED"):
    from diml.world.marker import say_to_the_end

    say_to_the_end()

__all__ = ["Job", "Shrunk", "init"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from diml import job

        return getattr(job, name)
    raise AttributeError(f"module 'diml' has no attribute {name!r}")
