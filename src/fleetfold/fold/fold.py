"""The fold: for each chunk of a shard, for each update in order; its memory knows neither's size.

    update 0 ─read, decode─▶ ┐
    update 1 ─read, decode─▶ ├─ sum ─▶ finite? ─▶ + base ─▶ out, written as it is made
    update n ─read, decode─▶ ┘

Floats are folded; integers and booleans (counters, masks) are taken from the heaviest update that carries
them; what no update carries stays as it is. Same updates in the same order, same bytes: however the model
is cut, whoever works on it.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.errors import BadConfig, BadUpdate
from fleetfold.fold.codecs import decode, read_as
from fleetfold.fold.floats import narrowed
from fleetfold.fold.kernel import KERNEL, NUMPY, Kernel, Scratch
from fleetfold.fold.plan import BATCH, CHUNK, Chunk, Shard, Stretch, chunks, stretches
from fleetfold.fold.recipe import MEAN, NOT_BOOLEAN, NOT_FINITE, Mix, Recipe, Source, Unfit, mixed
from fleetfold.fold.tensors import DTYPES, Header

Array = NDArray[Any]
Floats = NDArray[np.float64]
Results = Generator[Array, None, None]

ROWS = 4
"""Updates that one pass adds."""
AT_ONCE = 32
"""Reads in flight, where they are smaller than a chunk."""
GROUP = 32
"""Updates that are summed in 32 bits before the sum goes on in 64. It depends on nothing, so that the
order of rounding depends on the order of updates alone."""
CELL = 1 << 14
"""Elements that a measure of whole updates sums in floats before its sum becomes exact."""
BLOCK = 1 << 24
"""Bytes that one block of all updates' chunks may take, for a fold that needs them side by side."""


class _Piece(Struct, frozen=True):
    """A chunk, and the updates [begin, stop) of its mix."""

    chunk: Chunk
    mix: Mix
    begin: int
    stop: int


