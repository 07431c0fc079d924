"""Which variables may be updated together: the correlation filter. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def independent(correlation: NDArray[np.float64], rho: float, places: int) -> NDArray[np.int64]:
    """Greedily keep candidates, in order, whose |correlation| with all kept ones is below `rho`.

    Args:
        correlation: (k, k), |x_iᵀx_j| / (‖x_i‖ ‖x_j‖) of the candidates.
        places: how many may stay at most.

    Returns: places of the kept candidates, rising.
    """
    kept: list[int] = []
    near = np.zeros(len(correlation), dtype=bool)
    for candidate in range(len(correlation)):
        if len(kept) == places:
            break
        if not near[candidate]:
            kept.append(candidate)
            near |= correlation[candidate] >= rho
    return np.array(kept, dtype=np.int64)
