"""What turns one model's file into the next one's, for a device that has the first: without loss.

    "FFdiff1\\n", size of both files (8 bytes) │ per CHUNK: bytes that follow (4), zlib of its planes

Words of 4 bytes are subtracted, not xored: of two floats that are close the difference is a small number,
also across a power of two. Its sign goes to the lowest bit (zigzag), then come all lowest bytes, all
second … (planes), so that zeros lie side by side. A chunk that is the same in both takes its 4 bytes alone.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfold.errors import BadUpdate

Buffer = bytes | bytearray | memoryview
Read = Callable[[int, memoryview], int]
"""Fills what it is given from that byte of a file on, as `ports.Reader.read`. → bytes, fewer at the end."""

MAGIC = b"FFdiff1\n"
HEAD = len(MAGIC) + 8
CHUNK = 1 << 20
"""Bytes of the files that are worked on at a time: what either side needs is a few times that."""
LEVEL = 1
"""Of zlib: higher ones cost twice the time and save a hundredth."""
WORD = np.dtype("<u4")


def encode(old: Read, new: Read, size: int) -> Iterator[bytes]:
    """The difference of two files of `size` bytes each, piece by piece. Raises BadUpdate, before the first
    piece, where one of them has another size."""
    edge = bytearray(2)
    for read in (old, new):
        if read(max(size - 1, 0), memoryview(edge)) != min(size, 1):
            raise BadUpdate(f"no difference: one of the two files is not of {size} bytes")
    return _encoded(old, new, size)


def _encoded(old: Read, new: Read, size: int) -> Iterator[bytes]:
    yield MAGIC + size.to_bytes(8, "little")
    for first in range(0, size, CHUNK):
        length = min(CHUNK, size - first)
        before, after = (_words(length) for _ in range(2))
        for read, words in ((old, before), (new, after)):
            if read(first, words.data.cast("B")[:length]) != length:
                raise BadUpdate(f"no difference: one of the two files ends before byte {first + length}")
        after -= before
        if not after.any():
            yield bytes(4)
            continue
        packed = zlib.compress(_planes(_zigzag(after)).tobytes(), LEVEL)
        yield len(packed).to_bytes(4, "little")
        yield packed


def decode(old: Buffer, difference: Buffer) -> Iterator[memoryview]:
    """The other file, piece by piece: as many bytes as `old`, whatever the difference says. Raises BadUpdate
    where it is none, or one of other files' sizes; whether it is the right one, only a digest can tell."""
    old, difference = memoryview(old), memoryview(difference)
    if bytes(difference[:HEAD]) != MAGIC + len(old).to_bytes(8, "little"):
        raise BadUpdate(f"no difference to a file of {len(old)} bytes")
    place = HEAD
    for first in range(0, len(old), CHUNK):
        known = old[first : first + CHUNK]
        if place + 4 > len(difference):
            raise BadUpdate(f"the difference is cut off at byte {len(difference)}")
        stop = place + 4 + int.from_bytes(difference[place : place + 4], "little")
        if stop > len(difference):
            raise BadUpdate(f"the difference is cut off at byte {len(difference)}")
        packed, place = difference[place + 4 : stop], stop
        yield _changed(known, packed) if len(packed) else known
    if place != len(difference):
        raise BadUpdate(f"the difference goes on after its end, at byte {place}")


def _changed(known: memoryview, packed: memoryview) -> memoryview:
    words = _words(len(known))
    words.data.cast("B")[: len(known)] = known
    size = words.nbytes
    inflate = zlib.decompressobj()
    try:
        planes = inflate.decompress(packed, size + 1)  # never more than that, however much it would be
    except zlib.error as error:
        raise BadUpdate(f"a chunk of the difference is damaged: {error}") from None
    if len(planes) != size or not inflate.eof or inflate.unused_data:
        raise BadUpdate(f"a chunk of the difference is not of {size} bytes")
    words += _signed(np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view(WORD)[:, 0])
    return words.data.cast("B")[: len(known)]


def _words(length: int) -> NDArray[Any]:
    """Room for so many bytes, rounded up to words; what is rounded up is zero."""
    return np.zeros(-(-length // 4), WORD)


def _planes(words: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, 4).T)


def _zigzag(words: NDArray[Any]) -> NDArray[Any]:
    """0, -1, 1, -2 … as 0, 1, 2, 3 …"""
    return (words << 1) ^ (0 - (words >> 31))


def _signed(words: NDArray[Any]) -> NDArray[Any]:
    return (words >> 1) ^ (0 - (words & 1))
