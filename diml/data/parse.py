"""Bytes of `row col value` lines to arrays, at the speed of compiled code.

Owns the grammar of a line; must not know files, line numbers or what the entries are for.

    line     = blank* (comment | entry)? blank* "\\n"
    comment  = ("#" | "%") anything
    entry    = id blank+ id blank+ number     (of pairs the number may be missing)
    id       = digit+                         ASCII, no sign, fits int64
    number   = [+-] (digit+ [. digit*] | . digit+) [(e | E) [+-] digit+]
    blank    = space | tab | carriage return

Invariant: every line is an entry, or has nothing but blanks and a comment, or is an error; none
is skipped in silence. A number is right to one unit in the last place of float64 before it is
rounded to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

FEW_FIELDS = 1
MANY_FIELDS = 2
BAD_ROW = 3
BAD_COL = 4
HUGE_ROW = 5
HUGE_COL = 6
BAD_VALUE = 7
INFINITE_VALUE = 8

SHORTEST_LINE = len("0 0 1\n")
SHORTEST_PAIR = len("0 0\n")
_POWERS = 10.0 ** np.arange(23)
_INT64_TENTH = (2**63 - 1) // 10


@njit(nogil=True, cache=True)
def _skip_blanks(text: Any, at: int, end: int) -> int:
    while at < end and (text[at] == 32 or text[at] == 9 or text[at] == 13):
        at += 1
    return at


@njit(nogil=True, cache=True)
def _ends_field(text: Any, at: int, end: int) -> bool:
    return at == end or text[at] == 32 or text[at] == 9 or text[at] == 13


@njit(nogil=True, cache=True)
def _read_id(text: Any, at: int, end: int) -> Any:
    """(id, where it ends); the id is -1 where there is none, -2 where int64 cannot hold it."""
    start = at
    number = np.int64(0)
    while at < end and 48 <= text[at] <= 57:
        digit = np.int64(text[at]) - 48
        if number > _INT64_TENTH or (number == _INT64_TENTH and digit > 7):
            return np.int64(-2), at
        number = number * 10 + digit
        at += 1
    if at == start or not _ends_field(text, at, end):
        return np.int64(-1), at
    return number, at


@njit(nogil=True, cache=True)
def _scaled(mantissa: Any, exponent: Any) -> Any:
    """mantissa * 10**exponent without overflow on the way."""
    number = np.float64(mantissa)
    if mantissa == 0 or exponent == 0:
        return number
    if exponent > 0:
        return number * _POWERS[exponent] if exponent <= 22 else number * 10.0 ** min(exponent, 400)
    if exponent >= -22:
        return number / _POWERS[-exponent]
    if exponent >= -300:
        return number / 10.0**-exponent
    return number / 1e300 / 10.0 ** min(-exponent - 300, 300)


@njit(nogil=True, cache=True)
def _read_number(text: Any, at: int, end: int) -> Any:
    """(number, where it ends); NaN where there is none."""
    negative = at < end and text[at] == 45
    if at < end and (text[at] == 45 or text[at] == 43):
        at += 1
    mantissa = np.int64(0)
    exponent = np.int64(0)
    digits = 0
    fraction = False
    while at < end and (48 <= text[at] <= 57 or (text[at] == 46 and not fraction)):
        if text[at] == 46:
            fraction = True
        else:
            digits += 1
            if mantissa < 10**17:
                mantissa = mantissa * 10 + (np.int64(text[at]) - 48)
                exponent -= 1 if fraction else 0
            else:
                exponent += 0 if fraction else 1
        at += 1
    if digits == 0:
        return np.nan, at
    if at < end and (text[at] == 101 or text[at] == 69):
        at += 1
        lower = at < end and text[at] == 45
        if at < end and (text[at] == 45 or text[at] == 43):
            at += 1
        first = at
        power = np.int64(0)
        while at < end and 48 <= text[at] <= 57:
            power = min(power * 10 + (np.int64(text[at]) - 48), np.int64(100_000))
            at += 1
        if at == first:
            return np.nan, at
        exponent += -power if lower else power
    if not _ends_field(text, at, end):
        return np.nan, at
    number = _scaled(mantissa, exponent)
    return -number if negative else number, at


@njit(nogil=True, cache=True)
def _read_line(
    text: Any, at: int, end: int, rows: Any, cols: Any, values: Any, count: int, pairs: bool
) -> int:
    """Read the line text[at:end] into place `count`; 0 or what is wrong."""
    row, at = _read_id(text, at, end)
    if row < 0:
        return HUGE_ROW if row == -2 else BAD_ROW
    at = _skip_blanks(text, at, end)
    if at == end:
        return FEW_FIELDS
    col, at = _read_id(text, at, end)
    if col < 0:
        return HUGE_COL if col == -2 else BAD_COL
    at = _skip_blanks(text, at, end)
    if at == end:
        if not pairs:
            return FEW_FIELDS
        rows[count] = row
        cols[count] = col
        values[count] = np.nan
        return 0
    value, at = _read_number(text, at, end)
    if np.isnan(value):
        return BAD_VALUE
    if np.isinf(np.float32(value)):
        return INFINITE_VALUE
    if _skip_blanks(text, at, end) != end:
        return MANY_FIELDS
    rows[count] = row
    cols[count] = col
    values[count] = value
    return 0


@njit(nogil=True, cache=True)
def parse_lines(
    text: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    pairs: bool = False,
) -> tuple[int, int, int]:
    """Read whole lines (the last one may lack its newline) into the given arrays.

    The arrays must hold len(text) // SHORTEST_LINE + 1 entries; with `pairs` a line may lack its
    value, which is NaN then, and they must hold len(text) // SHORTEST_PAIR + 1. Returns the number
    of entries, then where the first bad line starts and what is wrong with it (0, 0 when all are
    good).
    """
    at = 0
    count = 0
    size = text.shape[0]
    while at < size:
        end = at
        while end < size and text[end] != 10:
            end += 1
        first = _skip_blanks(text, at, end)
        if first < end and text[first] != 35 and text[first] != 37:
            wrong = _read_line(text, first, end, rows, cols, values, count, pairs)
            if wrong != 0:
                return count, at, wrong
            count += 1
        at = end + 1
    return count, 0, 0
