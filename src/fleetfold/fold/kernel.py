"""The fold's inner loops over one chunk: in numpy, and compiled, with the same bytes as result.

    rows (fp32) × weights ─▶ part (fp32), row after row ─▶ total (fp64)        bf16, fp16, int8 ─▶ fp32

`_kernel.c` is built with the package where there is a C compiler. It does each addition and each
multiplication that numpy does, in the same order, but in one pass over the data, and reads files itself.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from threading import local
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fleetfold.fold.tensors import ALIGNMENT

Array = NDArray[Any]
VERSION = 3
"""Of the compiled kernel's functions; one of another version is left alone."""


class Kernel(Protocol):
    """All arrays are contiguous and of one length; those called `out`, `part` and `total` are written."""

    name: str

    def accumulate(self, part: Array, rows: Sequence[Array], weights: Array, first: bool) -> None:
        """part (fp32; from nothing if `first`) + rows[0] · weights[0] + …, rounded after each step."""

    def widen(self, total: Array, part: Array, first: bool) -> None:
        """total (fp64; from nothing if `first`) + part (fp32)."""

    def sum_files(
        self, total: Array, rows: Array, files: Sequence[tuple[int, int]], weights: Array, group: int,
        out: Array | None = None, limit: float = 0.0,
    ) -> bool:  # fmt: skip
        """total (fp64) = the sum of the fp32 values that lie in each file (handle, byte) · its weight, as
        `accumulate` and `widen` over groups of that many would make it; or `out`, where there is one, as
        `narrow` would make it of that. rows: room for 5 rows (fp32). → whether that was done; it is not
        where this kernel cannot, a file ends too soon, or a sum for `out` is not finite."""

    def finite(self, values: Array) -> bool:
        """Whether all of the fp64 values are finite."""

    def narrow(self, out: Array, values: Array, limit: float) -> None:
        """out (fp32) = values (fp64) within ±limit."""

    def bf16(self, out: Array, stored: Array) -> None:
        """out (fp32) = stored, whose 16 bits (uint16) are the upper half of it."""

    def fp16(self, out: Array, stored: Array) -> None:
        """out (fp32) = stored (uint16: IEEE half)."""

    def int8(self, out: Array, stored: Array, scales: Array, phase: int, block: int) -> None:
        """out (fp32) = stored (int8) · the scale (fp32) of its block; the first value is number `phase` of
        the first block, each has `block` values."""


