"""How the floats of an update travel: one stream, encoded on the device, decoded by the range in the fold.

    full            own dtypes        int8   values, and a scale for each 1,024 of them
    fp32 bf16 fp16  at most so wide   topk   for each 65,536: which are sent, and their values

Decoding works on what a device wrote: every range is checked before it is used, none is trusted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fleetfold.errors import BadUpdate
from fleetfold.fold.floats import narrowed, widened
from fleetfold.fold.kernel import KERNEL, Kernel, Scratch
from fleetfold.fold.tensors import DTYPES, Header, Tensor, code_of, elements_of
from fleetfold.fold.wire import BLOCK, INDICES, PAGE, SCALES, STARTS, VALUES, WIDTHS, Wire
from fleetfold.messages import Form

Array = NDArray[Any]
Read = Callable[[int, memoryview], None]
"""(byte, counted from where the tensors begin; buffer): fill it."""

LOSSY = frozenset({"bf16", "fp16", "int8", "topk"})
"""Codecs that leave something behind: what error feedback adds to the next update."""


def decode(
    wire: Wire, sent: int, read: Read, tensor: Tensor, first: int, out: Array, scratch: Scratch,
    kernel: Kernel = KERNEL,
) -> None:  # fmt: skip
    """Fill `out` (fp32, or fp64 for a tensor of fp64) with the update's values from element `first` of
    `tensor` on, over its end into those that follow it. Raises BadUpdate where top-k's indices are none."""
    n, codec = len(out), wire.form.codec
    if codec in WIDTHS:
        code = wire.stored(tensor.dtype)
        read_as(code, read, wire.place(tensor.name) + first * DTYPES[code].itemsize, out, scratch, kernel)
        return
    at = wire.first[tensor.name] + first  # in the stream
    values = out if out.dtype == np.float32 else scratch.get("decoded", np.float32, n)
    if codec == "int8":
        stored = scratch.get("stored", np.int8, n)
        scales = scratch.get("scales", np.float32, -(-(at + n) // BLOCK) - at // BLOCK)
        read(wire.place(VALUES) + at, _bytes(stored))
        read(wire.place(SCALES) + at // BLOCK * 4, _bytes(scales))
        kernel.int8(values, stored, scales, at % BLOCK, BLOCK)
    else:
        _sparse(wire, sent, read, at, values)
    if values is not out:
        np.copyto(out, values)


def read_as(code: str, read: Read, place: int, out: Array, scratch: Scratch, kernel: Kernel = KERNEL) -> None:
    """Fill `out` (fp32 or fp64) with floats that are stored as `code` from byte `place` on."""
    if DTYPES[code] == out.dtype:
        read(place, _bytes(out))
        return
    if code in ("BF16", "F16"):
        stored = scratch.get("stored", np.uint16, len(out))
        read(place, _bytes(stored))
        values = out if out.dtype == np.float32 else scratch.get("decoded", np.float32, len(out))
        (kernel.bf16 if code == "BF16" else kernel.fp16)(values, stored)
    else:
        values = scratch.get("stored", DTYPES[code], len(out))
        read(place, _bytes(values))
    if values is not out:
        np.copyto(out, values, casting="same_kind")


def _sparse(wire: Wire, sent: int, read: Read, at: int, out: Array) -> None:
    """Top-k: zeros, but for the values sent. What the pages say of themselves is checked on the way."""
    out[:] = 0.0
    stop = at + len(out)
    pages = range(at // PAGE, -(-stop // PAGE))
    starts = np.empty(len(pages) + 1, np.int64)
    read(wire.place(STARTS) + pages.start * 8, _bytes(starts))
    for k, page in enumerate(pages):
        begin, end = int(starts[k]), int(starts[k + 1])
        whole = (page > 0 or begin == 0) and (stop < wire.elements or page < pages.stop - 1 or end == sent)
        if not (0 <= begin <= end <= min(sent, begin + PAGE) and whole):
            raise BadUpdate(f"top-k: page {page} lies from {begin} to {end}, there are {sent} values")
        indices, values = np.empty(end - begin, np.uint16), np.empty(end - begin, np.float32)
        read(wire.place(INDICES, sent) + begin * 2, _bytes(indices))
        read(wire.place(VALUES) + begin * 4, _bytes(values))
        if (indices[1:] <= indices[:-1]).any():
            raise BadUpdate(f"top-k: the indices of page {page} do not ascend")
        if len(indices) and page * PAGE + int(indices[-1]) >= wire.elements:
            raise BadUpdate(f"top-k: page {page} sends a value beyond the model's {wire.elements}")
        here = indices.astype(np.int64) + (page * PAGE - at)
        inside = (here >= 0) & (here < len(out))
        out[here[inside]] = values[inside]


# On the device


class Encoded(Struct, frozen=True):
    """The tensors of an update's file in their order, and what the codec left behind: fp32, one for each
    element of the stream, empty where nothing is kept."""

    tensors: dict[str, Array]
    residual: Array


def encode(
    tensors: dict[str, Array], base: dict[str, Array], model: Header, form: Form, seed: Sequence[int], *,
    sent: int = 1, residual: Array | None = None, feedback: bool = False,
) -> Encoded:  # fmt: skip
    """`tensors` as an update of that form to the model `base`, whose header is `model`.

    sent: how many values, of top-k: at least one, at most all. residual: what was left behind last time,
    added to the values now. Rounding is stochastic, drawn from `seed`: its mean over many updates is the
    value itself (Alistarh et al., "QSGD", 2017); what is left behind is sent later (Seide et al., "1-Bit
    SGD", 2014). Raises
    BadUpdate where a tensor has another dtype or shape than the model's.
    """
    wire = Wire(model, form)
    for tensor in wire.carried:
        _same(tensor, tensors.get(tensor.name))
    rest = {t.name: tensors[t.name] for t in wire.rest}
    nothing = np.empty(0, np.float32)
    if form.codec not in LOSSY:
        return Encoded({t.name: _plain(wire, t, tensors, base) for t in wire.floats} | rest, nothing)
    stream = np.empty(wire.elements, np.float32)
    for tensor in wire.floats:
        part = stream[wire.first[tensor.name] :][: elements_of(tensor.shape)]
        part[:] = _less(tensors[tensor.name], base[tensor.name] if form.delta else None).ravel()
    if residual is not None and len(residual) == len(stream):
        stream += residual
    chance = np.random.default_rng(seed)
    seen = np.zeros(len(stream) if feedback else 0, np.float32)  # what the fold will see
    if form.codec == "topk":
        stored = _largest(stream, sent, seen)
    elif form.codec == "int8":
        values, scales = quantize(stream, chance)
        stored = {VALUES: values, SCALES: scales}
        KERNEL.int8(seen, values[: len(seen)], scales, 0, BLOCK)
    else:
        stored = {}
        codes = {tensor.name: wire.stored(tensor.dtype) for tensor in wire.floats}
        for name, part in _cut(wire, stream).items():
            array = _rounded(codes[name], part.ravel(), chance)
            stored[name] = array.reshape(part.shape)
            seen[wire.first[name] :][: array.size] = widened(array)[: len(seen)]
    if feedback:
        np.subtract(stream, seen, out=seen)
        seen[~np.isfinite(seen)] = 0.0
    return Encoded(stored | rest, seen)


def quantize(values: Array, chance: np.random.Generator) -> tuple[Array, Array]:
    """[n] fp32 → int8 [n], and for each BLOCK of them the scale (fp32) that they are to be multiplied by.

    Rounded up or down by chance, so that the mean is the value. What is not finite leaves a scale that is
    not, either.
    """
    n, step = len(values), BLOCK << 10  # a piece at a time: a device has little memory
    out, scales = np.empty(n, np.int8), np.empty(-(-n // BLOCK), np.float32)
    for first in range(0, n, step):
        part = values[first : first + step]
        blocks = np.zeros((-(-len(part) // BLOCK), BLOCK), np.float32)
        blocks.ravel()[: len(part)] = part
        scale = np.abs(blocks).max(axis=1) / np.float32(127)
        blocks[scale == 0] = 0.0  # also of values too small to have a scale
        scale[scale == 0] = 1.0
        with np.errstate(invalid="ignore", over="ignore"):
            blocks /= scale[:, None]
            blocks += chance.random(blocks.shape, np.float32)
            np.floor(blocks, out=blocks)
        np.clip(np.nan_to_num(blocks, copy=False), -127, 127, out=blocks)
        out[first : first + step] = blocks.ravel()[: len(part)]
        scales[first // BLOCK :][: len(scale)] = scale
    return out, scales


def _plain(wire: Wire, tensor: Tensor, tensors: dict[str, Array], base: dict[str, Array]) -> Array:
    """Of a codec without loss: as it is, or narrowed from fp64; or its difference, in its own dtype."""
    array, code = tensors[tensor.name], wire.stored(tensor.dtype)
    if wire.form.delta:
        return narrowed(_less(array, base[tensor.name]), code)
    return array if code == tensor.dtype else narrowed(widened(array), code)


def _less(array: Array, base: Array | None) -> Array:
    """The array, or its difference to the base, in fp32 or fp64."""
    return widened(array) if base is None else widened(array) - widened(base)


def _cut(wire: Wire, stream: Array) -> dict[str, Array]:
    """The stream as the tensors that it is made of."""
    return {
        t.name: stream[wire.first[t.name] :][: elements_of(t.shape)].reshape(t.shape) for t in wire.floats
    }


def _rounded(code: str, values: Array, chance: np.random.Generator) -> Array:
    """fp32 as bf16 or half, rounded up or down by chance: random bits are added below the last one kept."""
    dropped = {"BF16": 16, "F16": 13}.get(code)
    if dropped is None:
        return narrowed(values, code)
    bits = values.view(np.uint32) + chance.integers(0, 1 << dropped, len(values), np.uint32)
    bits &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    drawn = bits.view(np.float32)
    return narrowed(np.where(np.isfinite(values) & np.isfinite(drawn), drawn, values), code)


def _largest(values: Array, sent: int, seen: Array) -> dict[str, Array]:
    """The `sent` values that are largest, whatever their sign; also put into `seen`, if it has room."""
    n = len(values)
    keep = min(n, max(1, sent))
    magnitude = np.abs(values)
    magnitude[np.isnan(magnitude)] = np.inf  # sent, so that the fold sees it
    chosen = np.sort(np.argpartition(magnitude, n - keep)[n - keep :]) if n else np.empty(0, np.int64)
    starts = np.searchsorted(chosen, np.arange(-(-n // PAGE) + 1, dtype=np.int64) * PAGE)
    if len(seen):
        seen[chosen] = values[chosen]
    return {
        STARTS: starts.astype(np.int64), VALUES: values[chosen], INDICES: (chosen % PAGE).astype(np.uint16)
    }  # fmt: skip


def _same(tensor: Tensor, array: Array | None) -> None:
    """Raises BadUpdate unless the array is what the model has there."""
    if array is None:
        raise BadUpdate(f"tensor {tensor.name[:80]!r} is missing")
    code = code_of(array)
    if (code, array.shape) != (tensor.dtype, tensor.shape):
        raise BadUpdate(
            f"tensor {tensor.name[:80]!r} is {code or array.dtype}{list(array.shape)}, "
            f"in the model {tensor.dtype}{list(tensor.shape)}"
        )


def _bytes(array: Array) -> memoryview:
    """The array's own memory, as bytes."""
    return array.data.cast("B")