def fold_shard(
    sources: Sequence[Source],
    model: Header,
    shard: Shard | None = None,
    recipe: Recipe = MEAN,
    *,
    threads: int = 1,
    depth: int = 1,
    chunk: int = CHUNK,
    kernel: Kernel = KERNEL,
) -> Generator[memoryview, None, None]:
    """The folded bytes of a shard (None: all) of the model's tensors: pieces, to be written in turn; closed
    by who does not want them all, for threads are at work.

    Sources are folded in the order given. threads: pieces at work at once, each reading for itself. depth:
    reads in flight, for a store that answers late; then one thread computes. Raises Unfit, naming the
    sources, as soon as a piece shows it.
    """
    fold = _Fold(sources, model, recipe, kernel)
    whole = Shard(0, model.size - model.begin)
    most = chunk
    if recipe.method is not None:
        most = min(chunk, max(1, BLOCK // (8 * len(sources))))
    pieces = fold.pieces(shard or whole, most)
    if depth > 1:
        results = fold.ahead(pieces, depth, most)
    else:
        many = threads > 1 and (model.size > 8 * chunk or len(sources) > BATCH)
        results = _in_order(fold.inline, pieces, threads) if many else (fold.inline(p) for p in pieces)
    return fold.whole(results, shard or whole, most)


class _Fold:
    def __init__(self, sources: Sequence[Source], model: Header, recipe: Recipe, kernel: Kernel) -> None:
        self.sources, self.model, self.recipe, self.kernel = sources, model, recipe, kernel
        wires = list({id(source.wire): source.wire for source in sources}.values())
        self.wire_of = [next(k for k, w in enumerate(wires) if w is s.wire) for s in sources]
        self.stretches = stretches(model, wires)
        self.scratch = Scratch()
        self.mix = lru_cache(maxsize=None)(self._mixed)

    def pieces(self, shard: Shard, most: int) -> Iterator[_Piece]:
        for chunk in chunks(self.stretches, shard, most):
            if self.recipe.floats_only and not chunk.stretch.is_float:
                continue
            mix = self.mix(chunk.stretch.carried)
            n = len(mix.members)
            alone = not chunk.stretch.is_float or self.recipe.method is not None
            step = n if alone else BATCH
            for begin in range(0, max(1, n), max(1, step)):
                yield _Piece(chunk, mix, begin, min(n, begin + step))

    def _mixed(self, carried: tuple[bool, ...]) -> Mix:
        return mixed(self.sources, [k for k, wire in enumerate(self.wire_of) if carried[wire]], self.recipe)

    # Rows

    def row(self, member: int, chunk: Chunk, out: Array) -> Array:
        """The update's own values of a chunk, decoded into `out`."""
        source = self.sources[member]
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # looked at when they are summed
                decode(
                    source.wire, source.sent, source.read, chunk.stretch.tensor, chunk.offset, out,
                    self.scratch, self.kernel,
                )  # fmt: skip
        except BadUpdate as error:
            raise Unfit([source.name], error.sentence) from None
        return out

    def base(self, version: int, chunk: Chunk, what: str = "base") -> Array:
        out = self.scratch.get(what, _wide(chunk.stretch), chunk.count)
        code = chunk.stretch.tensor.dtype
        read_as(code, self.recipe.bases[version], chunk.start, out, self.scratch, self.kernel)
        return out

    def _rows(self, piece: _Piece) -> Iterator[Array]:
        """Decoded rows of a piece: each is good until ROWS more have been taken."""
        wide, n = _wide(piece.chunk.stretch), piece.chunk.count
        for k in range(piece.begin, piece.stop):
            out = self.scratch.get(f"row {k % ROWS}", wide, n)
            yield self.row(piece.mix.members[k], piece.chunk, out)

    # Pieces

    def inline(self, piece: _Piece) -> Array:
        return self.work(piece, self._rows(piece) if self.recipe.method is None else None, {})

    def ahead(self, pieces: Iterable[_Piece], depth: int, most: int) -> Results:
        """The same, with `depth` reads of `most` elements in flight, or more smaller ones, also of the pieces
        that come next."""
        waiting: deque[tuple[_Piece, int, deque[Future[Array]]]] = deque()  # with the number of its reads
        under_way, spare = 0, _Spare(most)  # elements that are asked for and not taken

        def asked() -> Iterator[tuple[deque[Future[Array]], Callable[[], Array], int]]:
            for piece in pieces:
                reads, futures = self._reads(piece, spare), deque[Future[Array]]()
                waiting.append((piece, len(reads), futures))
                for read in reads:
                    yield futures, read, piece.chunk.count

        coming = asked()
        with ThreadPoolExecutor(max(depth, AT_ONCE)) as pool:

            def fill() -> None:
                nonlocal under_way
                while under_way < depth * most and sum(len(found) for *_, found in waiting) < 2 * AT_ONCE:
                    futures, read, count = next(coming, (None, None, 0))
                    if futures is None or read is None:
                        return
                    under_way += count
                    futures.append(pool.submit(read))

            def taken(piece: _Piece, number: int, futures: deque[Future[Array]]) -> Iterator[Array]:
                """Each is good until ROWS more have been taken, but for models."""
                nonlocal under_way
                rows = piece.stop - piece.begin if piece.chunk.stretch.is_float else 0
                given: deque[Array] = deque()
                for k in range(number):
                    fill()
                    found = futures.popleft().result()
                    under_way -= piece.chunk.count
                    if k >= number - rows:
                        given.append(found)
                    if len(given) > ROWS:
                        spare.give(given.popleft())
                    yield found
                for row in given:
                    spare.give(row)

            try:
                fill()
                while waiting:
                    piece = waiting[0][0]
                    rows = taken(*waiting[0])
                    if not piece.chunk.stretch.is_float:
                        (copied,) = rows
                        yield copied
                    else:
                        bases = {version: next(rows) for version in self._versions(piece)}
                        yield self.work(piece, rows, bases)
                    deque(rows, 0)  # of files, which the kernel reads itself
                    waiting.popleft()
                    fill()
            finally:
                for *_, futures in waiting:
                    for future in futures:
                        future.cancel()

    def _reads(self, piece: _Piece, spare: "_Spare") -> list[Callable[[], Array]]:
        """What a piece is made of, each by itself: models, then rows; or what is taken as it is."""
        chunk, mix = piece.chunk, piece.mix
        if not chunk.stretch.is_float:
            return [partial(self._copied, chunk, mix)]
        wide = _wide(chunk.stretch)
        return [
            *(partial(self._base, version, chunk, wide) for version in self._versions(piece)),
            *(partial(self._fresh, k, chunk, wide, spare) for k in mix.members[piece.begin : piece.stop]),
        ]

    def _versions(self, piece: _Piece) -> list[int]:
        """Models that a piece is folded with."""
        mix, newest = piece.mix, self.recipe.base
        if not mix.members:
            return [newest]
        if self.recipe.method is None:
            whole = piece.stop - piece.begin == len(mix.members)
            return [version for version, _ in mix.models] if whole else []
        return list(dict.fromkeys(v for k in mix.members for v in self._moved(self.sources[k])))

    def _moved(self, source: Source) -> list[int]:
        """Models that an update is brought from and to, where updates lie side by side."""
        delta, newest = source.wire.form.delta, self.recipe.base
        moved = source.base != newest or source.factor != 1.0
        return ([source.base] if moved and not delta else []) + ([newest] if moved or delta else [])

    def _fresh(self, member: int, chunk: Chunk, wide: Any, spare: "_Spare") -> Array:
        return self.row(member, chunk, spare.take(chunk.count, wide))

    def _base(self, version: int, chunk: Chunk, wide: Any) -> Array:
        out = np.empty(chunk.count, wide)
        code = chunk.stretch.tensor.dtype
        read_as(code, self.recipe.bases[version], chunk.start, out, self.scratch, self.kernel)
        return out

    def work(self, piece: _Piece, rows: Iterator[Array] | None, bases: Mapping[int, Array]) -> Array:
        """A piece folded: to the end where it is all of its chunk, else a sum in 64 bits. `rows`, `bases`:
        updates and models that have been read already."""
        chunk, mix = piece.chunk, piece.mix
        if not chunk.stretch.is_float:
            return self._copied(chunk, mix)
        if not mix.members:
            newest = self.recipe.base
            base = bases[newest] if newest in bases else self.base(newest, chunk)
            return self._finished(chunk, mix, base.astype(np.float64))
        if self.recipe.method is not None:
            shares = mix.weights / mix.weights.sum()
            block = self.block(chunk, mix.members, rows=rows, bases=bases)
            made = _checked(self.recipe.method(block, shares), chunk.count)
            return self._finished(chunk, mix, made.astype(np.float64))
        out = self._straight(piece)
        if out is not None:
            return out
        total = self._sum(piece, rows or self._rows(piece))
        if piece.stop - piece.begin < len(mix.members):
            return total.copy()
        return self._finished(chunk, mix, self._with_models(chunk, mix, total, bases))

    def whole(self, results: Results, shard: Shard, most: int) -> Generator[memoryview, None, None]:
        """Results of pieces as bytes, those of one chunk added up in their order."""
        total: Array | None = None
        with closing(results):
            for piece, result in zip(self.pieces(shard, most), results, strict=True):
                n = len(piece.mix.members)
                if piece.stop - piece.begin == n:
                    yield _bytes(result)
                    continue
                total = result if total is None else np.add(total, result, out=total)
                if piece.stop == n:
                    made = self._with_models(piece.chunk, piece.mix, total, {})
                    yield _bytes(self._finished(piece.chunk, piece.mix, made))
                    total = None

    def _straight(self, piece: _Piece) -> Array | None:
        """Folded in one go, where files of fp32 are summed and nothing else is to be done; None elsewhere,
        and where that finds what is not finite."""
        mix, recipe = piece.mix, self.recipe
        alone = piece.stop - piece.begin == len(mix.members) and not mix.models
        files = self._files(piece) if alone and recipe.noise is None and recipe.after is None else ()
        if not files:
            return None
        n, weights = piece.chunk.count, mix.weights.astype(np.float32)
        out, room = np.empty(n, np.float32), self.scratch.get("rows", np.float32, (ROWS + 1) * n)
        total, limit = self.scratch.get("total", np.float64, n), float(np.finfo(np.float32).max)
        return out if self.kernel.sum_files(total, room, files, weights, GROUP, out, limit) else None

    def _sum(self, piece: _Piece, rows: Iterator[Array]) -> Array:
        """Sums of GROUP updates in 32 bits (64 where the model has them), the sum of sums in 64."""
        n, wide = piece.chunk.count, _wide(piece.chunk.stretch)
        kernel = self.kernel if wide == np.float32 else NUMPY
        total = self.scratch.get("total", np.float64, n)
        weights = piece.mix.weights[piece.begin : piece.stop].astype(wide)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for below
            files = self._files(piece)
            room = self.scratch.get("rows", np.float32, (ROWS + 1) * n)
            if not files or not kernel.sum_files(total, room, files, weights, GROUP):
                part = self.scratch.get("part", wide, n)
                for start in range(0, len(weights), GROUP):
                    stop = min(start + GROUP, len(weights))
                    for k in range(start, stop, ROWS):
                        pack = [next(rows) for _ in range(k, min(k + ROWS, stop))]
                        kernel.accumulate(part, pack, weights[k : k + len(pack)], k == start)
                    kernel.widen(total, part, start == 0)
        # One test for all: a NaN or infinity in any update makes the sum one, a finite mean cannot.
        if not kernel.finite(total):
            if culprits := self._culprits(piece.chunk, piece.mix.members):
                raise Unfit(culprits, NOT_FINITE)
            np.nan_to_num(total, copy=False)  # all finite: shares that sum to 1 + ε overflowed the last bit
        return total

    def _files(self, piece: _Piece) -> list[tuple[int, int]]:
        """Where the piece lies in the files of its updates, if all are files of fp32 as it is."""
        tensor, offset, found = piece.chunk.stretch.tensor, 4 * piece.chunk.offset, []
        for k in piece.mix.members[piece.begin : piece.stop] if tensor.dtype == "F32" else ():
            source = self.sources[k]
            if source.file is None or source.wire.form.codec not in ("full", "fp32"):
                return []
            handle, begin = source.file
            found.append((handle, begin + source.wire.place(tensor.name) + offset))
        return found

    def _with_models(self, chunk: Chunk, mix: Mix, total: Array, bases: Mapping[int, Array]) -> Array:
        for version, coefficient in mix.models:
            base = bases[version] if version in bases else self.base(version, chunk)
            with np.errstate(over="ignore"):  # of doubles near their end; `stored` brings them back
                total += np.multiply(base, coefficient, dtype=np.float64)
        return total

    def _finished(self, chunk: Chunk, mix: Mix, values: Array) -> Array:
        """Values as they are written; `values` may be used up."""
        recipe, code = self.recipe, chunk.stretch.tensor.dtype
        if recipe.noise is not None and mix.members:
            values += recipe.noise(chunk)
        if recipe.after is not None:
            return recipe.after(chunk, values)
        return stored(values, code, self.kernel)

    def _copied(self, chunk: Chunk, mix: Mix) -> Array:
        """Of the heaviest update, the first of them where several weigh the same; else, and where privacy
        is kept, as it was."""
        values = np.empty(chunk.count, DTYPES[chunk.stretch.tensor.dtype])
        if not mix.members or self.recipe.noise is not None:  # no noise would hide what one device says alone
            self.recipe.bases[self.recipe.base](chunk.start, _bytes(values))
            return values
        source = self.sources[mix.members[int(np.argmax(mix.weights))]]
        place = source.wire.place(chunk.stretch.tensor.name, source.sent)
        source.read(place + chunk.offset * values.itemsize, _bytes(values))
        if values.dtype == np.bool_ and (values.view(np.uint8) > 1).any():
            raise Unfit([source.name], NOT_BOOLEAN)
        return values

    def block(
        self, chunk: Chunk, members: Sequence[int], *, deltas: bool = False,
        rows: Iterator[Array] | None = None, bases: Mapping[int, Array] | None = None,
    ) -> Array:  # fmt: skip
        """The chunk of every update side by side: [n, elements], finite; models as from the newest base,
        or differences each to its own. `rows`, `bases`: what has been read already."""
        block = np.empty((len(members), chunk.count), _wide(chunk.stretch))
        known = dict(bases or {})

        def base(version: int) -> Array:
            if version not in known:  # a store would be asked for it by each update
                known[version] = self.base(version, chunk, f"base {version}")
            return known[version]

        with np.errstate(over="ignore", invalid="ignore"):
            for row, member in zip(block, members, strict=True):
                if rows is None:
                    self.row(member, chunk, row)
                else:
                    np.copyto(row, next(rows))
                source, newest = self.sources[member], self.recipe.base
                delta = source.wire.form.delta
                moved = source.base != newest or source.factor != 1.0
                if not delta and (deltas or moved):
                    row -= base(source.base)
                if not deltas and source.factor != 1.0:
                    row *= row.dtype.type(source.factor)
                if not deltas and (delta or moved):
                    row += base(newest)
        if not np.isfinite(block).all():
            at = np.flatnonzero(~np.isfinite(block).all(axis=1)).tolist()
            raise Unfit([self.sources[members[k]].name for k in at], NOT_FINITE)
        return block

    def _culprits(self, chunk: Chunk, members: Sequence[int]) -> list[str]:
        """Who sent values that are not finite, in this chunk."""
        values = np.empty(chunk.count, _wide(chunk.stretch))
        return [self.sources[k].name for k in members if not np.isfinite(self.row(k, chunk, values)).all()]


class _Spare:
    """Rows of `most` elements that are used again: pages that are new cost as much as what is done in them.
    Small ones are not kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: defaultdict[Any, list[Array]] = defaultdict(list)

    def take(self, count: int, dtype: Any) -> Array:
        if 2 * count <= self._most:
            return np.empty(count, dtype)
        try:
            whole = self._rows[dtype].pop()
        except IndexError:
            whole = np.empty(self._most, dtype)
        return whole[:count]

    def give(self, row: Array) -> None:
        """Nobody looks at it any more."""
        if isinstance(row.base, np.ndarray) and len(row.base) == self._most:
            self._rows[row.dtype.type].append(row.base)


def measured(
    sources: Sequence[Source], model: Header, measure: Callable[[Array], Array], recipe: Recipe = MEAN,
    shard: Shard | None = None, *, together: bool = True,
) -> Array:  # fmt: skip
    """The sum of `measure` over all floats of the updates, block by block: [n, elements] → its part.

    For measures that add up exactly, of whole cells. `together`: of all updates' values side by side
    (`robust.distances`); else of each update's difference to its own base, one update after another
    (`robust.norms_squared`). Raises Unfit.
    """
    fold = _Fold(sources, model, recipe, KERNEL)
    n = len(sources) if together else 1
    most = max(CELL, BLOCK // (8 * n) // CELL * CELL)
    total: Array = np.zeros((n, n) if together else len(sources), object)
    for chunk in chunks(fold.stretches, shard or Shard(0, model.size - model.begin), most):
        if not chunk.stretch.is_float:
            continue
        members = fold.mix(chunk.stretch.carried).members
        if together:
            total = total + measure(fold.block(chunk, members))
        else:
            for k in members:
                total[k : k + 1] += measure(fold.block(chunk, [k], deltas=True))
    return total


def stored(values: Floats, code: str, kernel: Kernel = KERNEL) -> Array:
    """fp64 as floats of that dtype, rounded once; what it cannot hold becomes its largest."""
    if code != "F32":
        largest = np.finfo(np.float64).max
        return narrowed(np.clip(values, -largest, largest), code)
    out = np.empty(len(values), np.float32)
    kernel.narrow(out, values, float(np.finfo(np.float32).max))
    return out


def _in_order(work: Callable[[_Piece], Array], pieces: Iterable[_Piece], threads: int) -> Results:
    """Results in the order of the pieces, a few of them at work at once and no more waiting."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Array]] = deque()
        try:
            for piece in pieces:
                pending.append(pool.submit(work, piece))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _wide(stretch: Stretch) -> Any:
    """What a stretch of floats is computed in."""
    return np.float64 if stretch.tensor.dtype == "F64" else np.float32


def _checked(made: Any, count: int) -> Array:
    out = np.asarray(made)
    if out.shape != (count,) or not np.isfinite(out).all():
        raise BadConfig(
            f"the fold function returned {out.dtype}{list(out.shape)}"
            f"{'' if out.shape != (count,) else ' with values that are not finite'}, "
            f"expected finite [{count}]"
        )
    return out


def _bytes(array: Array) -> memoryview:
    """The array's own memory, as bytes."""
    return (array.view(np.uint16) if array.dtype.fields else array).data.cast("B")
