"""Contents of messages as stored objects: each is uploaded once, however many devices are sent it.

    RecordDict ─▶ the same one? the same arrays? stored anyway? the same bytes? ─▶ key, sha256, size, JSON

A key is the sha256 of its file, so that what is sent again, rounds later, is found there.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from msgspec import Struct

from fleetfold import layout
from fleetfold.errors import BadConfig, BadUpdate
from fleetfold.flower import private, records
from fleetfold.flower.lazy import LazyArray
from fleetfold.fold.tensors import Tensors, layout_of, write_header
from fleetfold.ports import Objects

private.quiet()
from flwr.app import RecordDict  # noqa: E402


class Placed(Struct, frozen=True):
    """Where a content's tensors are, and all else of it."""

    key: str
    digest: str
    size: int
    records: Any


class Contents:
    """Of one run. `fresh` forgets which contents it has seen: only of those that live is an id their own."""

    def __init__(self, objects: Objects, run: str) -> None:
        self._objects, self._run = objects, run
        self.uploaded = 0  # bytes
        self.fresh()

    def fresh(self) -> None:
        self._whole: dict[int, tuple[RecordDict, Placed]] = {}
        self._arrays: dict[Any, tuple[Any, str, int]] = {}

    def place(self, content: RecordDict) -> Placed:
        """Have it stored, if it is not. Raises BadConfig for what cannot be sent."""
        known = self._whole.get(id(content))
        if known is None:
            known = self._whole[id(content)] = (content, self._placed(content))
        return known[1]

    def _placed(self, content: RecordDict) -> Placed:
        if known := records.stored_parts(content):
            stored, rest = known
            return Placed(stored.key, stored.digest(), stored.size, rest)
        tensors, rest = records.parts(content)
        identity = _identity(content, tensors)
        if identity is not None and identity in self._arrays:
            _, digest, size = self._arrays[identity]
        else:
            digest, size = self._put(tensors)
            if identity is not None:
                self._arrays[identity] = (content, digest, size)
        return Placed(layout.content(self._run, digest), digest, size, rest)

    def _put(self, tensors: Tensors) -> tuple[str, int]:
        try:
            pieces = list(_file(tensors))
        except BadUpdate as error:
            raise BadConfig(f"a message's {error.sentence}") from None
        digest, size = hashlib.sha256(), sum(len(piece) for piece in pieces)
        for piece in pieces:
            digest.update(piece)
        key = layout.content(self._run, digest.hexdigest())
        if self._objects.size(key) != size:
            self._objects.put(key, pieces)
            self.uploaded += size
        return digest.hexdigest(), size


def _file(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The file of those tensors, piece by piece; the numbers are not copied where they lie in order."""
    yield write_header(layout_of(tensors), b"{}")
    for array in tensors.values():
        if array.size:
            yield memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _identity(content: RecordDict, tensors: Tensors) -> Any:
    """The same for contents whose arrays are the same objects, and will be called the same in a file; None if
    that cannot be said of them."""
    arrays = [array for record in content.array_records.values() for array in record.values()]
    data = [array.__dict__.get("data") for array in arrays]
    known = all(d is not None or isinstance(a, LazyArray) for a, d in zip(arrays, data, strict=True))
    if not known or len(tensors) != len(arrays):  # else there are large bytes besides
        return None
    return tuple(tensors), tuple(id(a if d is None else d) for a, d in zip(arrays, data, strict=True))
