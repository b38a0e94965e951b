"""A message's content as tensors and JSON, and back; nothing is copied that needs not be.

    RecordDict ─ parts ─▶ tensors, raw, of one file + JSON of all else ─ content ─▶ RecordDict of lazy arrays

A content of one ArrayRecord and no large bytes has that record's keys for the names of its tensors: a model
is such a file. Otherwise the record's place stands before them: `0/weight`. A device's is hostile.
"""

import math
from base64 import b64decode, b64encode
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from fleetfold.errors import BadConfig, BadUpdate
from fleetfold.flower import private
from fleetfold.flower.lazy import NPY, LazyArray, Stored, npy_view
from fleetfold.fold.gate import METRICS_LIMIT
from fleetfold.fold.tensors import BF16, Tensors, code_of

private.quiet()
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict  # noqa: E402

INLINE = 1 << 10
"""Bytes of a value up to which it goes with the JSON."""
SPILL = 16 << 10
"""Bytes of JSON above which it is a tensor itself: a task has to fit a message of the broker's."""
JSON_LIMIT = 16 << 20
"""Bytes of JSON that are read."""
RECORDS = 1 << 10
"""Records that a content may have."""
EXAMPLES = "num-examples"
"""The metric by which Flower's strategies weigh, if they are not told otherwise."""
NONE_OF_NUMPYS = str(BF16)
SPILLED = "json"
"""The name of the tensor of what had no room."""


_R = TypeVar("_R")


class _Odd(Struct, frozen=True, omit_defaults=True):
    """What a tensor does not say of its array. With an `stype` its bytes are data of that kind, as they are;
    else they are numbers, in the order of Fortran or not, and the array says that dtype and shape of itself
    (older clients' say none)."""

    fortran: bool = False
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    stype: str | None = None


class _Arrays(Struct, array_like=True, tag="arrays"):
    name: str
    prefix: str = ""  # of its tensors' names
    odd: dict[str, _Odd] = field(default_factory=dict)


class _Metrics(Struct, array_like=True, tag="metrics"):
    name: str
    values: list[tuple[str, Any]]


class _Config(Struct, array_like=True, tag="config"):
    name: str
    values: list[tuple[str, Any]]


_Table = list[_Arrays | _Metrics | _Config]
_TABLE = msgspec.json.Decoder(_Table)


def parts(content: RecordDict) -> tuple[Tensors, Any]:
    """The tensors of a content (views, where that can be), and the rest as JSON. Raises BadConfig."""
    tensors, table = _table(content, flat=_is_flat(content), touch=True)
    text = msgspec.json.encode(table)
    if len(text) > SPILL:
        tensors, table = _table(content, flat=False, touch=True)
        text = msgspec.json.encode(table)
        if len(text) > JSON_LIMIT:
            raise BadConfig(
                f"a message of {len(text)} bytes beside its arrays, at most {JSON_LIMIT} can be sent",
                next="put long lists into an ArrayRecord",
            )
        return {**tensors, SPILLED: np.frombuffer(text, np.uint8)}, {"in": SPILLED}
    return tensors, msgspec.json.decode(text)


def content(tensors: Tensors | Stored, records: Any, *, arrays: bool = True) -> RecordDict:
    """The content that was taken apart, its arrays lazy, or without `arrays` left out. `tensors`: as they
    came, or what is stored. Raises BadUpdate for what is none."""
    try:
        return _content(tensors, records, arrays)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadUpdate(f"its records are none: {str(error)[:200]}") from None


def source(record: ArrayRecord) -> str | None:
    """The key of the stored object whose arrays these are, all of them, as they lie there; None: of none."""
    stored = stored_of(record)
    return stored.key if stored else None


def stored_of(record: ArrayRecord) -> Stored | None:
    """The stored object whose arrays these are, all of them, under their names there."""
    found = [(key, array.origin) for key, array in record.items() if isinstance(array, LazyArray)]
    stored = found[0][1][0] if found and found[0][1] else None
    if stored is None or len(found) != len(record):
        return None
    return stored if found == [(t.name, (stored, t)) for t in stored.header.tensors] else None


