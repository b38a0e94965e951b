"""A program's values as JSON and tensors, to the bit and never pickled; again.py makes them of it again.

    {"m": array, "n": 3}  ─▶  ["dict", ["m", ["array", "<f4", [5000], "C", "0"]], ["n", 3]]  +  {"0": tensor}

What the user's code makes by itself when it is run again (functions, modules, loggers) is left to it. What
has no form here is named: where it lies, and of what type it is.
"""

import base64
import dataclasses
import functools
import json
import logging
import random
import struct
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fleetfold.fold.tensors import Tensors, code_of

INLINE = 8 << 10
"""Bytes of an array, or of bytes, up to which they stand in the JSON."""
_MADE_AGAIN = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type,
    functools.partial, logging.Logger, logging.LoggerAdapter, Grid, Context,
)  # fmt: skip
_KINDS = "biufcSUmM"

Refer = Callable[[ArrayRecord], str]
"""The key of the stored object that a record's arrays are, all of them and untouched; "": there is none."""


class Unstorable(Exception):
    """`place`: the attribute that cannot be stored, as code would say it; `what`: its type, or why."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(f"{place} ({what})")
        self.place, self.what = place, what


class Plain:
    """Makes values plain. Large arrays are put into `tensors`, which the JSON names them by."""

    def __init__(self, refer: Refer = lambda record: "", within: object = None) -> None:
        """`within`: the object whose attributes are made plain, one by one."""
        self.tensors: Tensors = {}
        self._refer = refer
        self._above = {id(within): True} if within is not None else {}  # whether it is filled in its place

    def __call__(self, value: Any, place: str) -> Any:
        """JSON of a value that lies at `place`. Raises Unstorable."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if abs(value) < 1 << 53 else ["int", hex(value)]
        if kind is float:
            return value if np.isfinite(value) else ["float", struct.pack("<d", value).hex()]
        if id(value) in self._above:
            if self._above[id(value)]:
                return ["own"]  # the code that makes it makes the way back to it
            raise Unstorable(place, "holds itself")
        self._above[id(value)] = False
        try:
            return self._within(value, kind, place)
        finally:
            del self._above[id(value)]

    def _within(self, value: Any, kind: type, place: str) -> Any:
        if kind in _WRITERS:
            return [kind.__name__, *_WRITERS[kind](self, value, place)]
        if isinstance(value, _MADE_AGAIN):
            return ["own"]
        for base, word, writer in _FAMILIES:
            if isinstance(value, base):
                return [word, *writer(self, value, place)]
        if _is_torch(value):
            return self._torch(value, place)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ["named", path(kind), *self.each(value, place)]
        if dataclasses.is_dataclass(value) and not hasattr(value, "load_state_dict"):
            names = dict.fromkeys([f.name for f in dataclasses.fields(value)] + own(value))
            return ["data", path(kind), self.attributes(value, names, place)]
        if not callable(value):
            return self._object(value, place)
        try:
            return self._object(value, place)
        except Unstorable:
            return ["own"]

    def _object(self, value: Any, place: str) -> Any:
        self._above[id(value)] = True
        if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
            return ["state", path(type(value)), self(value.state_dict(), f"{place}.state_dict()")]
        solid: Any = type(value)
        while solid.__flags__ & 1 << 9:  # made by a class statement
            solid = solid.__base__
        if solid is not object or not hasattr(value, "__dict__"):
            raise Unstorable(place, f"{type(value).__module__}.{type(value).__qualname__}")
        return ["object", path(type(value)), self.attributes(value, own(value), place)]

    def attributes(self, value: Any, names: Iterable[str], place: str) -> dict[str, Any]:
        return {name: self(getattr(value, name), f"{place}.{name}") for name in names if hasattr(value, name)}

    def each(self, values: Iterable[Any], place: str) -> list[Any]:
        return [self(value, f"{place}[{i}]") for i, value in enumerate(values)]

    def array(self, value: np.ndarray[Any, Any], place: str) -> list[Any]:
        if value.dtype.kind not in _KINDS or type(value) not in (np.ndarray, np.memmap):
            raise Unstorable(place, f"{type(value).__name__} of {value.dtype}")
        by_columns = value.flags.f_contiguous and not value.flags.c_contiguous
        laid = np.ascontiguousarray(value.T if by_columns else value).reshape(-1)
        native = code_of(laid) is not None and laid.dtype.byteorder != ">"
        raw = laid if native else np.frombuffer(laid.tobytes(), np.uint8)
        return [value.dtype.str, list(value.shape), "F" if by_columns else "C", self._put(raw)]

    def bytes(self, value: Any, place: str) -> list[Any]:
        return [self._put(np.frombuffer(bytes(value), np.uint8))]

    def _put(self, flat: np.ndarray[Any, Any]) -> Any:
        """Flat array → its bytes in text, or the name under which it is among the tensors."""
        if flat.nbytes <= INLINE:
            return {"base64": base64.b64encode(flat.tobytes()).decode()}
        self.tensors[name := str(len(self.tensors))] = flat
        return name

    def arrays(self, value: ArrayRecord, place: str) -> list[Any]:
        key = self._refer(value)
        return [key] if key else [{name: self(one, f"{place}[{name!r}]") for name, one in value.items()}]

    def _torch(self, value: Any, place: str) -> Any:
        plain = value.detach().cpu()
        words = (
            plain.contiguous().view(sys.modules["torch"].int16) if brief(plain.dtype) == "bfloat16" else plain
        )
        return ["torch", brief(plain.dtype), value.requires_grad, self(words.numpy(), place)]


