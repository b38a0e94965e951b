"""One request at the door: who asks, what the address allows, what is given or taken, or why not.

    GET, HEAD   objects ──piece by piece──▶ device
    PUT         device ──▶ staging, hashed on the way ──▶ as promised? ──▶ durable, by its name ──▶ 201

Memory holds a piece of an object, never one. What waits for a disk waits in a thread beside. Raises Refusal.
"""

import asyncio
import base64
import errno
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, closing
from typing import NamedTuple, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from aiohttp import web

from fleetfold import layout
from fleetfold.adapters.objects import FileObjects, Writing
from fleetfold.adapters.parted import Parted
from fleetfold.errors import Unavailable
from fleetfold.hub.signing import Refusal, check
from fleetfold.ports import Reader

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
_Held = TypeVar("_Held", Writing, Reader)
PIECE = 64 * 1024
"""Bytes of an object that are in memory at once, for each connection."""
GRACE = 30.0
"""Seconds that a request may take, however small it is."""
PACE = 4096
"""Bytes a second that a link must carry beyond that: who is slower takes the place of others."""
_DIGEST = re.compile(r"(?:.*,)?\s*sha-256=:(?P<value>[A-Za-z0-9+/]{43}=):\s*(?:,.*)?")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-")
"""Any other range is answered with the whole, as any server may."""


class Peer(NamedTuple):
    """Who is at the other end, by its certificate. `crowded`: it has connections enough without this one."""

    device: str
    credential: str
    crowded: bool = False


class Answer(NamedTuple):
    """What the device is answered, and what it is sent after that."""

    response: web.StreamResponse
    pieces: AsyncGenerator[memoryview, None] | None = None


