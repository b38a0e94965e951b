"""A server optimizer between the mean and the next model, its state a file beside the model.

    updates ─fold─▶ mean ─┐
    model, state ─────────┴─step─▶ next state (a pass for each of its tensors) ─▶ next model (a pass)

Each pass folds the updates again, so that memory stays that of a chunk. Every file is written once, whole,
from the same inputs: a step that is taken again writes the same bytes.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfold import layout
from fleetfold.errors import Unavailable
from fleetfold.fold.floats import narrowed, widened
from fleetfold.fold.plan import Chunk
from fleetfold.fold.recipe import After
from fleetfold.fold.server_opt import Optimizer, step
from fleetfold.fold.tensors import DTYPES, FLOATS, Header, write_header
from fleetfold.ports import Objects

Array = NDArray[Any]
Pass = Callable[[After], Iterator[memoryview]]
"""One pass of the fold over the model's floats: (what becomes of each chunk) → chunks."""


class Stepping:
    """The step from version `base` of `run` to the next. `model`: the header of that version's file; `to`:
    the next state's key."""

    def __init__(
        self, objects: Objects, run: str, base: int, model: Header, optimizer: Optimizer, to: str
    ) -> None:
        self._objects, self._run, self._base, self._optimizer = objects, run, base, optimizer
        self._to = to
        self._begin = model.begin
        floats = {t.name: t for t in model.tensors if t.dtype in FLOATS}
        wide = any(tensor.dtype == "F64" for tensor in floats.values())
        code = "F64" if wide else "F32"
        self._dtype = DTYPES[code]
        table = {
            f"{name}/{tensor.name}": (code, tensor.shape)
            for name in optimizer.state
            for tensor in floats.values()
        }
        self._header = write_header(table, b"{}")
        sizes = [(t.stop - t.start) // DTYPES[t.dtype].itemsize for t in floats.values()]
        self._elements = sum(sizes)

    def advance(self, fold: Pass) -> After:
        """Write the next state. → what makes the next model of the mean, for the fold's last pass."""
        known = self._objects.size(layout.state(self._run, self._base)) is not None

        def parts() -> Generator[bytes | memoryview, None, None]:
            yield self._header
            for which in range(len(self._optimizer.state)):
                yield from fold(partial(self._after, known, which))

        with closing(parts()) as made:
            self._objects.put(self._to, made)
        return partial(self._after, known, None)

    def _after(self, known: bool, which: int | None, chunk: Chunk, mean: Array) -> Array:
        """Of a chunk: the next model, or tensor number `which` of the next state."""
        code = chunk.stretch.tensor.dtype
        model = np.empty(mean.shape, DTYPES[code])
        self._read(layout.model(self._run, self._base), self._begin + chunk.start, model)
        optimizer = self._optimizer
        state = tuple(self._state(known, k, chunk.first, len(mean)) for k in range(len(optimizer.state)))
        wide = widened(model) if code == "BF16" else model
        after, moved = step(optimizer, wide, mean, state, self._base + 1)
        return narrowed(after, code) if which is None else moved[which]

    def _state(self, known: bool, which: int, first: int, count: int) -> Array:
        values = np.zeros(count, self._dtype)
        if known:
            offset = len(self._header) + (which * self._elements + first) * self._dtype.itemsize
            self._read(layout.state(self._run, self._base), offset, values)
        return values

    def _read(self, key: str, offset: int, into: Array) -> None:
        data = (into.view(np.uint16) if into.dtype.fields else into).data.cast("B")
        with closing(self._objects.open(key)) as reader:
            if reader.read(offset, data) != len(data):
                raise Unavailable(f"{key} is cut off")
