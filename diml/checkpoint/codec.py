"""State trees as one buffer and back: what a checkpoint, a replica and a message carry.

Owns the format: a fixed header, a skeleton of the tree in JSON, then the bytes of the arrays,
each at a multiple of 64 so that a decoded array is a view of the buffer. It knows nothing of
MPI, files or who holds the buffer. Nothing in a buffer is ever run: there is no pickle here.

Invariants: `decode(encode(tree))` gives back the tree with the types, the bits and the memory
layout (C or Fortran order) that it had, or `CorruptState` is raised. What cannot come back as it
was is refused when it goes in, by its path.

The checksum is the CRC-32 of the sums of the 64-bit words in each block of 32 KiB (and of the
tail): any damage to one word, and blocks that are shifted or swapped, change it, and it runs at
the speed of memory, which a CRC over all bytes does not.
"""

from __future__ import annotations

import ast
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.errors import CorruptState, Misuse

Bytes: TypeAlias = NDArray[np.uint8]

FORMAT = 1
_MAGIC = b"DIMLTREE"
# magic, format, checksum of the rest, bytes in all, bytes of the skeleton
_HEADER = struct.Struct("<8sIIQQ")
_ALIGNMENT = 64
_DEPTH_MAX = 100
_BLOCK_WORDS = 4096
_ARRAY_KINDS = frozenset("biufcmMSUV")
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


def encode(
    tree: object, name: str = "state", allocate: Callable[[int], Bytes] | None = None
) -> Bytes:
    """Return `tree` as one uint8 buffer; every array in it is copied exactly once.

    `name` stands for the root in messages. `allocate(nbytes)` may supply a recycled uint8 buffer
    of that length. Raises Misuse, naming the path, for anything but arrays, numbers, str, bytes,
    bool, None, NumPy random generators, and dicts, lists and tuples of these.
    """
    writer = _Writer()
    skeleton = json.dumps(writer.node(tree, name, 0), separators=(",", ":")).encode()
    start = _aligned(_HEADER.size + len(skeleton))
    total = start + writer.size
    buffer = np.empty(total, np.uint8) if allocate is None else allocate(total)
    body = buffer.data
    body[_HEADER.size : _HEADER.size + len(skeleton)] = skeleton
    body[_HEADER.size + len(skeleton) : start] = bytes(start - _HEADER.size - len(skeleton))
    for offset, data in writer.data:
        _place(buffer, start + offset, data)
    _HEADER.pack_into(body, 0, _MAGIC, FORMAT, 0, total, len(skeleton))
    _HEADER.pack_into(body, 0, _MAGIC, FORMAT, _checksum(buffer), total, len(skeleton))
    return buffer


def check(tree: object, name: str = "state") -> None:
    """Raise what `encode` would raise, without copying anything."""
    _Writer().node(tree, name, 0)


def decode(buffer: Bytes | bytes | memoryview, copy: bool = False) -> Any:
    """Return the tree held by `buffer`; its arrays are read-only views, or with `copy` their own.

    Raises CorruptState if the buffer is damaged, cut short, foreign or of another format.
    """
    data = verify(buffer)
    skeleton_bytes = _HEADER.unpack_from(data.data, 0)[4]
    end = _HEADER.size + skeleton_bytes
    try:
        skeleton = json.loads(bytes(data[_HEADER.size : end]))
        return _Reader(data, _aligned(end), copy).tree(skeleton)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, SyntaxError) as error:
        raise CorruptState(f"the encoded state makes no sense: {error}") from error


def verify(buffer: Bytes | bytes | memoryview) -> Bytes:
    """Return `buffer` as a read-only uint8 array after checking header and checksum.

    Raises CorruptState as `decode` does.
    """
    data = np.frombuffer(buffer, np.uint8)
    if data.size < _HEADER.size:
        raise CorruptState(f"the encoded state has {data.size} bytes: too few for a header")
    magic, version, checksum, total, skeleton_bytes = _HEADER.unpack_from(data.data, 0)
    if magic != _MAGIC:
        raise CorruptState("not a state encoded by DiML (the first 8 bytes differ)")
    if version != FORMAT:
        raise CorruptState(f"the state is encoded in format {version}; this DiML reads {FORMAT}")
    if total != data.size or skeleton_bytes > total - _HEADER.size:
        raise CorruptState(f"the encoded state has {data.size} bytes, its header says {total}")
    if checksum != _checksum(data):
        raise CorruptState(f"the encoded state of {total} bytes is damaged (checksum differs)")
    data.flags.writeable = False
    return data