class Exchange:
    """`current`: device → id of the credential in force. `stored`: told of each object that has come, perhaps
    more than once. `beside`: where is waited for disks."""

    def __init__(
        self, objects: FileObjects, secret: bytes, current: Callable[[str], str | None],
        stored: Callable[[str], None], clock: Callable[[], float], beside: Executor,
    ) -> None:  # fmt: skip
        self._objects, self._lying = objects, Parted(objects)
        self._secret, self._current, self._stored, self._clock = secret, current, stored, clock
        self._beside = beside
        self._finishing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def answer(self, request: web.BaseRequest, peer: Peer, limit: asyncio.Timeout) -> Answer:
        """`limit`: ends the request; moved as far as what it carries takes at the slowest."""
        self._belongs(peer)
        if peer.crowded:
            raise Refusal(429, "crowded", "this device has connections enough: use those", Retry_After="2")
        if request.method not in ("GET", "HEAD", "PUT"):
            raise Refusal(405, "method", "objects are for GET, HEAD and PUT alone", Allow="GET, HEAD, PUT")
        now = self._clock()
        key, most = check(self._secret, request.method, request.raw_path, peer.device, now)
        try:
            if request.method == "PUT":
                return await self._take(request, peer, key, most, limit)
            return await self._give(request, key, limit)
        except Unavailable as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                sentence = "the hub's disk is full: nothing was stored, try later"
                raise Refusal(507, "full", sentence, Retry_After="60") from error
            raise _later("objects") from error

    def _belongs(self, peer: Peer) -> None:
        try:
            current = self._current(peer.device)
        except Unavailable as error:
            raise _later("records") from error
        if not peer.device or current != peer.credential:
            raise Refusal(401, "identity", "this certificate is not, or no longer, of this fleet")

    async def _give(self, request: web.BaseRequest, key: str, limit: asyncio.Timeout) -> Answer:
        size = await self._apart(self._lying.size, key)
        if size is None:
            raise Refusal(404, "absent", "there is no such object, or not yet, or no longer")
        response = web.StreamResponse(headers={"Accept-Ranges": "bytes"})
        response.content_type = "application/octet-stream"
        offset = 0
        if request.method == "GET" and (asked := _RANGE.fullmatch(request.headers.get("Range", ""))):
            offset = int(asked[1])
            if offset >= size:
                sentence = f"the object has {size} bytes, and the range begins after them"
                raise Refusal(416, "range", sentence, Content_Range=f"bytes */{size}")
            response.set_status(206)
            response.headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
        response.content_length = size - offset
        if request.method == "HEAD":
            return Answer(response)
        _allow(limit, size - offset)
        return Answer(response, self._pieces(key, offset, size))

    async def _pieces(self, key: str, offset: int, size: int) -> AsyncGenerator[memoryview, None]:
        try:
            async with self._held(self._lying.open, key) as reader:
                while offset < size:
                    piece = await self._apart(_piece, reader, offset, min(PIECE, size - offset))
                    if not piece:
                        raise KeyError(key)
                    yield piece
                    offset += len(piece)
        except KeyError:
            raise ConnectionAbortedError(f"{key} is not what it was") from None

    async def _take(
        self, request: web.BaseRequest, peer: Peer, key: str, most: int, limit: asyncio.Timeout
    ) -> Answer:
        length, promised = request.content_length, _promised(request)
        if length is None:
            raise Refusal(411, "length", "an upload says its length beforehand (Content-Length)")
        if length > most:
            raise Refusal(413, "size", f"the upload has {length} bytes, this address allows {most}")
        if promised is None:
            raise Refusal(422, "digest", "an upload says its digest beforehand (Content-Digest: sha-256=:…:)")
        _allow(limit, length)
        there = await self._there(key, promised)
        if request.headers.get("Expect", "").lower() == "100-continue":
            if there:
                return self._done(key, 200)
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not begun
        async with self._held(self._objects.writing, key) as writing:
            if await self._received(request, length, writing) != promised:
                raise Refusal(422, "digest", "what came is not what was promised: its digest is another")
            # One after the other of each device's: what it has as parts and whole must not be two things.
            async with self._finishing.setdefault(peer.device, asyncio.Lock()):
                self._belongs(peer)  # still
                if not await self._there(key, promised) and await self._apart(writing.finish_first):
                    return self._done(key, 201)
                if not await self._there(key, promised):
                    raise _later("objects")  # it has been removed at this very moment
        return self._done(key, 200)

    async def _there(self, key: str, promised: bytes) -> bool:
        """Whether the object is there, durably. Raises Refusal if it is another one, or a part of a set that
        began as one of another number: a device could fill the disk with sets of every number."""
        if await self._apart(self._contradicts, key):
            raise Refusal(409, "taken", "parts of another number lie there already, and they stay")
        digest = await self._apart(self._digest, key)
        if digest not in (None, promised):
            raise Refusal(409, "taken", "other bytes lie there already, and what lies there stays")
        if digest:
            await self._apart(self._objects.secure, key)
        return digest is not None

    async def _received(self, request: web.BaseRequest, length: int, writing: Writing) -> bytes:
        """The digest of what came, which has been written."""
        digest = hashlib.sha256()

        def store(piece: bytes) -> None:
            digest.update(piece)
            writing.write(piece)

        while writing.size < length:
            piece = await request.content.readany()
            if not piece:
                raise ConnectionResetError(f"{writing.size} of {length} bytes came")
            await self._apart(store, piece)
        return digest.digest()

    def _done(self, key: str, status: int) -> Answer:
        self._stored(key)
        return Answer(web.Response(status=status))

    def _contradicts(self, key: str) -> bool:
        if (mine := layout.part_of(key)) is None:
            return False
        others = (layout.part_of(other) for other in self._objects.list(layout.parts(mine[0])))
        return any(other is not None and other[2] != mine[2] for other in others)

    def _digest(self, key: str) -> bytes | None:
        digest = hashlib.sha256()
        try:
            with closing(self._lying.open(key)) as reader:
                offset = 0
                while piece := _piece(reader, offset, PIECE):
                    digest.update(piece)
                    offset += len(piece)
        except KeyError:
            return None
        return digest.digest()

    @asynccontextmanager
    async def _held(self, open: Callable[[str], _Held], key: str) -> AsyncIterator[_Held]:
        """Opened and closed in a thread beside, whatever comes in between."""
        job = asyncio.get_running_loop().run_in_executor(self._beside, open, key)
        try:
            yield await asyncio.shield(job)
        finally:
            await asyncio.wait([job])
            if job.exception() is None:
                await self._apart(job.result().close)

    async def _apart(self, work: Callable[[*_Args], _T], *args: *_Args) -> _T:
        """Done in a thread beside. Who is cancelled waits until that is done: its files are in use."""
        job = asyncio.get_running_loop().run_in_executor(self._beside, work, *args)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            raise


def _later(what: str) -> Refusal:
    return Refusal(503, "unavailable", f"the hub cannot reach its {what}: try later", Retry_After="10")


def _promised(request: web.BaseRequest) -> bytes | None:
    """The sha256 that the upload is said to have (RFC 9530)."""
    found = _DIGEST.fullmatch(",".join(request.headers.getall("Content-Digest", [])))
    return base64.b64decode(found["value"]) if found else None


def _allow(limit: asyncio.Timeout, size: int) -> None:
    limit.reschedule(asyncio.get_running_loop().time() + GRACE + size / PACE)


def _piece(reader: Reader, offset: int, size: int) -> memoryview:
    into = bytearray(size)
    return memoryview(into)[: reader.read(offset, memoryview(into))]
