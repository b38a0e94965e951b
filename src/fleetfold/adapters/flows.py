"""An object that is read in order, by as few requests as there can be: each is paid for, and waited for.

    read at 0 ─▶ GET from there to the end of the span ─▶ … comes as it is read …
    read at the next byte ─▶ the same stream goes on        read elsewhere ─▶ a GET of its own

Where an object lies in parts (adapters.parted) they are found by its size alone: nothing is listed.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Condition
from typing import Any, NamedTuple, Protocol

from fleetfold import layout
from fleetfold.errors import Unavailable

Spans = Sequence[tuple[int, int]]
"""Bytes [start, stop) of an object that are going to be read in order, each span by itself."""
TRIES = 3
"""Streams in a row that break before the object cannot be read."""


class Streams(Protocol):
    def stream(
        self, key: str, start: int, stop: int, version: str | None = None
    ) -> tuple[Any, Iterator[memoryview]]: ...


class _Stream(NamedTuple):
    stop: int
    coming: Iterator[memoryview]
    rest: memoryview  # came, and was not read yet


class Flow:
    """A Reader. `most`: bytes of one request at most, for spans of which only some is read; 0: all of it.
    Several may read at once: each stream is read by one of them, and whoever reads on from there waits.

    An object that is replaced meanwhile, or ends too soon, is a KeyError: it is not what it was.
    """

    file: int | None = None

    def __init__(self, store: Streams, key: str, size: int, spans: Spans, most: int = 0) -> None:
        self._store, self._key, self._size, self._spans, self._most = store, key, size, spans, most
        self._total = -(-size // layout.PART) if size > layout.PART else 0  # parts; 0: it is whole
        self._changed = Condition()
        self._promised: set[int] = set()  # bytes up to which somebody reads
        self._standing: dict[int, _Stream] = {}  # by the byte that it stands at
        self._versions: dict[str, str | None] = {}

    def read(self, offset: int, into: memoryview) -> int:
        most = min(len(into), max(0, self._size - offset))
        with self._changed:
            self._promised.add(offset + most)
            while offset in self._promised and most:  # others read up to there, and leave a stream standing
                self._changed.wait()
        try:
            done, broken = 0, 0
            while done < most:
                try:
                    done += self._take(offset + done, into[done:most])
                    broken = 0
                except Unavailable:
                    broken += 1
                    if broken == TRIES:
                        raise
            return done
        finally:
            with self._changed:
                self._promised.discard(offset + most)
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._standing.clear()

    def _take(self, at: int, into: memoryview) -> int:
        """Some bytes from `at` on. A stream that broke is gone, and what it brought is kept by who asked."""
        with self._changed:
            stream = self._standing.pop(at, None)
        if stream is None:
            stream = self._open(at, len(into))
        piece = stream.rest or next(stream.coming, memoryview(b""))
        if not piece:
            raise KeyError(self._key)
        count = min(len(piece), len(into))
        into[:count] = piece[:count]
        if at + count < stream.stop:
            with self._changed:
                self._standing[at + count] = stream._replace(rest=piece[count:])
        return count

    def _open(self, at: int, wanted: int) -> _Stream:
        stop = next((stop for start, stop in self._spans if start <= at < stop), at + wanted)
        if self._most:
            stop = min(stop, at + max(wanted, self._most))
        if self._total:
            number, inside = divmod(at, layout.PART)
            end = min(stop, at - inside + layout.PART, self._size)
            with suppress(KeyError):
                key = layout.part(self._key, number, self._total)
                return _Stream(end, self._asked(key, inside, inside + end - at), memoryview(b""))
            if self._versions:  # it was in parts
                raise KeyError(self._key)
            self._total = 0
        return _Stream(stop, self._asked(self._key, at, stop), memoryview(b""))

    def _asked(self, key: str, start: int, stop: int) -> Iterator[memoryview]:
        seen, coming = self._store.stream(key, start, stop, self._versions.get(key))
        self._versions.setdefault(key, seen.version)
        return coming
