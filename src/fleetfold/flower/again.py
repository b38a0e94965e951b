"""The values that plain.py made plain, made again: JSON and tensors ─▶ what the program had, to the bit.

An object is filled in its place, where the user's code, run again, has put one of the same class; others are
made without their `__init__`. Classes are looked up by name among those that are loaded: nothing is imported.
"""

import base64
import functools
import random
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fleetfold.flower.plain import BUILTIN, Unstorable, own, path
from fleetfold.fold.tensors import Tensors

_MISSING = object()
Open = Callable[[str], ArrayRecord]
"""The arrays of a stored object, by its key."""


class Again:
    """Of one plain value. `tensors`: those that it names, flat; they become the values' own."""

    def __init__(self, tensors: Tensors, open: Open | None = None) -> None:
        self._tensors, self._open = tensors, open

    def __call__(self, node: Any, place: str, old: Any = _MISSING) -> Any:
        """The value of `node`. `old`: what the user's code, run again, has put there. Raises Unstorable."""
        if not isinstance(node, list):
            return node
        word, *rest = node
        if word == "own":
            if old is _MISSING:
                raise Unstorable(place, "the app's code does not make it again")
            return old
        if word in _READERS:
            return _READERS[word](self, rest, place, old)
        if word in ("state", "object", "data"):
            return self._object(word, rest, place, old)
        raise Unstorable(place, f"form {word!r} is not known")

    def _object(self, word: str, rest: list[Any], place: str, old: Any) -> Any:
        kind, content = rest
        same = path(type(old)) == kind
        if word == "state":
            if not same:
                raise Unstorable(place, f"the app's code does not make a {kind} there again")
            old.load_state_dict(self(content, place))
            return old
        if same and word == "object":
            value = old
        else:
            found = _class(kind, place)
            value = found.__new__(found)
        for name in set(own(value)) - set(content):
            object.__delattr__(value, name)
        for name, inner in content.items():
            new = self(inner, f"{place}.{name}", getattr(old, name, _MISSING) if same else _MISSING)
            object.__setattr__(value, name, new)
        return value

    def each(self, nodes: list[Any], place: str, old: Any) -> list[Any]:
        before = old if isinstance(old, list | tuple) else ()
        return [
            self(node, f"{place}[{i}]", before[i] if i < len(before) else _MISSING)
            for i, node in enumerate(nodes)
        ]

    def pairs(self, nodes: list[Any], place: str, old: Any) -> list[tuple[Any, Any]]:
        before = old if isinstance(old, dict) else {}
        keys = [self(key, place) for key, _ in nodes]
        return [
            (key, self(node, f"{place}[{key!r}]", before.get(key, _MISSING)))
            for key, (_, node) in zip(keys, nodes, strict=True)
        ]

    def array(self, rest: list[Any]) -> np.ndarray[Any, Any]:
        """Fresh and writable."""
        dtype, shape, order, where = rest
        if 0 in shape or not np.dtype(dtype).itemsize:
            return np.zeros(shape, dtype, order)
        flat = self.flat(where)
        if flat.dtype != np.dtype(dtype):
            flat = np.frombuffer(flat.tobytes(), dtype)
        array = flat.reshape(shape[::-1] if order == "F" else shape)
        array = array if array.flags.writeable else array.copy()
        return array.T if order == "F" else array

    def flat(self, where: Any) -> np.ndarray[Any, Any]:
        if isinstance(where, dict):
            return np.frombuffer(base64.b64decode(where["base64"]), np.uint8)
        return self._tensors[where]

    def arrays(self, rest: list[Any], place: str) -> ArrayRecord:
        if isinstance(rest[0], str):
            if self._open is None:
                raise Unstorable(place, f"object {rest[0]} cannot be opened here")
            return self._open(rest[0])
        record = ArrayRecord()
        for name, node in rest[0].items():
            record[name] = self(node, place)
        return record


_READERS: dict[str, Callable[[Again, list[Any], str, Any], Any]] = {
    "int": lambda r, rest, at, old: int(rest[0], 16),
    "float": lambda r, rest, at, old: struct.unpack("<d", bytes.fromhex(rest[0]))[0],
    "list": lambda r, rest, at, old: r.each(rest, at, old),
    "tuple": lambda r, rest, at, old: tuple(r.each(rest, at, old)),
    "set": lambda r, rest, at, old: set(r.each(rest, at, None)),
    "frozenset": lambda r, rest, at, old: frozenset(r.each(rest, at, None)),
    "deque": lambda r, rest, at, old: deque(r.each(rest[1:], at, None), rest[0]),
    "dict": lambda r, rest, at, old: dict(r.pairs(rest, at, old)),
    "OrderedDict": lambda r, rest, at, old: OrderedDict(r.pairs(rest, at, old)),
    "Counter": lambda r, rest, at, old: Counter(dict(r.pairs(rest, at, old))),
    "defaultdict": lambda r, rest, at, old: defaultdict(BUILTIN.get(rest[0]), r.pairs(rest[1:], at, old)),
    "range": lambda r, rest, at, old: range(*rest),
    "complex": lambda r, rest, at, old: complex(*struct.unpack("<dd", bytes.fromhex(rest[0]))),
    "bytes": lambda r, rest, at, old: r.flat(rest[0]).tobytes(),
    "bytearray": lambda r, rest, at, old: bytearray(r.flat(rest[0]).tobytes()),
    "Generator": lambda r, rest, at, old: _as_generator(r(rest[0], at)),
    "RandomState": lambda r, rest, at, old: _as_random(np.random.RandomState, "set_state", r(rest[0], at)),
    "Random": lambda r, rest, at, old: _as_random(random.Random, "setstate", r(rest[0], at)),
    "enum": lambda r, rest, at, old: _class(rest[0], at)(r(rest[1], at)),
    "array": lambda r, rest, at, old: r.array(rest),
    "scalar": lambda r, rest, at, old: r.array(rest)[()],
    "path": lambda r, rest, at, old: _class(rest[0], at)(rest[1]),
    "named": lambda r, rest, at, old: _class(rest[0], at)(*r.each(rest[1:], at, old)),
    "arrays": lambda r, rest, at, old: r.arrays(rest, at),
    "metrics": lambda r, rest, at, old: MetricRecord(dict(r.pairs(rest, at, None))),
    "config": lambda r, rest, at, old: ConfigRecord(dict(r.pairs(rest, at, None))),
    "records": lambda r, rest, at, old: RecordDict(dict(r.pairs(rest, at, None))),
    "flower-array": lambda r, rest, at, old: _as_array(r, rest),
    "torch": lambda r, rest, at, old: _as_torch(rest[0], rest[1], r(rest[2], at)),
}


def _as_array(restore: Again, rest: list[Any]) -> Array:
    stype, dtype, shape, order, where = rest
    if order:
        return Array(restore.array([dtype, shape, order, where]))
    return Array(dtype=dtype, shape=tuple(shape), stype=stype, data=restore.flat(where).tobytes())


def _as_generator(state: dict[str, Any]) -> np.random.Generator:
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


def _as_random(kind: Callable[[], Any], setter: str, state: Any) -> Any:
    made = kind()
    getattr(made, setter)(state)
    return made


def _class(path: str, place: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), cast(Any, sys.modules[module]))
    except (KeyError, AttributeError):
        raise Unstorable(place, f"class {path} is not loaded by the app's code") from None


def _as_torch(dtype: str, requires_grad: bool, words: np.ndarray[Any, Any]) -> Any:
    torch: Any = sys.modules["torch"]
    tensor = torch.from_numpy(np.array(words))
    if dtype == "bfloat16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.requires_grad_(requires_grad)
