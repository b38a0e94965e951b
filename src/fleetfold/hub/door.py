"""The hub's door: objects over HTTPS, for whoever has a certificate of this fleet and a signed address.

    kernel's backlog ──▶ a slot ──▶ TLS, both sides ──▶ exchange ──▶ the slot is free again
     4,096 may wait      of 128     or nothing at all    one request after another, while there is room

It runs in a thread of its own. Who is slow, idle, or one device too often, gives way: memory, files and
time are bounded by the slots, whoever comes.
"""

import asyncio
import logging
import socket
import ssl
import threading
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from fleetfold.adapters.objects import FileObjects
from fleetfold.errors import BadConfig, blame
from fleetfold.hub.exchange import GRACE, Answer, Exchange, Peer
from fleetfold.hub.signing import Refusal

SLOTS = 128
"""Connections that are served at once. The others wait in the kernel, which knows how."""
SHARE = 4
"""Connections of one device."""
BACKLOG = 4096
HANDSHAKE = 10.0
"""Seconds until who connects has shown a certificate."""
IDLE = 5.0
"""Seconds until the next request of a connection."""
LINGER = 2.0
"""Seconds in which a refused upload may run out, so that its device comes to read the refusal."""
BUFFER = 64 * 1024
"""Bytes that wait in memory at each of a connection's stations, either way, before no more are read."""
THREADS = 8
"""That wait for disks."""
PARTING = frozenset({401, 408, 429})
"""Refusals with which the connection ends too."""
TOLD = 1000
"""Refusals that are logged, each kind once for each device; all are counted."""