def stored_parts(content: RecordDict) -> tuple[Stored, Any] | None:
    """The same of a content whose tensors are a stored object, which is not read; None: they are not."""
    stored = stored_of(_of(content, ArrayRecord)[0][1]) if _is_flat(content) else None
    if stored is None:
        return None
    text = msgspec.json.encode(_table(content, flat=True, touch=False)[1])
    return (stored, msgspec.json.decode(text)) if len(text) <= SPILL else None


def numbers(content: RecordDict) -> tuple[int, dict[str, float | None]]:
    """(examples, metrics) of an answer: all single numbers of its MetricRecords, by name."""
    found: dict[str, float | None] = {}
    for name, record in _of(content, MetricRecord):
        for key, value in record.items():
            known = key if key not in found else f"{name}.{key}"
            if isinstance(value, int | float) and len(found) < METRICS_LIMIT and len(known) <= METRICS_LIMIT:
                found[known] = float(value) if math.isfinite(value) else None
    return max(1, int(found.get(EXAMPLES) or 0)), found


# Taking apart


def _of(content: RecordDict, kind: type[_R]) -> list[tuple[str, _R]]:
    """Its records of that kind, by name. Its own properties make records of them, which takes longer."""
    return [(str(name), record) for name, record in content.items() if isinstance(record, kind)]


def _is_flat(content: RecordDict) -> bool:
    """Whether its tensors can be called as its arrays are."""
    arrays = [record for _, record in _of(content, ArrayRecord)]
    values = (value for _, record in _of(content, ConfigRecord) for value in record.values())
    large = any(_is_large(v) for value in values for v in (value if isinstance(value, list) else [value]))
    return len(arrays) == 1 and not large and "__metadata__" not in arrays[0]


def _is_large(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) > INLINE


def _table(content: RecordDict, *, flat: bool, touch: bool) -> tuple[Tensors, _Table]:
    """`touch`: read the arrays; else the tensors are left out, which are stored."""
    tensors: Tensors = {}
    table: _Table = []
    for place, (name, record) in enumerate(content.items()):
        if isinstance(record, ArrayRecord):
            entry = _Arrays(str(name), "" if flat else f"{place}/")
            for key, array in record.items():
                if touch:
                    tensors[f"{entry.prefix}{key}"] = _tensor(array)
                if (odd := _odd(array)) is not None:
                    entry.odd[str(key)] = odd
            table.append(entry)
        else:
            kind = _Metrics if isinstance(record, MetricRecord) else _Config
            table.append(kind(str(name), [(str(k), _encoded(v, tensors)) for k, v in record.items()]))
    return tensors, table


def _seen(array: Array) -> tuple[NDArray[Any], bool] | None:
    """(the numbers, whether they lie in Fortran's order); None where a tensor cannot have them."""
    found = npy_view(array.data) if array.stype == NPY else None
    if found is None:
        return None
    plain = found[0].dtype.byteorder in "=|<" and code_of(found[0]) is not None and found[0].dtype != BF16
    return found if plain else None


def _tensor(array: Array) -> NDArray[Any]:
    if isinstance(array, LazyArray) and array.is_untouched:
        return array.view()
    found = _seen(array)
    return found[0] if found else np.frombuffer(array.data, np.uint8)


def _odd(array: Array) -> _Odd | None:
    dtype, shape = str(array.dtype), tuple(array.shape)
    if isinstance(array, LazyArray) and array.is_untouched:
        seen, fortran = array.plain, array.fortran
    elif (found := _seen(array)) is not None:
        seen, fortran = (str(found[0].dtype), found[0].shape), found[1]
    else:
        return _Odd(dtype=dtype, shape=shape, stype=str(array.stype))
    if seen != (dtype, shape):
        return _Odd(fortran, dtype, shape)
    return _Odd(fortran) if fortran else None


