"""Filters: what comes out is what went in (half precision: rounded once), in fewer bytes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from diml.errors import CorruptState, Misuse
from diml.ps.filters import HALF, KEYS, LZ4, SNAPPY, Filters, KeyLists, parse_filters
from diml.ps.message import Kind, Message

SERVER, WORKER = 5, 1


def _update(rng: np.random.Generator, ids: np.ndarray, dtype: str = "float32") -> Message:
    values = rng.integers(-9, 9, (len(ids), 4)).astype(dtype)
    return Message(Kind.UPDATE, 1, 7, 2, 99, ids, values, 1, 6, request=3)


@pytest.mark.parametrize("bits", range(16))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_every_combination_gives_back_the_message(bits: int, dtype: str) -> None:
    if bits & SNAPPY and bits & LZ4:
        pytest.skip("one compression is enough")
    if bits & (SNAPPY | LZ4):
        pytest.importorskip("cramjam")
    rng = np.random.default_rng(bits)
    worker, server = Filters(bits), Filters()
    lists = [np.sort(rng.choice(10_000, n, replace=False)) for n in (200, 200, 90, 10)]
    for step in range(60):
        sent = _update(rng, lists[rng.integers(0, 4)], dtype)
        got = server.unpack(worker.pack(sent, SERVER).copy(), WORKER)
        assert got[:5] == sent[:5] and got[7:11] == sent[7:11]
        assert np.array_equal(got.ids, sent.ids) and got.values.dtype == sent.values.dtype
        assert np.array_equal(got.values, sent.values), step
        if step == 30:
            worker.restart()
            server.restart()
        reply = Message(Kind.VALUES, values=sent.values, request=3)
        back = worker.unpack(server.pack(reply, WORKER).copy(), SERVER)
        assert np.array_equal(back.values, sent.values)
    assert (worker.wire_bytes < worker.plain_bytes) == bool(
        bits & (KEYS | SNAPPY | LZ4) or (bits & HALF and dtype != "int64")
    )


def test_more_lists_than_a_channel_keeps() -> None:
    rng = np.random.default_rng(0)
    worker, server = Filters(KEYS), Filters()
    lists = [np.sort(rng.choice(10_000, 100, replace=False)) for _ in range(20)]
    for _ in range(300):
        ids = lists[min(19, int(rng.exponential(5)))]
        mine = ids.copy()
        got = server.unpack(worker.pack(_update(rng, mine), SERVER).copy(), WORKER)
        assert np.array_equal(got.ids, ids)
        mine[:] = 0  # the caller's array is its own again


def test_lists_of_one_checksum_are_told_apart() -> None:
    lists = KeyLists()
    lists.keep(4, np.arange(3))
    assert lists.known(4, np.arange(3)) and not lists.known(4, np.arange(1, 4))
    with pytest.raises(CorruptState):
        lists.get(5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_half_precision_cannot_hold_is_sent_whole(value: float) -> None:
    worker, server = Filters(HALF), Filters()
    values = np.full((3, 2), value, np.float32)
    got = server.unpack(worker.pack(Message(Kind.UPDATE, values=values), SERVER), WORKER)
    assert np.array_equal(got.values, values, equal_nan=True)


def test_damage_is_refused() -> None:
    pytest.importorskip("cramjam")
    rng = np.random.default_rng(0)
    data = Filters(SNAPPY | HALF).pack(_update(rng, np.arange(200)), SERVER)
    for wrong in (data[:-5], np.concatenate([data[:64], data[64:][::-1]])):
        with pytest.raises(CorruptState):
            Filters().unpack(wrong, WORKER)


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_filters(["keys", "half"]) == KEYS | HALF
    for names, word in ((["zip"], "'zip'"), (["snappy", "lz4"], "one compression")):
        with pytest.raises(Misuse, match=word):
            parse_filters(names)
    monkeypatch.setitem(sys.modules, "cramjam", None)
    with pytest.raises(Misuse, match="pip install cramjam"):
        parse_filters(["lz4"])
