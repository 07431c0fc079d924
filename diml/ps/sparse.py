"""A sparse table as a worker's program sees it: rows of a SciPy matrix.

Owns the way between matrices and cells (row·cols + column). Must not know servers. What a worker
has added is read at once, as with dense tables; rows are not kept from one read to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from diml.errors import Misuse
from diml.ps.checks import checked_ids, checked_updates
from diml.ps.message import Ids, Rows
from diml.ps.tables import TableSpec

if TYPE_CHECKING:
    import scipy.sparse as sp


def cells_of(
    spec: TableSpec, ids: ArrayLike, deltas: Any, reject_nonfinite: bool
) -> tuple[Ids, Rows]:
    """Cells and values (m, 1) of an update: `deltas` is a sparse matrix (len(ids), cols), or an
    array of that shape. Raises Misuse, naming the table and the rows."""
    import scipy.sparse as sp  # not at the top: a tenth of a second in every process

    checked = checked_ids(spec, ids)
    if not sp.issparse(deltas):
        deltas = sp.csr_array(checked_updates(spec, checked, deltas, reject_nonfinite))
    if deltas.shape != (len(checked), spec.cols):
        raise Misuse(
            f"table {spec.name!r}: updates have shape {deltas.shape}, "
            f"not {(len(checked), spec.cols)} for {len(checked)} rows of {spec.cols}"
        )
    cells = deltas.tocoo()
    rows = checked[cells.coords[0]]
    values = checked_updates(spec, rows, cells.data.reshape(-1, 1), reject_nonfinite)
    return rows * spec.cols + cells.coords[1], values


def matrix_of(spec: TableSpec, ids: Ids, cells: Ids, values: Rows) -> sp.csr_array:
    """Rows `ids`, in their order, of the cells that were read of them."""
    import scipy.sparse as sp

    unique, places = np.unique(ids, return_inverse=True)
    rows, columns = np.divmod(cells, spec.cols)
    shape = (len(unique), spec.cols)
    matrix = sp.csr_array((values[:, 0], (np.searchsorted(unique, rows), columns)), shape=shape)
    matrix.eliminate_zeros()
    return matrix[places]