def _encoded(value: Any, tensors: Tensors) -> Any:
    """A value in JSON that has its type again: what JSON cannot say is an object of one key."""
    match value:
        case list():
            return [_encoded(one, tensors) for one in value]
        case bool():
            return bool(value)
        case int():
            return int(value) if abs(value) < 1 << 63 else {"i": str(int(value))}
        case float():
            return float(value) if math.isfinite(value) else {"f": str(float(value))}
        case str():
            return str(value)
        case bytes() if len(value) > INLINE:
            name = f"bytes/{len(tensors)}"
            tensors[name] = np.frombuffer(value, np.uint8)
            return {"t": name}
        case bytes():
            return {"b": b64encode(value).decode()}
    raise BadConfig(f"a record with a value of type {type(value).__name__} cannot be sent")


# Putting together


class _Rest:
    """The tensors that nobody has taken yet: each is handed out once, so that nobody makes more of them."""

    def __init__(self, tensors: Tensors | Stored) -> None:
        self._tensors = tensors
        self._left: dict[str, Any] = (
            {t.name: t for t in tensors.header.tensors} if isinstance(tensors, Stored) else dict(tensors)
        )

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._left if name.startswith(prefix)]

    def take(self, name: str) -> Any:
        """Where it is, as LazyArray wants it. Raises KeyError."""
        found = self._left.pop(name)
        return (self._tensors, found) if isinstance(self._tensors, Stored) else found

    def bytes(self, name: str, most: int | None = None) -> bytes:
        """Its bytes. Raises KeyError, and ValueError where they are more than `most`."""
        at = self.take(name)
        size = at.nbytes if isinstance(at, np.ndarray) else at[1].stop - at[1].start
        if most is not None and size > most:
            raise ValueError(f"{size} bytes of records")
        array: NDArray[Any] = at if isinstance(at, np.ndarray) else at[0].array(at[1])
        return array.tobytes()


def _content(tensors: Tensors | Stored, records: Any, arrays: bool) -> RecordDict:
    rest = _Rest(tensors)
    if isinstance(records, dict):
        table = _TABLE.decode(rest.bytes(records["in"], JSON_LIMIT))
    else:
        table = msgspec.convert(records, _Table)
    if len(table) > RECORDS:
        raise ValueError(f"{len(table)} records")
    found = RecordDict()
    for entry in table:
        match entry:
            case _Arrays():
                record = found[entry.name] = ArrayRecord()  # given a dict it would copy the data of each
                if arrays:
                    keys = {name: name.removeprefix(entry.prefix) for name in rest.names(entry.prefix)}
                    private.fill(record, {k: _array(rest, n, entry.odd.get(k)) for n, k in keys.items()})
            case _Metrics():
                found[entry.name] = MetricRecord({key: _decoded(v, rest) for key, v in entry.values})
            case _Config():
                found[entry.name] = ConfigRecord({key: _decoded(v, rest) for key, v in entry.values})
    return found


def _array(rest: _Rest, name: str, odd: _Odd | None) -> Array:
    odd = odd or _Odd()
    if odd.stype is None:
        lazy = LazyArray(rest.take(name), fortran=odd.fortran, dtype=odd.dtype, shape=odd.shape)
        if lazy.plain[0] == NONE_OF_NUMPYS:
            raise ValueError(f"array {name[:80]!r}: bfloat16 is no type of numpy's")
        return lazy
    data = rest.bytes(name)
    if odd.stype == NPY and npy_view(data) is None:
        raise ValueError(f"array {name[:80]!r} is none of numpy's")
    return Array(odd.dtype or "", odd.shape or (), odd.stype, data)


def _decoded(value: Any, rest: _Rest) -> Any:
    match value:
        case list():
            return [_decoded(one, rest) for one in value]
        case {"i": str(text)} if len(text) < 100:
            return int(text)
        case {"f": str(text)}:
            return float(text)
        case {"b": str(text)}:
            return b64decode(text, validate=True)
        case {"t": str(name)}:
            return rest.bytes(name)
        case dict():
            raise ValueError("a value of an unknown kind")
    return value
