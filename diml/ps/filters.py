"""Less traffic between a worker and a server: key caching, half precision, compression.

Owns what happens to a message's bytes between the core that sends it and the core that gets it;
neither sees it. Each filter can be switched alone. A message says in its header which filters
were applied to it and which ones its sender wants in answers, so that servers need no settings.

Invariants: both ends of a channel keep the same lists of keys, because messages arrive in the
order sent and a repair starts both anew. Half precision rounds once, before the first sending, so
that a message that is sent again has the same bits; numbers that half precision cannot hold are
sent whole. Ids are never rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from diml.checkpoint.codec import checksum
from diml.errors import CorruptState, Misuse
from diml.ps.message import HEADER_BYTES, Bytes, Ids, Kind, Message, decode, encode

KEYS, HALF, SNAPPY, LZ4 = 1, 2, 4, 8
NAMES = {"keys": KEYS, "half": HALF, "snappy": SNAPPY, "lz4": LZ4}
# Where the header has the filters that were applied, and those that the sender wants.
_APPLIED, _WANTED = 58, 59
_WITH_KEYS = frozenset({Kind.GET, Kind.UPDATE})
_KEYS_LEAST = 64
_LISTS_MAX = 8
_HALF_MAX = 60_000.0
_COMPRESS_LEAST_BYTES = 256


def parse_filters(names: Iterable[str]) -> int:
    """The filters of those names as bits. Raises Misuse for others, and for a missing package."""
    bits = 0
    for name in names:
        if name not in NAMES:
            raise Misuse(f"filter {name!r} is none of {', '.join(NAMES)}")
        bits |= NAMES[name]
    if bits & SNAPPY and bits & LZ4:
        raise Misuse("filters snappy and lz4: one compression is enough")
    if bits & (SNAPPY | LZ4):
        _cramjam()
    return bits


def _cramjam() -> Any:
    try:
        import cramjam
    except ImportError:
        raise Misuse("compression needs the package cramjam: pip install cramjam") from None
    return cramjam


class KeyLists:
    """The last lists of keys that went over one channel in one direction, by their checksum."""

    def __init__(self) -> None:
        self._lists: dict[int, Ids] = {}

    def known(self, name: int, ids: Ids) -> bool:
        """Whether the other end has this very list."""
        return name in self._lists and np.array_equal(self._lists[name], ids)

    def keep(self, name: int, ids: Ids) -> None:
        """Remember a list that goes over the channel as a whole."""
        self._lists.pop(name, None)
        self._lists[name] = ids
        if len(self._lists) > _LISTS_MAX:
            del self._lists[next(iter(self._lists))]

    def get(self, name: int) -> Ids:
        """A list that only its checksum came for."""
        if name not in self._lists:
            raise CorruptState(f"a message names the unknown list of keys {name:08x}")
        return self._lists[name]


class Filters:
    """All channels of one process.

    Attributes:
        wanted: filters that this process applies to all that it sends, and wants in answers.
        plain_bytes, wire_bytes: what was sent, before and after the filters.
        short: messages that went the short way, which has none: reads and updates that compiled
            code has sent, or seen to.
    """

    def __init__(self, wanted: int = 0) -> None:
        self.wanted = wanted
        self.plain_bytes = 0
        self.wire_bytes = 0
        self.short = 0
        self._peers: dict[int, int] = {}
        self._sent: dict[int, KeyLists] = {}
        self._received: dict[int, KeyLists] = {}

    def restart(self) -> None:
        """Begin anew after a repair: nothing is known of any channel."""
        self._peers, self._sent, self._received = {}, {}, {}

    def none_to(self, peer: int) -> bool:
        """Whether a message to a peer goes as it is."""
        return not (self.wanted or self._peers.get(peer, 0) & ~KEYS)

    def pack(self, message: Message, peer: int) -> Bytes:
        """The bytes of a message to a peer."""
        plain = encode(message)
        # A server answers with what the worker wants; keys are the worker's own affair.
        bits = self.wanted or self._peers.get(peer, 0) & ~KEYS
        self.plain_bytes += len(plain)
        if bits:
            plain = self._filtered(plain, message, peer, bits)
        self.wire_bytes += len(plain)
        return plain

    def _filtered(self, plain: Bytes, message: Message, peer: int, bits: int) -> Bytes:
        applied = 0
        ids, rows = _bytes(message.ids), _bytes(message.values)
        count = len(message.ids)
        if bits & KEYS and message.kind in _WITH_KEYS and count >= _KEYS_LEAST:
            lists = self._sent.setdefault(peer, KeyLists())
            name = checksum(ids)
            if lists.known(name, message.ids):
                ids, applied = _bytes(np.array([name], np.int64)), applied | KEYS
            else:
                # A copy: the array may be the caller's own.
                lists.keep(name, message.ids.copy())
        if bits & HALF and _fits_half(message.values):
            rows, applied = _bytes(message.values.astype(np.float16)), applied | HALF
        body = np.concatenate([ids, rows])
        if bits & (SNAPPY | LZ4) and len(body) >= _COMPRESS_LEAST_BYTES:
            smaller = _compressed(body, bits)
            if len(smaller) < len(body):
                body, applied = smaller, applied | bits & (SNAPPY | LZ4)
        buffer = np.empty(HEADER_BYTES + len(body), np.uint8)
        buffer[:HEADER_BYTES] = plain[:HEADER_BYTES]
        buffer[HEADER_BYTES:] = body
        buffer[_APPLIED], buffer[_WANTED] = applied, self.wanted
        return buffer

    def unpack(self, data: Bytes, peer: int) -> Message:
        """The message in bytes from a peer. Raises CorruptState if it is not whole."""
        if len(data) >= HEADER_BYTES:
            if not (self._peers or data.item(_APPLIED) or data.item(_WANTED)):
                return decode(data)
            applied = int(data[_APPLIED])
            if data[_WANTED]:
                self._peers[peer] = int(data[_WANTED])
            if applied:
                data = self._restored(data, peer, applied)
        message = decode(data)
        caches = self._peers.get(peer, 0) & KEYS and not data[_APPLIED] & KEYS
        if caches and message.kind in _WITH_KEYS and len(message.ids) >= _KEYS_LEAST:
            lists = self._received.setdefault(peer, KeyLists())
            lists.keep(checksum(_bytes(message.ids)), message.ids)
        return message

    def _restored(self, data: Bytes, peer: int, applied: int) -> Bytes:
        """The plain bytes; the mark of cached keys stays, so that they are not kept again."""
        header, body = data[:HEADER_BYTES].copy(), data[HEADER_BYTES:]
        if applied & (SNAPPY | LZ4):
            body = _decompressed(body, applied)
        # The header still tells the plain message: as many ids, rows, numbers in a row.
        count, rows = (int(x) for x in header[28:44].view(np.int64))
        width = int(header[48:52].view(np.uint32)[0])
        held = 8 if applied & KEYS else 8 * count
        ids, values = body[:held], body[held:]
        if applied & KEYS:
            if len(ids) != 8:
                raise CorruptState("a message names no list of keys")
            name = int(ids.copy().view(np.int64)[0])
            ids = _bytes(self._received.setdefault(peer, KeyLists()).get(name))
        if applied & HALF:
            if len(values) != 2 * rows * width:
                raise CorruptState(f"{len(values)} bytes of half precision for {rows} x {width}")
            wide = np.float64 if header[5] == 2 else np.float32
            values = _bytes(values.copy().view(np.float16).astype(wide))
        return np.concatenate([header, ids, values])


def _fits_half(values: Any) -> bool:
    """Whether numbers survive half precision; NaN fails the comparison, like what is too large."""
    return bool(values.dtype.kind == "f" and values.size and np.abs(values).max() < _HALF_MAX)


def _bytes(array: Any) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _compressed(body: Bytes, bits: int) -> Bytes:
    cramjam = _cramjam()
    squeeze = cramjam.snappy.compress_raw if bits & SNAPPY else cramjam.lz4.compress_block
    return np.frombuffer(squeeze(body), np.uint8)


def _decompressed(body: Bytes, bits: int) -> Bytes:
    cramjam = _cramjam()
    expand = cramjam.snappy.decompress_raw if bits & SNAPPY else cramjam.lz4.decompress_block
    try:
        return np.frombuffer(expand(np.ascontiguousarray(body)), np.uint8)
    except Exception as error:
        raise CorruptState(f"a compressed message is damaged: {error}") from None
