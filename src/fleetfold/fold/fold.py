"""The fold: for each chunk of the model, for each update in order; its memory knows neither's size.

    update 0 ─read─▶ ┐
    update 1 ─read─▶ ├─ chunk ─▶ finite? ─▶ out, written as it is made
    update n ─read─▶ ┘

Floats are folded; integers and booleans (counters, masks) are taken from the heaviest update, the
first of them where several weigh the same. Same updates in the same order, same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import DTYPES, Header, Segment, segments

Array = NDArray[Any]

ChunkFold = Callable[[Array, NDArray[np.float64]], Array]
"""The user's own fold, coordinate by coordinate: (updates [n, elements], shares [n], summing to 1) →
[elements]. Given a chunk at a time, of one dtype."""

CHUNK = 1 << 16
"""Elements in a chunk: 256 KiB of fp32, what a core's own cache holds."""
BLOCK = 1 << 24
"""Bytes that one block of all updates' chunks may take, for a fold that needs them side by side."""


class Source(Struct, frozen=True, kw_only=True):
    """One update to be folded."""

    name: str  # to say which one failed
    weight: float
    header: Header
    read: Callable[[int, memoryview], None]  # (offset, into): fill `into` from that byte on, or raise Unfit


class Unfit(Exception):
    """Some updates cannot be folded: fold again without them."""

    def __init__(self, names: Sequence[str], reason: str) -> None:
        super().__init__(f"{', '.join(names)}: {reason}")
        self.names, self.reason = tuple(names), reason


NOT_FINITE = "holds values that are not finite"


def fold(sources: Sequence[Source], model: Header, method: ChunkFold | None = None) -> Iterator[memoryview]:
    """The folded tensors, in the order and dtypes of `model`: chunks to be written one after another.

    Sources have the layout of `model` and are folded in the order given. `method` None: the weighted
    mean. Raises Unfit, naming the sources, as soon as a chunk shows it.
    """
    total = sum(source.weight for source in sources)
    shares = np.array([source.weight / total for source in sources])
    for segment, places in _alike(sources, model):
        if DTYPES[segment.dtype].kind != "f":
            heaviest = int(np.argmax(shares))
            yield from _copy(segment, sources[heaviest], places[heaviest])
        elif method is None:
            yield from _mean(segment, sources, places, shares)
        else:
            yield from _by_blocks(segment, sources, places, shares, method)


def _alike(sources: Sequence[Source], model: Header) -> Iterator[tuple[Segment, list[int]]]:
    """Ranges of the model, each with where the same range lies in every source.

    Where all files order their tensors alike, a range is a run of tensors of one dtype; else, a tensor.
    """
    order = [t.name for t in model.tensors]
    if all([t.name for t in source.header.tensors] == order for source in sources):
        begin = model.tensors[0].start if model.tensors else 0
        begins = [s.header.tensors[0].start if s.header.tensors else 0 for s in sources]
        for segment in segments(model):
            yield segment, [b + segment.start - begin for b in begins]
        return
    starts = [{t.name: t.start for t in source.header.tensors} for source in sources]
    for tensor in model.tensors:
        if tensor.stop > tensor.start:
            yield Segment(tensor.dtype, tensor.start, tensor.stop), [s[tensor.name] for s in starts]


def _mean(
    segment: Segment, sources: Sequence[Source], places: Sequence[int], shares: Array
) -> Iterator[memoryview]:
    dtype = DTYPES[segment.dtype]
    chunk, total, scratch = np.empty(CHUNK, dtype), np.empty(CHUNK), np.empty(CHUNK)
    for offset, n in _chunks(segment, CHUNK):
        total[:n] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for below
            for source, place, share in zip(sources, places, shares, strict=True):
                source.read(place + offset, _bytes(chunk[:n]))
                np.multiply(chunk[:n], share, out=scratch[:n])
                np.add(total[:n], scratch[:n], out=total[:n])
        # One test for all: a NaN or infinity in any update makes the sum one, a finite mean cannot.
        if not np.isfinite(total[:n]).all():
            if culprits := _culprits(sources, places, offset, chunk[:n]):
                raise Unfit(culprits, NOT_FINITE)
            np.nan_to_num(
                total[:n], copy=False
            )  # all finite: shares that sum to 1 + ε overflowed the last bit
        yield _bytes(total[:n].astype(dtype))


def _by_blocks(
    segment: Segment, sources: Sequence[Source], places: Sequence[int], shares: Array, method: ChunkFold
) -> Iterator[memoryview]:
    dtype = DTYPES[segment.dtype]
    most = max(1, min(CHUNK, BLOCK // (dtype.itemsize * len(sources))))
    for offset, n in _chunks(segment, most):
        block = np.empty((len(sources), n), dtype)
        for row, source, place in zip(block, sources, places, strict=True):
            source.read(place + offset, _bytes(row))
        if not np.isfinite(block).all():
            raise Unfit(_culprits(sources, places, offset, block[0]), NOT_FINITE)
        out = np.asarray(method(block, shares))
        if out.shape != (n,) or not np.isfinite(out).all():
            raise BadConfig(
                f"the fold function returned {out.dtype}{list(out.shape)}"
                f"{'' if out.shape != (n,) else ' with values that are not finite'}, expected finite [{n}]"
            )
        yield _bytes(np.ascontiguousarray(out, dtype))


def _copy(segment: Segment, source: Source, place: int) -> Iterator[memoryview]:
    dtype = DTYPES[segment.dtype]
    for offset, n in _chunks(segment, CHUNK):
        chunk = np.empty(n, dtype)
        source.read(place + offset, _bytes(chunk))
        yield _bytes(chunk)


def _chunks(segment: Segment, most: int) -> Iterator[tuple[int, int]]:
    """(offset in bytes within the segment, elements)."""
    size = DTYPES[segment.dtype].itemsize
    elements = (segment.stop - segment.start) // size
    for first in range(0, elements, most):
        yield first * size, min(most, elements - first)


def _bytes(array: Array) -> memoryview:
    """The array's own memory, as bytes."""
    return array.data.cast("B")


def _culprits(sources: Sequence[Source], places: Sequence[int], offset: int, chunk: Array) -> list[str]:
    guilty = []
    for source, place in zip(sources, places, strict=True):
        source.read(place + offset, _bytes(chunk))
        if not np.isfinite(chunk).all():
            guilty.append(source.name)
    return guilty
