"""Bytes of libsvm lines, or of lines of numbers, to arrays.

Owns the grammar of a line; must not know files, line numbers or what the numbers are for.

    line    = blank* (entry blank*)? (comment)? "\\n"      comment = ("#" | "%") anything
    libsvm  = number? (blank+ id ":" number)*              ids rise along a line
    numbers = number (blank+ number)*                      as many as asked for

Numbers, ids and blanks are those of `diml.data.parse`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diml.data.parse import _read_number, _skip_blanks

BAD_NUMBER = 1
BAD_PAIR = 2
NOT_RISING = 3
FIELDS = 4
INFINITE = 5

_ID_MOST = 2**40


@njit(nogil=True, cache=True)
def _comment(text: Any, at: int, end: int) -> bool:
    return at == end or text[at] == 35 or text[at] == 37


@njit(nogil=True, cache=True)
def _read_pairs(text: Any, at: int, end: int, cols: Any, values: Any, count: int) -> Any:
    """The `id:number` pairs of a line into place `count` …; (new count, 0 or what is wrong)."""
    last = np.int64(-1)
    while True:
        at = _skip_blanks(text, at, end)
        if _comment(text, at, end):
            return count, 0
        start = at
        col = np.int64(0)
        while at < end and 48 <= text[at] <= 57:
            col = min(col * 10 + (np.int64(text[at]) - 48), np.int64(_ID_MOST))
            at += 1
        if at in (start, end) or text[at] != 58 or col == _ID_MOST:
            return count, BAD_PAIR
        value, at = _read_number(text, at + 1, end)
        if np.isnan(value):
            return count, BAD_NUMBER
        if np.isinf(value):
            return count, INFINITE
        if col <= last:
            return count, NOT_RISING
        last = col
        cols[count] = col
        values[count] = value
        count += 1


@njit(nogil=True, cache=True)
def _begins_pair(text: Any, at: int, end: int) -> bool:
    while at < end and 48 <= text[at] <= 57:
        at += 1
    return at < end and text[at] == 58


@njit(nogil=True, cache=True)
def parse_libsvm(
    text: NDArray[np.uint8],
    labels: NDArray[np.float64],
    lengths: NDArray[np.int64],
    cols: NDArray[np.int64],
    values: NDArray[np.float64],
    bare: bool,
) -> tuple[int, int, int, int]:
    """Read whole lines. `labels` and `lengths` hold len(text) // 2 + 1, the others len(text) // 4
    + 1. Returns (rows, entries, where the first bad line starts, what is wrong or 0).

    With `bare`, the label of a line that begins with an `id:number` pair is NaN; without, such a
    line is bad."""
    at = 0
    rows = 0
    count = 0
    size = len(text)
    while at < size:
        end = at
        while end < size and text[end] != 10:
            end += 1
        place = _skip_blanks(text, at, end)
        if not _comment(text, place, end):
            label = np.nan
            if not (bare and _begins_pair(text, place, end)):
                label, place = _read_number(text, place, end)
                if np.isnan(label):
                    return rows, count, at, BAD_NUMBER
                if np.isinf(label):
                    return rows, count, at, INFINITE
            before = count
            count, wrong = _read_pairs(text, place, end, cols, values, count)
            if wrong != 0:
                return rows, count, at, wrong
            labels[rows] = label
            lengths[rows] = count - before
            rows += 1
        at = end + 1
    return rows, count, 0, 0


@njit(nogil=True, cache=True)
def parse_numbers(
    text: NDArray[np.uint8], fields: int, out: NDArray[np.float64]
) -> tuple[int, int, int]:
    """Read whole lines of `fields` numbers into out (len(text) // (2 · fields) + 1, fields).

    Returns (lines read, where the first bad line starts, what is wrong or 0).
    """
    at = 0
    count = 0
    size = len(text)
    while at < size:
        end = at
        while end < size and text[end] != 10:
            end += 1
        place = _skip_blanks(text, at, end)
        if not _comment(text, place, end):
            for field in range(fields):
                if place == end:
                    return count, at, FIELDS
                number, place = _read_number(text, place, end)
                if np.isnan(number):
                    return count, at, BAD_NUMBER
                if np.isinf(number):
                    return count, at, INFINITE
                out[count, field] = number
                place = _skip_blanks(text, place, end)
            if not _comment(text, place, end):
                return count, at, FIELDS
            count += 1
        at = end + 1
    return count, 0, 0
