"""Objects in somebody's store: S3 and what speaks like it, Google's and Azure's, by obstore.

    hub ──put, read, list──▶ store ◀──addresses that the store has signed── devices

No byte that a device sends or fetches passes the hub.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import chain, islice
from typing import Any, NamedTuple

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import from_url

from fleetfold.adapters.flows import Flow, Spans
from fleetfold.adapters.vendors import checked_url, first_line, is_bucketless, is_by_role, is_plain, refused
from fleetfold.errors import BadConfig

PART = 8 << 20
"""Bytes of one request, up or down. S3 takes parts of 5 MiB and more, and 10,000 of them."""
WHOLE = 48 << 20
"""Bytes of an object that goes by one request: each is paid for, and an upload in parts is two more."""
AT_ONCE = 4
"""Parts of one object that are on their way at once."""
AHEAD = 64 << 10
"""Bytes that opening brings, for it has to ask anyhow: a small update, or the header of a large one."""
LONGEST = 7 * 86_400.0
"""Seconds that a signature of S3's can be good for."""
LONGEST_BY_ROLE = 3_600.0
"""Seconds that one with passing credentials is taken for good. It may die sooner, with them."""
COMING = 256 << 10
"""Bytes at least that are taken of a stream at a time."""
_CLIENT: dict[str, Any] = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=5)}
_RETRY: dict[str, Any] = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}


def open_store(url: str, **about: Any) -> "StoreObjects":
    """The store at `url` (vendors.py), which has answered once. `about`: what else obstore is told, such as a
    provider of credentials. Raises BadConfig, Unavailable."""
    url = checked_url(url)
    options = {**_CLIENT, "allow_http": is_plain(url)}
    try:
        store: Any = from_url(url, client_options=options, retry_config=_RETRY, **about)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise BadConfig(f"{url} cannot be opened: {first_line(error)}") from None
    objects = StoreObjects(store, url, longest=LONGEST_BY_ROLE if is_by_role(url) else LONGEST)
    objects.list("runs/none/")  # a missing bucket looks like a missing object to who asks for a size
    return objects