def _pairs(plain: Plain, value: Any, place: str) -> list[Any]:
    return [[plain(key, f"{place} key"), plain(one, f"{place}[{key!r}]")] for key, one in value.items()]


def _sorted(plain: Plain, value: Any, place: str) -> list[Any]:
    return sorted(plain.each(value, place), key=json.dumps)


def _array_of(plain: Plain, value: Array, place: str) -> list[Any]:
    if value.stype == "numpy.ndarray":
        try:
            return [value.stype, *plain.array(value.numpy(), place)]
        except (TypeError, ValueError, Unstorable):
            pass
    return [value.stype, value.dtype, list(value.shape), "", *plain.bytes(value.data, place)]


def _generator(plain: Plain, value: np.random.Generator, place: str) -> list[Any]:
    return [plain(value.bit_generator.state, place)]


def _record(plain: Plain, value: Any, place: str) -> list[Any]:
    return _pairs(plain, dict(value.items()), place)


BUILTIN = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, set, tuple)}


def _factory(plain: Plain, value: "defaultdict[Any, Any]", place: str) -> list[Any]:
    made = value.default_factory
    if made is not None and BUILTIN.get(getattr(made, "__name__", "")) is not made:
        raise Unstorable(place, f"defaultdict of {made!r}")
    return ["" if made is None else made.__name__, *_pairs(plain, value, place)]


_WRITERS: dict[type, Callable[[Plain, Any, str], list[Any]]] = {
    list: lambda p, v, at: p.each(v, at),
    tuple: lambda p, v, at: p.each(v, at),
    set: _sorted,
    frozenset: _sorted,
    deque: lambda p, v, at: [v.maxlen, *p.each(v, at)],
    dict: _pairs,
    OrderedDict: _pairs,
    Counter: _pairs,
    defaultdict: _factory,
    range: lambda p, v, at: [v.start, v.stop, v.step],
    complex: lambda p, v, at: [struct.pack("<dd", v.real, v.imag).hex()],
    bytes: Plain.bytes,
    bytearray: Plain.bytes,
    np.random.Generator: _generator,
    np.random.RandomState: lambda p, v, at: [p(v.get_state(legacy=False), at)],
    random.Random: lambda p, v, at: [p(v.getstate(), at)],
}
"""Of values of exactly that type."""
_FAMILIES: tuple[tuple[type, str, Callable[[Plain, Any, str], list[Any]]], ...] = (
    (Enum, "enum", lambda p, v, at: [path(type(v)), p(v.value, at)]),
    (np.ndarray, "array", Plain.array),
    (np.generic, "scalar", lambda p, v, at: p.array(np.asarray(v), at)),
    (PurePath, "path", lambda p, v, at: [path(type(v)), str(v)]),
    (ArrayRecord, "arrays", Plain.arrays),
    (MetricRecord, "metrics", _record),
    (ConfigRecord, "config", _record),
    (RecordDict, "records", _record),
    (Array, "flower-array", _array_of),
)


def path(kind: type) -> str:
    """Where a class is found among the loaded modules."""
    return f"{kind.__module__}:{kind.__qualname__}"


def own(value: Any) -> list[str]:
    """The attributes that an object itself has, and not its class."""
    return list(getattr(value, "__dict__", ()))


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def brief(dtype: Any) -> str:
    """The name of one of torch's dtypes."""
    return str(dtype).removeprefix("torch.")