def fingerprint(buffer: Bytes | bytes | memoryview) -> int:
    """Return the checksum that an encoded buffer carries, unchecked: it tells replicas apart."""
    return int(_HEADER.unpack_from(np.frombuffer(buffer, np.uint8).data, 0)[2])


def checksum(data: Bytes) -> int:
    """Return the 32-bit checksum of a contiguous uint8 array (see the module's docstring)."""
    words = data[: data.size // 8 * 8].view(np.uint64)
    blocks = words.size // _BLOCK_WORDS
    whole = words[: blocks * _BLOCK_WORDS].reshape(blocks, _BLOCK_WORDS)
    crc = zlib.crc32(np.add.reduce(whole, axis=1).tobytes())
    return zlib.crc32(data[blocks * _BLOCK_WORDS * 8 :].data, crc)


def _checksum(buffer: Bytes) -> int:
    """The checksum of an encoded buffer: of its body, and of the header but for the checksum."""
    head = zlib.crc32(bytes(buffer[16 : _HEADER.size]))
    body = checksum(buffer[_HEADER.size :])
    return zlib.crc32(struct.pack("<II", head, body))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _place(buffer: Bytes, start: int, data: NDArray[Any] | bytes) -> None:
    """Copy one item to its place and zero the gap up to the next one."""
    if isinstance(data, bytes):
        end = start + len(data)
        buffer.data[start:end] = data
    else:
        end = start + data.nbytes
        view = buffer[start:end].view(data.dtype)
        if _fortran(data):
            np.copyto(view.reshape(data.shape[::-1]).T, data)
        else:
            np.copyto(view.reshape(data.shape), data)
    buffer[end : _aligned(end)] = 0


def _fortran(array: NDArray[Any]) -> bool:
    return array.flags.f_contiguous and not array.flags.c_contiguous


class _Writer:
    """Builds the skeleton and gathers what goes into the data section, without copying."""

    def __init__(self) -> None:
        self.data: list[tuple[int, NDArray[Any] | bytes]] = []
        self.size = 0

    def node(self, value: object, path: str, depth: int) -> Any:
        """Return the JSON form of one value: a scalar, or a list that begins with its tag."""
        if depth > _DEPTH_MAX:
            raise Misuse(f"{path[:60]}… is nested deeper than {_DEPTH_MAX} levels (or a cycle)")
        kind = type(value)
        if value is None or kind in (bool, str, float):
            return value
        if isinstance(value, int) and kind is int:
            return value if -(2**63) <= value < 2**63 else ["i", hex(value)]
        if isinstance(value, complex) and kind is complex:
            return ["c", value.real, value.imag]
        if isinstance(value, bytes) and kind is bytes:
            return ["b", self._add(value, len(value)), len(value)]
        if isinstance(value, (list, tuple)) and kind in (list, tuple):
            tag = "l" if kind is list else "t"
            return [tag, *(self.node(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value))]
        if isinstance(value, dict) and kind is dict:
            return ["d", *(self._item(k, v, path, depth) for k, v in value.items())]
        if isinstance(value, np.ndarray) and kind is np.ndarray:
            order = "F" if _fortran(value) else "C"
            return ["a", _dtype_text(value.dtype, path), value.shape, order, self._array(value)]
        if isinstance(value, np.generic) and not isinstance(value, np.void):
            return ["s", _dtype_text(value.dtype, path), value.tobytes().hex()]
        if isinstance(value, (np.random.Generator, np.random.RandomState)):
            return self._generator(value, path, depth)
        raise Misuse(
            f"{path} is a {_type_name(value)}; a checkpoint holds arrays, numbers, {_REST}"
        )

    def _item(self, key: object, value: object, path: str, depth: int) -> list[Any]:
        if type(key) not in (str, int, float, bool, type(None), bytes, tuple) and not isinstance(
            key, np.generic
        ):
            raise Misuse(f"a key of {path} is a {_type_name(key)}; keys are str, numbers or tuples")
        here = f"{path}[{key!r}]".replace("'", '"')
        return [self.node(key, f"key {here}", depth + 1), self.node(value, here, depth + 1)]

    def _add(self, data: NDArray[Any] | bytes, size: int) -> int:
        offset = self.size
        self.data.append((offset, data))
        self.size = _aligned(offset + size)
        return offset

    def _array(self, array: NDArray[Any]) -> int:
        return self._add(array, array.nbytes)

    def _generator(
        self, value: np.random.Generator | np.random.RandomState, path: str, depth: int
    ) -> list[Any]:
        """A generator is its state and its seed sequence (which says what it spawns next)."""
        if isinstance(value, np.random.RandomState):
            return ["r", self.node(value.get_state(legacy=False), path, depth + 1)]
        bits = value.bit_generator
        name = type(bits).__name__
        seeds = getattr(bits, "seed_seq", None)
        if name not in _BIT_GENERATORS or type(seeds) is not np.random.SeedSequence:
            raise Misuse(f"{path} is a random generator over {name}, not over one of NumPy's own")
        state = [bits.state, seeds.state]
        return ["g", name, self.node(state, path, depth + 1)]


_REST = "str, bytes, None, random generators, and dicts, lists and tuples of these"


class _Reader:
    """Rebuilds the tree from a skeleton; every offset is checked by NumPy's own bounds."""

    def __init__(self, data: Bytes, start: int, copy: bool) -> None:
        self._data = data
        self._start = start
        self._copy = copy

    def tree(self, node: Any) -> Any:
        if not isinstance(node, list):
            return node
        tag, *rest = node
        if tag == "l":
            return [self.tree(item) for item in rest]
        if tag == "t":
            return tuple(self.tree(item) for item in rest)
        if tag == "d":
            return {self.tree(key): self.tree(value) for key, value in rest}
        if tag == "a":
            return self._array(*rest)
        if tag == "s":
            return _scalar(_dtype(rest[0]), bytes.fromhex(rest[1]))
        if tag == "b":
            return self._section(*rest).tobytes()
        if tag == "i":
            return int(rest[0], 16)
        if tag == "c":
            return complex(*rest)
        if tag == "g":
            return _generator(rest[0], *self.tree(rest[1]))
        if tag == "r":
            legacy = np.random.RandomState()
            legacy.set_state(self.tree(rest[0]))
            return legacy
        raise ValueError(f"unknown tag {tag!r}")

    def _section(self, offset: int, size: int) -> Bytes:
        begin = self._start + offset
        if offset < 0 or size < 0 or begin + size > self._data.size:
            raise ValueError(f"{size} bytes at {offset} lie outside of the buffer")
        return self._data[begin : begin + size]

    def _array(self, dtype_text: str, shape: list[int], order: str, offset: int) -> NDArray[Any]:
        dtype = _dtype(dtype_text)
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        flat: NDArray[Any] = np.frombuffer(self._section(offset, size), np.uint8)
        if size == 0:
            return np.empty(shape, dtype)
        array = flat.view(dtype)
        array = array.reshape(shape[::-1]).T if order == "F" else array.reshape(shape)
        return array.copy(order="K") if self._copy else array


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    """NumPy reads no text of length 0 from memory."""
    return np.frombuffer(data, dtype)[0] if dtype.itemsize else dtype.type()


def _generator(name: str, state: dict[str, Any], seeds: dict[str, Any]) -> np.random.Generator:
    if name not in _BIT_GENERATORS:
        raise ValueError(f"unknown bit generator {name!r}")
    bits = getattr(np.random, name)(np.random.SeedSequence(**seeds))
    bits.state = state
    return np.random.Generator(bits)


def _dtype_text(dtype: np.dtype[Any], path: str) -> str:
    if dtype.hasobject or dtype.kind not in _ARRAY_KINDS:
        raise Misuse(f"{path} has dtype {dtype}, which holds Python objects: not for a checkpoint")
    return repr(np.lib.format.dtype_to_descr(dtype))


def _dtype(text: str) -> np.dtype[Any]:
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(text))
    if dtype.hasobject:
        raise ValueError(f"dtype {text} holds Python objects")
    return dtype


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
