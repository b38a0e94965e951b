"""Folds that a minority of arbitrary updates cannot carry off: all of them bounded, some by selection.

    median, trimmed_mean   block ─▶ sorted by coordinate ─▶ the middle               one pass
    krum, multi_krum       cells ─▶ distances, summed exactly ─▶ who is folded       a pass before the fold
    norms_squared          cells ─▶ norms, summed exactly: what privacy.factors clips by   likewise

A coordinate is folded alone, and a sum over cells has no order: no cut of the model into blocks or shards,
and no order of the updates, changes a byte.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfold.errors import BadConfig
from fleetfold.fold.fold import CELL
from fleetfold.fold.recipe import ChunkFold

Array = NDArray[Any]
Floats = NDArray[np.float64]

Sums = NDArray[np.object_]
"""Sums that nothing was rounded from: Python integers, in units of 2**-1127. Add them with `+`, in any
order and grouping; `rounded` makes them float64."""

TILE = 1 << 14
"""Elements sorted at a time. Any number gives the same bytes."""
NETWORK_MOST = 256
"""Up to so many updates a network of min and max over whole rows sorts faster than numpy sorts columns."""
ROWS = 8
"""Differences taken at a time. Any number gives the same bytes."""


def median(block: Array, shares: Floats) -> Array:
    """[n, elements] finite floats → [elements], the median of each coordinate; of an even n, the middle
    between the two in the middle. Shares are ignored: a device that claims many examples could buy it.

    Holds while fewer than half of the updates are arbitrary: the result lies within the honest range.
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018.
    """
    n, elements = block.shape
    out = np.empty(elements, block.dtype)
    for part, (low, *rest) in _ranks(block, (n - 1) // 2, n // 2 + 1):
        high = rest[0] if rest else low
        out[part] = np.clip(low / 2 + high / 2, low, high) + 0.0  # halves first: no sum overflows
    return out


def trimmed_mean(cut: float = 0.2) -> ChunkFold:
    """A fold: of each coordinate the floor(cut · n) largest and as many smallest are dropped, the rest
    averaged, in 64 bits and in the order of size. Shares are ignored: every update left counts the same.

    cut: in [0, 0.5), or BadConfig is raised. Holds while at most floor(cut · n) updates are arbitrary; of
    fewer than 1 / cut updates nothing is dropped. Yin et al., 2018.
    """
    if not 0 <= cut < 0.5:
        raise BadConfig(f"trimmed_mean: cut = {cut} is not a share from 0 to below a half")

    def trimmed(block: Array, shares: Floats) -> Array:
        n, elements = block.shape
        drop = int(cut * n)
        out = np.empty(elements, block.dtype)
        for part, rows in _ranks(block, drop, n - drop):
            total = np.zeros(rows[0].shape)
            with np.errstate(over="ignore"):  # of float64 near its end; the clip brings it back
                for row in rows:
                    total += row
            out[part] = np.clip(total / len(rows), rows[0], rows[-1]) + 0.0
        return out

    return trimmed


def distances(block: Array) -> Sums:
    """[n, elements] of finite floats, whole cells (of CELL elements, only the last may be short, counted
    from where the model is always cut alike) → [n, n]: their part of the squared L2 distance between
    each two updates. Sum over all blocks, then `rounded`.

    Summed from differences, not from norms and products as elsewhere: equal updates are exactly 0 apart,
    close ones do not cancel, and an update that overflows is as far away as a float64 can say.
    """
    n = len(block)
    total = np.zeros((n, n), object)
    upper = np.triu_indices(n, 1)
    scratch = np.empty((ROWS, min(CELL, block.shape[1])))
    for cell in _cells(block):
        part = np.zeros((n, n))
        for i in range(n - 1):
            for j in range(i + 1, n, ROWS):
                others = cell[j : j + ROWS]
                with np.errstate(over="ignore"):
                    difference = np.subtract(others, cell[i], out=scratch[: len(others), : cell.shape[1]])
                    part[i, j : j + ROWS] = _sums_of_squares(difference)
        total[upper] += _exact(part[upper])
    return np.asarray(total + total.T)


def norms_squared(block: Array) -> Sums:
    """[n, elements] of finite floats, whole cells → [n]: their part of each row's squared L2 norm. Sum over
    all blocks, then `rounded`, then the square root. Give deltas, not models, to clip deltas."""
    total = np.zeros(len(block), object)
    for cell in _cells(block):
        with np.errstate(over="ignore"):
            total += _exact(_sums_of_squares(cell))
    return total


def rounded(sums: Sums) -> Floats:
    """Exact sums → float64, each rounded once; what a float64 cannot hold becomes its largest."""
    largest = np.finfo(np.float64).max
    values = [total / _UNIT if total < _OVERFLOW else largest for total in sums.ravel().tolist()]
    return np.array(values, np.float64).reshape(sums.shape)


def krum_scores(distances: Floats, byzantine: int) -> Floats:
    """[n, n] squared distances → [n] scores: the sum of the n - byzantine - 2 smallest to others, at least
    one of them where there is another. Raises BadConfig for a negative `byzantine`.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017.
    """
    if byzantine < 0:
        raise BadConfig(f"krum: byzantine = {byzantine} is not a number of updates")
    n = len(distances)
    others = np.sort(distances[~np.eye(n, dtype=bool)].reshape(n, n - 1), axis=1)
    total = np.zeros(n)
    with np.errstate(over="ignore"):
        for column in others.T[: max(1, n - byzantine - 2)]:
            total += column
    return total


def krum_quorum(byzantine: int) -> int:
    """The fewest updates among which Krum withstands so many arbitrary ones: 2 · byzantine + 3."""
    return 2 * byzantine + 3


def multi_krum(distances: Floats, byzantine: int, keep: int) -> tuple[int, ...]:
    """[n, n] squared distances → indices of the `keep` updates with the lowest scores, in ascending order,
    to be folded by the weighted mean. Of equal scores the lower index comes first; `keep` over n takes all.

    Nothing is promised below `krum_quorum` updates, nor to a `keep` above n - byzantine. Raises BadConfig
    unless keep ≥ 1 and byzantine ≥ 0. Blanchard et al., 2017.
    """
    if keep < 1:
        raise BadConfig(f"multi_krum: keep = {keep}, at least one update has to be folded")
    order = np.argsort(krum_scores(distances, byzantine), kind="stable")
    return tuple(sorted(int(i) for i in order[:keep]))


def krum(distances: Floats, byzantine: int, keep: int = 1) -> tuple[int, ...]:
    """The index of the update nearest to its neighbours: `multi_krum` of one, whatever `keep` says."""
    return multi_krum(distances, byzantine, 1)


ROBUST: dict[str, Callable[[float], ChunkFold]] = {
    "median": lambda cut: median,
    "trimmed_mean": trimmed_mean,
}
"""Folds by the setting's word: (cut) → the fold of a block."""

