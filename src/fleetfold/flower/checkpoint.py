"""Where a durable app stands: objects first, then one record that points to them, by compare-and-set.

    models/{version}.safetensors   the arrays          ┐
    app/{digest}.safetensors       large pieces        ├─▶ app/{digest}.json, the body ─▶ the record, app
    numbers, text, small arrays    in the body itself  ┘

What did not change is not written again; what is no longer pointed to goes after the record has changed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import msgspec
import numpy as np
from flwr.app import ArrayRecord, RecordDict
from msgspec import Struct

from fleetfold import layout
from fleetfold.coordinator.sources import header_of
from fleetfold.errors import Unavailable
from fleetfold.flower.lazy import Stored
from fleetfold.flower.private import node_id
from fleetfold.flower.records import content, parts, source
from fleetfold.flower.state import Piece
from fleetfold.fold.tensors import DTYPES, Tensors, elements_of, layout_of, write_header
from fleetfold.messages import encode
from fleetfold.ports import Objects, Records, fetch

NAME = "arrays"
"""What a model is called in its file's table, if it was a fold that wrote it: nothing asks for it."""


class Pointer(Struct, frozen=True, kw_only=True):
    """The record. All but `body` is for people."""

    body: str  # key of the body; "": there is none
    call: int = 0
    round: int = 0
    phase: str = ""
    exchange: int = 0


class Arrays(Struct, frozen=True):
    """A model of the run that is durable: its arrays, read where they lie."""

    version: int
    digest: str
    record: Any  # ArrayRecord


class Shelf:
    """The checkpoints of one run. `alone`: nobody else writes them at the same time."""

    def __init__(self, run: str, objects: Objects, records: Records, *, alone: bool = True) -> None:
        self.run, self._objects, self._records, self._alone = run, objects, records, alone
        self._version, self._held = 0, frozenset[str]()

    def newest(self) -> dict[str, Any] | None:
        """The body that the record points to now; None: nothing was committed."""
        found = self._records.get(layout.app(self.run))
        self._version = found.version if found else 0
        key = msgspec.json.decode(found.value, type=Pointer).body if found else ""
        if not key:
            return None
        body: dict[str, Any] = json.loads(fetch(self._objects, key))
        self._held = frozenset({key, *body["objects"].values()})
        if self._alone:  # what a process wrote that died before its record
            self._remove(frozenset(self._objects.list(layout.app_objects(self.run))) - self._held)
        return body

    def commit(self, body: dict[str, Any], pieces: Mapping[str, Piece], pointer: Pointer) -> None:
        """Make it the newest. Raises Unavailable where another process has gone on in the meantime."""
        named = {name: self._put_piece(piece) for name, piece in pieces.items() if piece.tensors}
        nodes = {name: piece.node for name, piece in pieces.items()}
        text = json.dumps({**body, "pieces": nodes, "objects": named}).encode()
        key = layout.app_object(self.run, f"{hashlib.sha256(text).hexdigest()[:32]}.json")
        self._put(key, [text])
        value = encode(msgspec.structs.replace(pointer, body=key))
        if not self._records.swap(layout.app(self.run), value, self._version):
            raise Unavailable(f"another process has gone on with run {self.run}")
        self._version += 1
        held = frozenset({key, *named.values()})
        self._remove(self._held - held)
        self._held = held

    def pieces(self, body: Mapping[str, Any]) -> dict[str, Piece]:
        """Those of a body, their tensors fresh."""
        named = body["objects"]
        return {
            name: Piece(node, self._tensors(named[name]) if name in named else {})
            for name, node in body["pieces"].items()
        }

    def keep(self, version: int, record: ArrayRecord) -> Arrays:
        """Write a model of the run. → its arrays, to be read where they lie."""
        key, digest = layout.model(self.run, version), hashlib.sha256()
        tensors, records = parts(RecordDict({NAME: record}))
        about = json.dumps({"run": self.run, "version": version, "records": records}).encode()
        self._objects.put(key, _hashed(_file(tensors, about), digest))
        return self.model(version, digest.hexdigest())

    def model(self, version: int, digest: str) -> Arrays:
        key = layout.model(self.run, version)
        return Arrays(version, digest, self.open(key, digest))

    def open(self, key: str, digest: str = "") -> ArrayRecord:
        """The arrays of a model of the run. Raises Unavailable."""
        try:
            header = header_of(self._objects, key)
        except KeyError:
            raise Unavailable(f"{key} is not there any more") from None
        about = json.loads(header.metadata or b"{}")
        records = about.get("records") or [["arrays", NAME, "", {}]]
        found = content(Stored(self._objects, key, header, digest), records)
        return next(iter(found.array_records.values()))

    def chosen(self, key: str) -> frozenset[int] | None:
        """Node ids of those whose answers a fold took; None: all of them."""
        about = json.loads(header_of(self._objects, key).metadata or b"{}")
        return frozenset(map(node_id, about["devices"])) if "devices" in about else None

    def refer(self, record: ArrayRecord) -> str:
        """The key of the model of this run that a record is; "": of none. Others will be removed."""
        key = source(record)
        return key if key and key.startswith(layout.models(self.run)) else ""

    def _put_piece(self, piece: Piece) -> str:
        about = b"{}"
        digest = hashlib.sha256()
        for part in _file(piece.tensors, about):
            digest.update(part)
        key = layout.app_object(self.run, f"{digest.hexdigest()[:32]}.safetensors")
        self._put(key, _file(piece.tensors, about))
        return key

    def _put(self, key: str, data: Any) -> None:
        if key not in self._held or self._objects.size(key) is None:
            self._objects.put(key, data)

    def _tensors(self, key: str) -> Tensors:
        try:
            header = header_of(self._objects, key)
            with closing(self._objects.open(key)) as reader:
                tensors: Tensors = {}
                for tensor in header.tensors:
                    flat = np.empty(elements_of(tensor.shape), DTYPES[tensor.dtype])
                    reader.read(tensor.start, flat.view(np.uint8).data)
                    tensors[tensor.name] = flat
                return tensors
        except KeyError:
            raise Unavailable(f"{key} is not there any more: another process has gone on") from None

    def _remove(self, keys: frozenset[str]) -> None:
        for key in sorted(keys):
            self._objects.delete(key)


def _file(tensors: Tensors, about: bytes) -> Iterator[bytes | memoryview]:
    yield write_header(layout_of(tensors), about)
    for array in tensors.values():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _hashed(data: Iterator[bytes | memoryview], digest: Any) -> Iterator[bytes | memoryview]:
    for part in data:
        digest.update(part)
        yield part