class StoreObjects:
    """Objects and Signer over one of obstore's stores; `url` is what people know it by.

    A store's signature binds an address to a method, a key and a time; not to a certificate, and not to a
    size: whoever has the address may use it until its time is over, also to put something else there once
    more. So the gate looks at the size, and a reader keeps to the version that it saw first.

    A process that dies in a put of several parts leaves what nobody sees and somebody pays for: a rule of
    the bucket can delete it after a day.
    """

    def __init__(self, store: Any, url: str, *, longest: float = LONGEST) -> None:
        self._store, self._url, self._longest = store, url, longest

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        counted = _Counted(data)
        parts = iter(counted)
        try:
            first = deque(islice(parts, WHOLE // PART + 1))
            if counted.size <= WHOLE:
                obstore.put(self._store, key, _handed_over(first), use_multipart=False)
            else:  # obstore takes back the parts that it has sent if `data` breaks off
                whole = chain(_handed_over(first), parts)
                obstore.put(
                    self._store, key, whole, use_multipart=True, chunk_size=PART, max_concurrency=AT_ONCE
                )
        except (BaseError, OSError) as error:
            if counted.broken is not None:
                raise counted.broken from None
            raise refused(error, self._url, key) from error
        return counted.size

    def open(self, key: str) -> "_Stored":
        seen, head = self.range(key, 0, AHEAD)
        return _Stored(self, key, seen, bytes(head))

    def size(self, key: str) -> int | None:
        seen = self.seen(key)
        return None if seen is None else seen.size

    def list(self, prefix: str) -> list[str]:
        try:
            pages = obstore.list(self._store, prefix.removesuffix("/") or None)
            return sorted(entry["path"] for page in pages for entry in page)
        except (BaseError, OSError) as error:
            raise refused(error, self._url, prefix) from error

    def delete(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except (BaseError, OSError) as error:
            if not _is_absence(error):
                raise refused(error, self._url, key) from error

    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return self._signed("GET", key, seconds)

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        """`most` is not told to the store: it has no word for it."""
        return self._signed("PUT", key, seconds)

    def seen(self, key: str) -> "_Seen | None":
        """What lies there, None if nothing does."""
        try:
            about = obstore.head(self._store, key)
        except (BaseError, OSError) as error:
            if _is_absence(error):
                return None
            raise refused(error, self._url, key) from error
        return _Seen(about["e_tag"], about["size"])

    def range(
        self, key: str, start: int, stop: int, version: str | None = None
    ) -> tuple["_Seen", memoryview]:
        """Those bytes, fewer at the end, of that version if one is named. Raises KeyError."""
        wanted: dict[str, Any] = {"range": (start, stop)} | ({"if_match": version} if version else {})
        try:
            found = obstore.get(self._store, key, options=wanted)  # type: ignore[arg-type]
            return _Seen(found.meta["e_tag"], found.meta["size"]), memoryview(found.bytes())
        except (BaseError, OSError) as error:
            if _is_absence(error) or isinstance(error, PreconditionError):
                raise KeyError(key) from None
            # A range that begins past the end has no kind of its own: it is asked whether that is it.
            seen = self.seen(key) if "range" in str(error).lower() else None
            if seen is None or start < seen.size:
                raise refused(error, self._url, key) from error
            return seen, memoryview(b"")

    def stream(
        self, key: str, start: int, stop: int, version: str | None = None
    ) -> tuple["_Seen", Iterator[memoryview]]:
        """Those bytes as they come, by one request, however many they are; what is not taken stays in the
        store. Raises KeyError; Unavailable also later, where the connection breaks."""
        wanted: dict[str, Any] = {"range": (start, stop)} | ({"if_match": version} if version else {})
        try:
            found = obstore.get(self._store, key, options=wanted)  # type: ignore[arg-type]
            coming = found.stream(min_chunk_size=COMING)
            return _Seen(found.meta["e_tag"], found.meta["size"]), self._coming(key, coming)
        except (BaseError, OSError) as error:
            if _is_absence(error) or isinstance(error, PreconditionError):
                raise KeyError(key) from None
            raise refused(error, self._url, key) from error

    def _coming(self, key: str, stream: Iterable[Any]) -> Iterator[memoryview]:
        try:
            for piece in stream:
                yield memoryview(piece)
        except (BaseError, OSError) as error:
            raise refused(error, self._url, key) from error

    def flow(self, key: str, size: int, spans: Spans, most: int = 0) -> Flow:
        """The object of `size` bytes, whole or in parts, as one who reads `spans` of it in order has it."""
        return Flow(self, key, size, spans, most)

    def _signed(self, method: Any, key: str, seconds: float) -> str:
        good = timedelta(seconds=max(1, int(min(seconds, self._longest))))
        try:
            return obstore.sign(self._store, method, key, good)
        except (BaseError, OSError) as error:
            raise refused(error, self._url, key) from error


class _Seen(NamedTuple):
    """A version of an object, by the store's own name for it, and its size."""

    version: str | None
    size: int


class _Stored:
    """An object as it lay there when it was opened. When that is gone, or another one in its place, reading
    on is a KeyError: no update is another one in the next pass of the same fold."""

    file: int | None = None

    def __init__(self, objects: StoreObjects, key: str, seen: _Seen, head: bytes) -> None:
        self._objects, self._key, self._seen = objects, key, seen
        self._head = memoryview(head)

    def read(self, offset: int, into: memoryview) -> int:
        done = _copied(self._head[offset:], into)
        most = min(len(into), max(0, self._seen.size - offset))
        while done < most:
            start = offset + done
            stop = min(start + PART, offset + most)
            _, data = self._objects.range(self._key, start, stop, self._seen.version)
            if not data:
                raise KeyError(self._key)
            done += _copied(data, into[done:])
        return done

    def close(self) -> None:
        self._head = memoryview(b"")


def _copied(data: memoryview, into: memoryview) -> int:
    count = min(len(data), len(into))
    into[:count] = data[:count]
    return count


class _Counted:
    """The same bytes in pieces of PART, the last one smaller, perhaps empty. `broken`: why they ended."""

    def __init__(self, data: Iterable[bytes | memoryview]) -> None:
        self._data = data
        self.size = 0
        self.broken: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        room = bytearray()
        try:
            for part in self._data:
                rest = memoryview(part).cast("B")
                self.size += len(rest)
                while rest:
                    taken = rest[: PART - len(room)]
                    room += taken
                    rest = rest[len(taken) :]
                    if len(room) == PART:
                        yield bytes(room)
                        room.clear()
        except BaseException as error:
            self.broken = error
            raise
        yield bytes(room)


def _handed_over(pieces: deque[bytes]) -> Iterator[bytes]:
    """Each is forgotten here when it is taken."""
    while pieces:
        yield pieces.popleft()


def _is_absence(error: Exception) -> bool:
    """Whether it says that there is no such object, and not no such bucket."""
    return isinstance(error, FileNotFoundError) and not is_bucketless(error)