class NumPy:
    """The reference: what each function means, in numpy's words."""

    name = "numpy"

    def accumulate(self, part: Array, rows: Sequence[Array], weights: Array, first: bool) -> None:
        product = np.empty_like(part)
        for row, weight in zip(rows, weights, strict=True):
            if first:
                np.multiply(row, weight, out=part)
                first = False
            else:
                np.multiply(row, weight, out=product)
                np.add(part, product, out=part)

    def widen(self, total: Array, part: Array, first: bool) -> None:
        if first:
            np.copyto(total, part)
        else:
            np.add(total, part, out=total)

    def sum_files(
        self, total: Array, rows: Array, files: Sequence[tuple[int, int]], weights: Array, group: int,
        out: Array | None = None, limit: float = 0.0,
    ) -> bool:  # fmt: skip
        return False

    def finite(self, values: Array) -> bool:
        return bool(np.isfinite(values).all())

    def narrow(self, out: Array, values: Array, limit: float) -> None:
        np.copyto(out, np.clip(values, -limit, limit), casting="same_kind")

    def bf16(self, out: Array, stored: Array) -> None:
        halves = out.view("<u2")
        halves[0::2] = 0
        halves[1::2] = stored

    def fp16(self, out: Array, stored: Array) -> None:
        np.copyto(out, stored.view("<f2"))

    def int8(self, out: Array, stored: Array, scales: Array, phase: int, block: int) -> None:
        head = min(-phase % block, len(out))  # up to where a block begins
        whole = (len(out) - head) // block * block
        lead = int(head > 0)
        with np.errstate(over="ignore", invalid="ignore"):  # of scales that are bombs; the fold looks
            np.multiply(stored[:head], scales[:lead], out=out[:head], dtype=np.float32)
            middle = scales[lead : lead + whole // block, None]
            values = stored[head : head + whole].reshape(-1, block)
            np.multiply(values, middle, out=out[head : head + whole].reshape(-1, block), dtype=np.float32)
            rest, last = head + whole, scales[lead + whole // block :]
            np.multiply(stored[rest:], last, out=out[rest:], dtype=np.float32)


_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Compiled:
    """The same in C. Calls let go of the interpreter: two threads work at once."""

    name = "compiled"

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, types in {
            "accumulate": (_POINTER, _POINTER, _POINTER, _INT, _LONG, _INT),
            "widen": (_POINTER, _POINTER, _LONG, _INT),
            "sum_files": (*[_POINTER] * 6, _INT, _INT, _LONG, _POINTER, ctypes.c_double),
            "finite": (_POINTER, _LONG),
            "narrow": (_POINTER, _POINTER, _LONG, ctypes.c_double),
            "bf16": (_POINTER, _POINTER, _LONG),
            "fp16": (_POINTER, _POINTER, _LONG),
            "int8": (_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG),
        }.items():
            function = getattr(library, f"fleetfold_{name}")
            function.argtypes, function.restype = types, _INT if name in ("finite", "sum_files") else None
            setattr(self, f"_{name}", function)

    _accumulate: Any
    _widen: Any
    _sum_files: Any
    _finite: Any
    _narrow: Any
    _bf16: Any
    _fp16: Any
    _int8: Any

    def accumulate(self, part: Array, rows: Sequence[Array], weights: Array, first: bool) -> None:
        places = (_POINTER * len(rows))(*[row.ctypes.data for row in rows])
        self._accumulate(part.ctypes.data, places, weights.ctypes.data, len(rows), len(part), first)

    def widen(self, total: Array, part: Array, first: bool) -> None:
        self._widen(total.ctypes.data, part.ctypes.data, len(part), first)

    def sum_files(
        self, total: Array, rows: Array, files: Sequence[tuple[int, int]], weights: Array, group: int,
        out: Array | None = None, limit: float = 0.0,
    ) -> bool:  # fmt: skip
        n, count, first = len(total), len(files), rows.ctypes.data
        handles = (_INT * count)(*[handle for handle, _ in files])
        places = (_LONG * count)(*[place for _, place in files])
        failed = self._sum_files(
            total.ctypes.data, first + 16 * n, first, handles, places, weights.ctypes.data, count, group, n,
            None if out is None else out.ctypes.data, limit,
        )  # fmt: skip
        return not failed

    def finite(self, values: Array) -> bool:
        return bool(self._finite(values.ctypes.data, len(values)))

    def narrow(self, out: Array, values: Array, limit: float) -> None:
        self._narrow(out.ctypes.data, values.ctypes.data, len(out), limit)

    def bf16(self, out: Array, stored: Array) -> None:
        self._bf16(out.ctypes.data, stored.ctypes.data, len(out))

    def fp16(self, out: Array, stored: Array) -> None:
        self._fp16(out.ctypes.data, stored.ctypes.data, len(out))

    def int8(self, out: Array, stored: Array, scales: Array, phase: int, block: int) -> None:
        self._int8(
            out.ctypes.data, stored.ctypes.data, scales.ctypes.data, len(out), phase % block, block
        )  # fmt: skip


def _compiled() -> Kernel | None:
    path = Path(__file__).with_name("_kernel.so")
    try:
        library = ctypes.CDLL(str(path))
        return Compiled(library) if library.fleetfold_version() == VERSION else None
    except (OSError, AttributeError):
        return None


NUMPY: Kernel = NumPy()
COMPILED: Kernel | None = _compiled()
KERNEL: Kernel = COMPILED or NUMPY
"""The one in use."""


class Scratch(local):
    """Buffers of one thread, used again for each chunk: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, Any], Array] = {}

    def get(self, what: str, dtype: Any, count: int) -> Array:
        """`count` elements that start where a cache line does: reads into them run twice as fast."""
        key = (what, dtype)
        found = self._buffers.get(key)
        if found is None or len(found) < count:
            found = self._buffers[key] = _aligned(dtype, count)
        return found[:count]


def _aligned(dtype: Any, count: int) -> Array:
    size = np.dtype(dtype).itemsize * count
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype)
