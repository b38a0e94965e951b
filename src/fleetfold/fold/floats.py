"""Floats of any width as fp32 or fp64 to compute with, and back to the width in which they are stored."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfold.fold.kernel import KERNEL
from fleetfold.fold.tensors import BF16, DTYPES

Array = NDArray[Any]


def widened(array: Array) -> Array:
    """Floats as fp32, or fp64 where they are."""
    if array.dtype.name == "bfloat16" or array.dtype == BF16:
        out = np.empty(array.size, np.float32)
        KERNEL.bf16(out, np.ascontiguousarray(array).reshape(-1).view(np.uint16))
        return out.reshape(array.shape)
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def narrowed(values: Array, code: str) -> Array:
    """Floats (fp32 or fp64) stored as `code`, rounded to the nearest; what is finite and too large becomes
    the largest there is."""
    if code == "BF16":
        wide = np.ascontiguousarray(narrowed(values, "F32"))
        bits = wide.view(np.uint32).reshape(wide.shape)
        kept = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        kept -= kept & np.uint32(0x7FFF) == 0x7F80  # a finite one that was rounded to infinity
        kept = np.where(np.isfinite(wide), kept, bits >> np.uint32(16))
        return kept.astype(np.uint16).view(BF16)
    dtype = DTYPES[code]
    if dtype.itemsize >= values.dtype.itemsize:
        return values.astype(dtype, copy=False)
    limit = np.finfo(dtype).max
    return np.where(np.isfinite(values), np.clip(values, -limit, limit), values).astype(dtype)
