"""A model or an update as a file: the safetensors format, read through checked views, never unpickled.

    8 bytes: length of the header │ header: JSON {name: {dtype, shape, data_offsets}} │ tensors, no gaps

The header's `__metadata__` holds one text, `fleetfold`: JSON of ours. Format: safetensors 0.x, whose
own reader reads what is written here. A file from a device is hostile until `parse_header` has seen it.
"""

import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from fleetfold.errors import BadUpdate

Tensors = dict[str, NDArray[Any]]
"""Named arrays, in the model's order."""

BF16 = np.dtype([("bfloat16", "<u2")])
"""numpy has no bfloat16: its 16 bits under a name, so that nobody takes them for integers."""
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BF16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("bool"),
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""What is folded; the other dtypes are counters, masks and the like."""

PREFIX = 8
"""Bytes before the header: its length, little-endian."""
METADATA_LIMIT = 1 << 20
"""Bytes that the metadata of one file may take."""
DIMENSIONS = 64
"""A tensor may have, as in numpy: the product of a million takes minutes."""
ENTRY_LIMIT = 1 << 12
"""Bytes that the entry of one tensor may take: room for that many dimensions, and spaces."""
REMEMBERED, TABLES = 1 << 15, 16
"""Bytes that a table of tensors may take to be remembered, and how many of them are."""
ALIGNMENT = 64
"""The tensors of files written here start at a multiple of this, a cache line."""


class Tensor(Struct, frozen=True):
    """Where one tensor lies: bytes [start, stop) from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(Struct, frozen=True):
    """A file's table of tensors, in the order in which they lie from byte `begin` on, its length, and our
    metadata (JSON)."""

    tensors: tuple[Tensor, ...]
    size: int
    begin: int
    metadata: bytes = b""

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → (dtype, shape): what two files must share to be folded together."""
        return {t.name: (t.dtype, t.shape) for t in self.tensors}


def write_header(layout: Mapping[str, tuple[str, tuple[int, ...]]], metadata: bytes) -> bytes:
    """The first bytes of a file of that layout, up to where the tensors begin. Same input, same bytes."""
    table: dict[str, Any] = {"__metadata__": {"fleetfold": metadata.decode()}}
    position = 0
    for name, (dtype, shape) in layout.items():
        end = position + bytes_of(dtype, shape)
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": (position, end)}
        position = end
    text = msgspec.json.encode(table)
    text += b" " * (-(PREFIX + len(text)) % ALIGNMENT)
    return len(text).to_bytes(PREFIX, "little") + text


def layout_of(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → (dtype, shape). Raises BadUpdate for a dtype that the format here does not have."""
    layout = {}
    for name, array in tensors.items():
        code = code_of(array)
        if code is None or name == "__metadata__":
            raise BadUpdate(f"tensor {name!r}: dtype {array.dtype} cannot be stored; use one of {_known()}")
        layout[name] = (code, tuple(array.shape))
    return layout


def code_of(array: NDArray[Any]) -> str | None:
    """The format's name for the array's dtype, None if it has none; ml_dtypes' bfloat16 is known by name."""
    return _code(array.dtype)


@lru_cache(1 << 10)
def _code(dtype: np.dtype[Any]) -> str | None:
    return "BF16" if dtype.name == "bfloat16" else _CODES.get(dtype.newbyteorder("<"))


def write(tensors: Tensors, metadata: bytes = b"{}") -> bytes:
    """A whole file in memory."""
    return b"".join(
        [write_header(layout_of(tensors), metadata), *(_bytes(array).data for array in tensors.values())]
    )


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array's, as they lie in a file; a view, where that can be."""
    return np.ascontiguousarray(_little(array)).reshape(-1).view(np.uint8)


def _little(array: NDArray[Any]) -> NDArray[Any]:
    dtype = array.dtype.newbyteorder("<")
    return array if dtype == array.dtype else array.astype(dtype)


def header_length(prefix: bytes, size: int, limit: int) -> int:
    """Bytes up to where the tensors begin, from a file's first 8 bytes. Raises BadUpdate over `limit`."""
    if size < PREFIX or len(prefix) < PREFIX:
        raise BadUpdate(f"cut off: {size} bytes are not a file of tensors")
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > limit:
        raise BadUpdate(f"header of {length} bytes, at most {limit} are read")
    if PREFIX + length > size:
        raise BadUpdate(f"cut off: header of {length} bytes in a file of {size}")
    return PREFIX + length


_Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class _Entry(Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PAIR = re.compile(
    rb"[ \t\r\n]*+([{,])[ \t\r\n]*+(%b)[ \t\r\n]*+:[ \t\r\n]*+(\{[^\"{}]*+(?:%b[^\"{}]*+)*+\})"
    % (_TEXT, _TEXT)
)
_STRING = re.compile(_TEXT)
_METADATA_FIRST = re.compile(
    rb"[ \t\r\n]*+\{[ \t\r\n]*+\"__metadata__\"[ \t\r\n]*+:[ \t\r\n]*+(\{[^\"{}]*+(?:%b[^\"{}]*+)*+\})"
    rb"[ \t\r\n]*+," % _TEXT
)
_END = re.compile(rb"[ \t\r\n]*+\}[ \t\r\n]*+")
_NOTHING = re.compile(rb"[ \t\r\n]*+\{[ \t\r\n]*+\}[ \t\r\n]*+")
_NAME = msgspec.json.Decoder(str)
_ENTRY = msgspec.json.Decoder(_Entry)
_METADATA = msgspec.json.Decoder(dict[str, str])


def _table(text: bytes, most: int) -> dict[str, bytes]:
    """Name → its JSON object, not yet looked at; at most `most`, none of them twice.

    One after another, and not by a JSON decoder: it would first make a million objects of a million names.
    Raises BadUpdate.
    """
    table: dict[str, bytes] = {}
    place = 0
    while pair := _PAIR.match(text, place):
        if (pair[1] == b"{") != (place == 0):
            break
        name, place = _NAME.decode(pair[2]), pair.end()
        if name in table:
            raise BadUpdate(f"header names {name[:80]!r} twice")
        if len(table) == most:
            raise BadUpdate(f"header has more than {most} entries")
        table[name] = pair[3]
    if not (_END if place else _NOTHING).fullmatch(text, place):
        raise BadUpdate(f"header is not a table of tensors, from byte {PREFIX + place} on")
    return table


def _entry(name: str, raw: bytes) -> _Entry:
    # Eight quotes: three fields and a dtype. With more, a field stands there twice, and readers differ; as
    # they do about -0.
    if len(raw) > ENTRY_LIMIT or raw.count(b'"') > 8 or b"-" in raw:
        raise BadUpdate(f"tensor {name[:80]!r}: {len(raw)} bytes do not say where it lies")
    return _ENTRY.decode(raw)


def parse_header(head: bytes, size: int, most: int = sys.maxsize) -> Header:
    """The header of a file of `size` bytes, from its first bytes (all of the header at least).

    Raises BadUpdate unless there are at most `most` tensors, every one has a known dtype, the bytes that
    its shape takes, and they cover the rest of the file without gap or overlap.
    """
    begin = header_length(head, size, len(head))
    text = head[PREFIX:begin]
    try:
        first = _METADATA_FIRST.match(text)
        if first and len(text) - first.end() <= REMEMBERED and len(first[1]) <= METADATA_LIMIT:
            table = b"{" + text[first.end() :].rstrip(b" ")
            metadata = _metadata(first[1])
            try:
                tensors, again = _seen(table, begin, size, most)
                if tensors and not again:
                    return Header(tensors, size, begin, metadata)
            except BadUpdate:
                pass  # it is told by the whole of it
        tensors, about = _tensors(text, begin, size, most)
        return Header(tensors, size, begin, _metadata(about or b"{}"))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadUpdate(f"header is not a table of tensors: {str(error)[:200]}") from None


def _metadata(about: bytes) -> bytes:
    """Ours, of the header's object with all metadata."""
    if len(about) > METADATA_LIMIT:
        raise BadUpdate(f"metadata of {len(about)} bytes, at most {METADATA_LIMIT} are read")
    named = _METADATA.decode(about)
    if sum(1 for _ in _STRING.finditer(about)) != 2 * len(named):
        raise BadUpdate("metadata names something twice")
    return named.get("fleetfold", "").encode()


def _tensors(text: bytes, begin: int, size: int, most: int) -> tuple[tuple[Tensor, ...], bytes]:
    """(the tensors that a header says lie from `begin` on, its object with metadata). Raises BadUpdate."""
    table = _table(text, most + 1)
    about = table.pop("__metadata__", b"")
    if len(table) > most:
        raise BadUpdate(f"header names more than {most} tensors")
    entries = {name: _entry(name, raw) for name, raw in table.items()}
    tensors = sorted(
        (
            Tensor(name, e.dtype, e.shape, begin + e.data_offsets[0], begin + e.data_offsets[1])
            for name, e in entries.items()
        ),
        key=lambda t: (t.start, t.stop),
    )
    position = begin
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise BadUpdate(f"tensor {tensor.name[:80]!r}: unknown dtype {tensor.dtype[:20]!r}")
        if len(tensor.shape) > DIMENSIONS:
            raise BadUpdate(f"tensor {tensor.name[:80]!r}: {len(tensor.shape)} dimensions")
        if tensor.stop - tensor.start != bytes_of(tensor.dtype, tensor.shape):
            raise BadUpdate(f"tensor {tensor.name[:80]!r}: its bytes are not those of its shape")
        if tensor.start != position:
            raise BadUpdate(f"tensor {tensor.name[:80]!r}: lies at {tensor.start}, expected {position}")
        position = tensor.stop
    if position != size:
        raise BadUpdate(f"{'cut off' if position > size else 'too long'}: {size} bytes, expected {position}")
    return tuple(tensors), about


_seen = lru_cache(TABLES)(_tensors)
"""The same, remembered: updates of one round differ in their metadata, and hardly in the rest."""


def views(data: bytes | memoryview, header: Header) -> Tensors:
    """The tensors of a whole file, read-only and without copies."""
    return {
        t.name: np.frombuffer(data, DTYPES[t.dtype], elements_of(t.shape), t.start).reshape(t.shape)
        for t in header.tensors
    }


def read(data: bytes | memoryview, limit: int = 1 << 26) -> tuple[Tensors, bytes]:
    """Tensors (views) and metadata of a whole file. Raises BadUpdate."""
    header = header_in(data, limit)
    return views(data, header), header.metadata


def header_in(data: bytes | memoryview, limit: int = 1 << 26) -> Header:
    """The header of a whole file. Raises BadUpdate."""
    begin = header_length(bytes(data[:PREFIX]), len(data), limit)
    return parse_header(bytes(data[:begin]), len(data))


def elements_of(shape: tuple[int, ...]) -> int:
    """How many there are; a scalar is one."""
    product = 1
    for n in shape:
        product *= n
    return product


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that such a tensor takes."""
    return elements_of(shape) * DTYPES[dtype].itemsize


def _known() -> str:
    return ", ".join("bfloat16" if d == BF16 else str(d.name) for d in DTYPES.values())
