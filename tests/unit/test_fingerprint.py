"""Fingerprints of data: the same for every cut into pieces, another one for any other data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse

from diml.data import fingerprint


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_same_however_it_is_cut(parts: int) -> None:
    rng = np.random.default_rng(3)
    dense = rng.normal(size=(23, 7)).astype(np.float32)
    sparse = scipy.sparse.random(23, 7, 0.3, format="csr", rng=rng)
    edges = [23 * part // parts for part in range(parts + 1)]
    cuts = list(pairwise(edges))
    whole = fingerprint.of_dense(dense)
    assert sum(fingerprint.of_dense(dense[a:b], a) for a, b in cuts) % 2**64 == whole
    pieces = [(sparse[a:b], a) for a, b in cuts]
    sums = [fingerprint.of_csr(p.indptr, p.indices, p.data, a) for p, a in pieces]
    one = fingerprint.of_csr(sparse.indptr, sparse.indices, sparse.data)
    assert fingerprint.together(sums) == fingerprint.together([one])


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = np.arange(60.0).reshape(20, 3)
    sparse = scipy.sparse.csr_matrix(dense)
    before = (
        fingerprint.of_dense(dense),
        fingerprint.of_csr(sparse.indptr, sparse.indices, sparse.data),
    )
    monkeypatch.setattr(fingerprint, "_CHUNK", 7)
    after = (
        fingerprint.of_dense(dense),
        fingerprint.of_csr(sparse.indptr, sparse.indices, sparse.data),
    )
    assert before == after


def test_any_change_shows() -> None:
    dense = np.arange(12.0).reshape(4, 3)
    seen = {fingerprint.of_dense(dense)}
    others = [dense[::-1], dense[:, ::-1], dense[:3], dense.T, -dense]
    for place in np.ndindex(dense.shape):
        other = dense.copy()
        other[place] = np.nextafter(other[place], np.inf)
        others.append(other)
    for other in others:
        seen.add(fingerprint.of_dense(other))
    assert len(seen) == 1 + len(others)


def test_entries_tell_what_a_matrix_does() -> None:
    matrix = scipy.sparse.random(30, 20, 0.2, format="csr", rng=np.random.default_rng(3))
    entries = matrix.tocoo()
    order = np.random.default_rng(4).permutation(entries.nnz)
    mixed = (a[order] for a in (entries.row, entries.col, entries.data))
    whole = fingerprint.of_csr(matrix.indptr, matrix.indices, matrix.data)
    assert fingerprint.of_entries(*mixed) == whole
    assert fingerprint.of_dense(np.empty((3, 0))) == fingerprint.of_dense(np.empty((0, 3))) == 0
