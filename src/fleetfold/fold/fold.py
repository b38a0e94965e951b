"""The fold: for each chunk of the model, for each update in order; its memory knows neither's size.

    update 0 ─read─▶ ┐
    update 1 ─read─▶ ├─ chunk ─▶ finite? ─▶ out, written as it is made   (several chunks at once)
    update n ─read─▶ ┘

Floats are folded; integers and booleans (counters, masks) are taken from the heaviest update, the
first of them where several weigh the same. Same updates in the same order, same bytes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import ALIGNMENT, DTYPES, Header, Segment, segments

Array = NDArray[Any]

ChunkFold = Callable[[Array, NDArray[np.float64]], Array]
"""The user's own fold, coordinate by coordinate: (updates [n, elements], shares [n], summing to 1) →
[elements]. Given a chunk at a time, of one dtype."""

After = Callable[[int, int, Array], Array]
"""What becomes of a folded chunk of floats: (its byte in the model's file, its first element among all the
model's floats, the chunk) → the chunk that is written instead, of any dtype."""

CHUNK = 1 << 17
"""Elements in a chunk: 512 KiB of fp32, what a core's own cache holds."""
GROUP = 16
"""Updates that are summed in the chunk's own precision before the sum goes on in 64 bits. It depends on
nothing, so that the order of rounding depends on the order of updates alone."""
CELL = 1 << 14
"""Elements that a measure of whole updates sums in floats before its sum becomes exact."""
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


class _Chunk(Struct, frozen=True):
    """One piece of the work: `count` elements of one dtype, and where they lie in every source."""

    dtype: np.dtype[Any]
    places: tuple[int, ...]
    count: int
    at: int  # its byte in the model's file
    first: int  # its first element among the model's floats


def fold(
    sources: Sequence[Source],
    model: Header,
    method: ChunkFold | None = None,
    *,
    threads: int = 1,
    after: After | None = None,
    floats_only: bool = False,
) -> Iterator[memoryview]:
    """The folded tensors, in the order and dtypes of `model`: chunks to be written one after another.

    Sources have the layout of `model` and are folded in the order given. `method` None: the weighted
    mean. `after` has the last word on each chunk of floats. Raises Unfit, naming the sources, as soon as a
    chunk shows it.
    """
    total = sum(source.weight for source in sources)
    shares = np.array([source.weight / total for source in sources])
    heaviest = int(np.argmax(shares))
    scratch = _Scratch()

    def work(chunk: _Chunk) -> memoryview:
        if chunk.dtype.kind != "f":
            return _bytes(_copied(chunk, sources[heaviest], chunk.places[heaviest]))
        if method is None:
            folded = _mean(chunk, sources, shares, scratch)
        else:
            folded = _by_block(chunk, sources, shares, method)
        return _bytes(folded if after is None else after(chunk.at, chunk.first, folded))

    side_by_side = max(1, BLOCK // (8 * len(sources)))
    most = CHUNK if method is None else min(CHUNK, side_by_side)
    chunks = (c for c in _chunks(sources, model, most) if c.dtype.kind == "f" or not floats_only)
    return _in_order(work, chunks, threads) if threads > 1 and _large(model) else map(work, chunks)


def _large(model: Header) -> bool:
    """Whether there are chunks enough to be worth a pool of threads."""
    return sum(tensor.stop - tensor.start for tensor in model.tensors) > 8 * CHUNK


def _in_order(
    work: Callable[[_Chunk], memoryview], chunks: Iterable[_Chunk], threads: int
) -> Iterator[memoryview]:
    """Results in the order of the chunks, a few of them at work at once and no more waiting."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[memoryview]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(work, chunk))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _chunks(sources: Sequence[Source], model: Header, most: int) -> Iterator[_Chunk]:
    """The model's tensors as pieces of at most `most` elements."""
    floats = 0
    for segment, places in _alike(sources, model):
        dtype = DTYPES[segment.dtype]
        elements = (segment.stop - segment.start) // dtype.itemsize
        for first in range(0, elements, most):
            at = first * dtype.itemsize
            here = tuple(place + at for place in places)
            yield _Chunk(dtype, here, min(most, elements - first), segment.start + at, floats + first)
        floats += elements if dtype.kind == "f" else 0


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


class _Scratch(local):
    """Buffers of one thread, used again for each chunk: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, Any], Array] = {}

    def get(self, what: str, dtype: Any, count: int) -> Array:
        """`count` elements that start where a cache line does: reads into them run twice as fast."""
        key = (what, dtype)
        if key not in self._buffers:
            self._buffers[key] = _aligned(dtype, CHUNK)
        return self._buffers[key][:count]


def _aligned(dtype: Any, count: int) -> Array:
    size = np.dtype(dtype).itemsize * count
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype)


def _mean(chunk: _Chunk, sources: Sequence[Source], shares: NDArray[np.float64], scratch: _Scratch) -> Array:
    """The weighted mean (FedAvg; McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", 2017). Sums of GROUP updates in fp32 (fp64 for fp64), the sum of sums in 64 bits."""
    n, wide = chunk.count, np.result_type(chunk.dtype, np.float32)
    values, product = scratch.get("values", chunk.dtype, n), scratch.get("product", wide, n)
    part, total = scratch.get("part", wide, n), scratch.get("total", np.float64, n)
    total[:] = 0.0
    weights = shares.astype(wide)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for below
        for start in range(0, len(sources), GROUP):
            for k in range(start, min(start + GROUP, len(sources))):
                sources[k].read(chunk.places[k], _bytes(values))
                if k == start:
                    np.multiply(values, weights[k], out=part)
                else:
                    np.multiply(values, weights[k], out=product)
                    np.add(part, product, out=part)
            np.add(total, part, out=total)
        # One test for all: a NaN or infinity in any update makes the sum one, a finite mean cannot.
        if not np.isfinite(total).all():
            if culprits := _culprits(chunk, sources, values):
                raise Unfit(culprits, NOT_FINITE)
            np.nan_to_num(total, copy=False)  # all finite: shares that sum to 1 + ε overflowed the last bit
        limit = np.finfo(chunk.dtype).max
        return np.clip(total, -limit, limit, out=total).astype(chunk.dtype)


def measured(sources: Sequence[Source], model: Header, measure: Callable[[Array], Array]) -> Array:
    """The sum of `measure` over all floats of the updates, block by block: [n, elements] → its part.

    For measures that add up exactly, of blocks of whole cells (`robust.distances`). Raises Unfit.
    """
    most = max(CELL, BLOCK // (8 * len(sources)) // CELL * CELL)
    parts = [
        measure(_block(chunk, sources)) for chunk in _chunks(sources, model, most) if chunk.dtype.kind == "f"
    ]
    return np.asarray(sum(parts[1:], start=parts[0])) if parts else np.zeros((len(sources),) * 2, object)


def _by_block(
    chunk: _Chunk, sources: Sequence[Source], shares: NDArray[np.float64], method: ChunkFold
) -> Array:
    n = chunk.count
    out = np.asarray(method(_block(chunk, sources), shares))
    if out.shape != (n,) or not np.isfinite(out).all():
        raise BadConfig(
            f"the fold function returned {out.dtype}{list(out.shape)}"
            f"{'' if out.shape != (n,) else ' with values that are not finite'}, expected finite [{n}]"
        )
    return np.ascontiguousarray(out, chunk.dtype)


def _block(chunk: _Chunk, sources: Sequence[Source]) -> Array:
    """The chunk of every update side by side: [n, elements], finite."""
    block = np.empty((len(sources), chunk.count), chunk.dtype)
    for row, source, place in zip(block, sources, chunk.places, strict=True):
        source.read(place, _bytes(row))
    if not np.isfinite(block).all():
        raise Unfit(_culprits(chunk, sources, np.empty(chunk.count, chunk.dtype)), NOT_FINITE)
    return block


def _copied(chunk: _Chunk, source: Source, place: int) -> Array:
    values = np.empty(chunk.count, chunk.dtype)
    source.read(place, _bytes(values))
    return values


def _culprits(chunk: _Chunk, sources: Sequence[Source], values: Array) -> list[str]:
    """Who sent values that are not finite, in this chunk."""
    guilty = []
    for source, place in zip(sources, chunk.places, strict=True):
        source.read(place, _bytes(values))
        if not np.isfinite(values).all():
            guilty.append(source.name)
    return guilty


def _bytes(array: Array) -> memoryview:
    """The array's own memory, as bytes."""
    return array.data.cast("B")