class Door:
    """`refused`: how often the door said no, by reason. `log`: one line at a time, from its own thread.
    Arguments otherwise as of Exchange; `current` and `stored` are called from the door's thread and must not
    keep it waiting."""

    def __init__(
        self, objects: FileObjects, tls: ssl.SSLContext, secret: bytes,
        current: Callable[[str], str | None], stored: Callable[[str], None], log: Callable[..., None],
        clock: Callable[[], float], *, host: str = "", port: int = 8443, slots: int = SLOTS,
    ) -> None:  # fmt: skip
        self.refused: Counter[str] = Counter()
        self._tls, self._log, self._address, self._count = tls, log, (host, port), slots
        self._beside = ThreadPoolExecutor(THREADS, thread_name_prefix="door-disk")
        self._exchange = Exchange(objects, secret, current, stored, clock, self._beside)
        self._told: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    @property
    def live(self) -> int:
        """Connections that have shown a certificate and have not ended."""
        return len(self._served.peers)

    def start(self) -> None:
        """Raises BadConfig if the address cannot be had."""
        host, port = self._address
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        try:
            self._listening = socket.create_server(
                (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
            )
        except OSError as error:
            place = f"{host or '*'}:{port}"
            raise BadConfig(f"the door cannot listen on {place}: {error.strerror or error}") from None
        self._listening.setblocking(False)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._stumbled)
        self._main = self._loop.create_task(self._serve())
        self._thread.start()

    def stop(self) -> None:
        """Whoever is in the middle of something is cut off, and will come again."""
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def cut(self, device: str) -> None:
        """End the connections of a device that has been revoked."""
        self._loop.call_soon_threadsafe(lambda: self._served.cut(device))

    def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._main)
            rest = asyncio.all_tasks(self._loop)
            for task in rest:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait([*rest, self._loop.create_task(asyncio.sleep(0))]))
        except Exception as error:  # noqa: BLE001 - a thread that dies must not do so unheard
            self._log(f"the door has failed: {blame(error)}")
        finally:
            self._beside.shutdown()
            self._loop.close()

    async def _serve(self) -> None:
        SSLProtocol.max_size = BUFFER  # asyncio has 256 KiB, twice, however little a connection brings
        slots = asyncio.Semaphore(self._count)
        silent = logging.Logger("door")  # belongs to no tree: what it says is said by nobody else
        silent.addHandler(_Told(self._malformed))
        self._served = _Served(
            lambda request: self._answer(request, slots), slots.release, access_log=None, logger=silent,
            auto_decompress=False, read_bufsize=BUFFER // 2, keepalive_timeout=IDLE, lingering_time=LINGER,
        )  # fmt: skip
        greetings: set[asyncio.Task[None]] = set()
        try:
            while True:
                await slots.acquire()
                try:
                    connection, _ = await self._loop.sock_accept(self._listening)
                except OSError as error:  # no files left, or it has gone again
                    slots.release()
                    self._say("connection", "", f"a connection could not be taken: {error.strerror}")
                    await asyncio.sleep(0.1)
                    continue
                greeting = self._loop.create_task(self._greet(connection, slots))
                greetings.add(greeting)
                greeting.add_done_callback(greetings.discard)
        finally:
            self._listening.close()
            self._served.cut()

    async def _greet(self, connection: socket.socket, slots: asyncio.Semaphore) -> None:
        """Both show their certificates; after that the slot is the connection's."""
        try:
            await self._loop.connect_accepted_socket(
                self._served, connection, ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE, ssl_shutdown_timeout=GRACE,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - the slot is free again, whatever it was
            slots.release()
            why = error.reason if isinstance(error, ssl.SSLError) else error
            self._say("handshake", "", f"no certificate of this fleet: {why}")

    async def _answer(self, request: web.BaseRequest, slots: asyncio.Semaphore) -> web.StreamResponse:
        """What has gone out when this returns; or there is no connection any more."""
        peer = self._served.peers.get(request.protocol)
        if peer is None:
            return _hung_up(request)
        try:
            async with asyncio.timeout(GRACE) as limit:
                answer = await self._exchange.answer(request, peer, limit)
                return await _sent(request, answer, slots.locked())
        except Refusal as refusal:
            no, why = refusal, refusal.sentence
        except TimeoutError:
            no, why = Refusal(408, "slow", "this took too long: try again"), "too slow"
        except OSError:
            return _hung_up(request)
        except Exception as error:  # noqa: BLE001 - a fault of the hub's own is no device's to read
            no, why = Refusal(500, "fault", "the hub failed at this: try later"), blame(error)
        if not (no.status == 404 and request.method == "HEAD"):  # that was a question
            self._say(no.word, peer.device, why)
        try:
            async with asyncio.timeout(GRACE):
                return await _sent(request, _said(no), slots.locked() or no.status in PARTING)
        except OSError:  # too slow even for a sentence
            return _hung_up(request)

    def _malformed(self, sentence: str) -> None:
        self._say("malformed", "", sentence)

    def _stumbled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._say("fault", "", blame(error) if error else str(context.get("message")))

    def _say(self, word: str, device: str, sentence: str) -> None:
        self.refused[word] += 1
        if (word, device) not in self._told and len(self._told) < TOLD:
            self._told.add((word, device))
            self._log("refused at the door", device=device or "someone", reason=sentence)


class _Served(web.Server):
    """aiohttp's server, which knows by its connections who is there. `freed`: one has ended."""

    def __init__(
        self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        freed: Callable[[], None], **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(answer, **options)
        self.peers: dict[web.RequestHandler, Peer] = {}
        self._freed = freed

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        transport.set_write_buffer_limits(BUFFER)
        if hasattr(transport, "set_read_buffer_limits"):  # of TLS only
            transport.set_read_buffer_limits(BUFFER)
        peer = _peer(transport.get_extra_info("peercert"))
        held = sum(other[:2] == peer[:2] for other in self.peers.values())
        self.peers[handler] = peer._replace(crowded=held >= SHARE)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self.peers.pop(handler, None):
            self._freed()

    def cut(self, device: str = "") -> None:
        for handler, peer in self.peers.items():
            if peer.device == device or not device:
                _hang_up(handler)


class _Told(logging.Handler):
    """What aiohttp has to say of a request that is none, in one line."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._tell(f"a request that is none: {type(error).__name__ if error else record.msg}")


def tls(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """The door's side: its own certificate, and whose certificates it takes. Raises BadConfig."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # no device comes back by one, and to make them is a third of a greeting
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(f"{certificate}, {key} and {authority} are not the door's: {error}") from None
    return context


def _peer(certificate: Any) -> Peer:
    """Who that is; nobody if it is not said, or said twice."""
    said = [pair for names in (certificate or {}).get("subject", ()) for pair in names]
    names = [value for kind, value in said if kind == "commonName"]
    ids = [value for kind, value in said if kind == "serialNumber"]
    return Peer(names[0], ids[0]) if len(names) == len(ids) == 1 else Peer("", "")


async def _sent(request: web.BaseRequest, answer: Answer, last: bool) -> web.StreamResponse:
    """`last`: the connection ends with it."""
    if request.writer.output_size:
        raise ConnectionAbortedError("in the middle of another answer")
    response, pieces = answer
    response.headers["Server"] = "fleetfold"
    if last:
        response.force_close()
    await response.prepare(request)
    if pieces is not None:
        async with aclosing(pieces):
            async for piece in pieces:
                await response.write(piece)
    await response.write_eof()
    return response


def _said(no: Refusal) -> Answer:
    return Answer(web.Response(status=no.status, text=f"{no.sentence}\n", headers=no.headers))


def _hung_up(request: web.BaseRequest) -> web.StreamResponse:
    _hang_up(request.protocol)
    return web.Response()  # which nobody gets


def _hang_up(handler: web.RequestHandler) -> None:
    if handler.transport is not None:
        handler.transport.abort()
    handler.force_close()