Selection = Callable[[Floats, int, int], tuple[int, ...]]
"""(squared distances [n, n], byzantine, keep) → the updates that the weighted mean is taken of."""

SELECTIONS: dict[str, Selection] = {"krum": krum, "multi_krum": multi_krum}
"""Folds that first measure all updates, by the setting's word."""


_UNIT = 1 << 1127
"""2**-1127 is below the last bit of the smallest float64: all of them are whole numbers of it."""
_OVERFLOW = int(np.finfo(np.float64).max) * _UNIT


def _exact(values: Floats) -> Sums:
    """Floats ≥ 0 as whole numbers of units; infinity as the largest float."""
    fraction, exponent = np.frexp(np.minimum(values, np.finfo(np.float64).max))
    digits = np.ldexp(fraction, 53).astype(np.int64).astype(object)
    return np.asarray(digits << (exponent.astype(np.int64) + 1074).astype(object))


def _cells(block: Array) -> Iterator[Floats]:
    """The block's cells in 64 bits, each overwritten by the next."""
    n, elements = block.shape
    cell = np.empty((n, min(CELL, elements)))
    for first in range(0, elements, CELL):
        part = block[:, first : first + CELL]
        np.copyto(cell[:, : part.shape[1]], part)
        yield cell[:, : part.shape[1]]


def _sums_of_squares(rows: Floats) -> Floats:
    """[k, elements] → [k]; the rows are overwritten. Products are rounded and summed pairwise, one row's
    sum as any other's: numpy fixes that order, a BLAS would choose it by machine and by threads."""
    return np.asarray(np.add.reduce(np.multiply(rows, rows, out=rows), axis=1))


def _ranks(block: Array, first: int, last: int) -> Iterator[tuple[slice, list[Array]]]:
    """Of each coordinate the values of rank [first, last) in ascending order: (part of the block, rows).

    Rows are overwritten by the next part. Signed zeros come in no order: add 0.0 to what is made of them.
    """
    n, elements = block.shape
    width = np.float32 if block.dtype == np.float16 else block.dtype  # float16 is slow, and no less exact
    tile, spare = np.empty((n, min(TILE, elements)), width), np.empty(min(TILE, elements), width)
    for begin in range(0, elements, TILE):
        part = slice(begin, min(begin + TILE, elements))
        if n > NETWORK_MOST:
            columns = np.array(block[:, part].T, width, order="C")
            columns.sort(axis=1)
            yield part, list(columns.T[first:last])
            continue
        room = part.stop - begin
        np.copyto(tile[:, :room], block[:, part])
        rows, free = [row[:room] for row in tile], spare[:room]
        for low, high, keep_low, keep_high in _network(n, first, last):
            if keep_low and keep_high:
                np.minimum(rows[low], rows[high], out=free)
                np.maximum(rows[low], rows[high], out=rows[high])
                rows[low], free = free, rows[low]
            elif keep_low:
                np.minimum(rows[low], rows[high], out=rows[low])
            else:
                np.maximum(rows[low], rows[high], out=rows[high])
        yield part, rows[first:last]


@lru_cache(maxsize=64)
def _network(n: int, first: int, last: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Comparators (low, high, low is needed, high is needed) that bring the values of rank [first, last)
    of n into their places; what no such rank depends on is left out.

    Odd-even merge sort: Batcher, "Sorting networks and their applications", 1968.
    """
    pairs = []
    merged = 1
    while merged < n:
        reach = merged
        while reach:
            for start in range(reach % merged, n - reach, 2 * reach):
                ends = range(start, start + min(reach, n - start - reach))
                pairs += [(a, a + reach) for a in ends if a // (2 * merged) == (a + reach) // (2 * merged)]
            reach //= 2
        merged *= 2
    needed = set(range(first, last))
    comparators = []
    for low, high in reversed(pairs):
        if low in needed or high in needed:
            comparators.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(comparators))
