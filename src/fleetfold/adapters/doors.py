"""The device's side of HTTP: connections to the doors that addresses name, kept while one transfer lasts.

    the hub's own hosts   trust in the bundle's authority alone, and the device's certificate
    any other             the system's trust, no certificate: a store's own addresses

Through the proxy that the environment names (HTTPS_PROXY, NO_PROXY). No redirection is followed,
and nothing goes in plain text.
"""

import os
import ssl
import tempfile
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from fleetfold.bundle import Bundle, Claim
from fleetfold.errors import BadConfig, BadUpdate, Unavailable

CHUNK = 256 << 10
"""Bytes that are sent or received at a time."""
SENTENCE = 2048
"""Bytes that are read of what a door says to a refusal."""


DOOR = "/objects/"
"""What the paths of the hub's own door begin with."""
_MEMORY = hasattr(os, "memfd_create")
NOTHING = memoryview(b"")


class Broken(Unavailable):
    """The connection, or the door's patience: the same may well be tried again."""


def context(bundle: Bundle | Claim) -> ssl.SSLContext:
    """TLS between this device and its hub. Raises BadConfig."""
    try:
        made = ssl.create_default_context(cadata=bundle.authority)
        # The library takes keys from files alone: here from one without a name, gone when it is closed.
        with os.fdopen(os.memfd_create("key"), "wb") if _MEMORY else tempfile.TemporaryFile() as file:
            file.write(f"{bundle.certificate.strip()}\n{bundle.key.strip()}\n".encode())
            file.seek(0)
            # A password for none, so that it never waits for somebody to type one.
            made.load_cert_chain(f"/dev/fd/{file.fileno()}", password="none")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise BadConfig(
            f"the bundle's certificates or key cannot be used: {error}",
            next="fleetfold enroll DEVICE on the hub",
        ) from None
    return made


class Proxy(NamedTuple):
    host: str
    port: int
    headers: dict[str, str]


def proxy_for(host: str, port: int) -> Proxy | None:
    """The proxy that the environment names for TLS to that host; none for this very machine. Raises
    BadConfig for one that is not spoken to by plain HTTP."""
    named = getproxies().get("https")
    if not named or _here(host) or proxy_bypass(f"{host}:{port}"):
        return None
    try:
        parts = urlsplit(named if "://" in named else f"http://{named}")
        where = parts.port or 8080
    except ValueError:
        parts, where = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname:
        raise BadConfig("HTTPS_PROXY is no proxy of the kind http://[USER:PASSWORD@]HOST:PORT")
    headers = {}
    if parts.username:
        who = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {b64encode(who.encode()).decode()}"
    return Proxy(parts.hostname, where, headers)


class Answer:
    """What a door answered; its body is read by `chunks` or `sentence`, or not at all."""

    def __init__(self, response: HTTPResponse, host: str) -> None:
        self._response, self.host, self.status = response, host, response.status
        self._left = response.length  # None: it says as it goes, or by its end
        self._finish()

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    @property
    def length(self) -> int | None:
        """Bytes of the object, as its header has it."""
        text = self.header("Content-Length")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    @property
    def read(self) -> bool:
        """Whether it was read to its end, and the connection is free."""
        return self._response.isclosed()

    def chunks(self) -> Iterator[bytes]:
        """As they come in; fewer than `length` says where the connection ended. Raises Broken."""
        while not self.read:
            with _wire(self.host):
                data = self._response.read1(CHUNK if self._left is None else min(CHUNK, self._left))
            if not data:
                return
            if self._left is not None:
                self._left -= len(data)
                self._finish()
            yield data

    def sentence(self) -> str:
        """The first of what it says in words."""
        text = next(self.chunks(), b"")[:SENTENCE].decode(errors="replace")
        return " ".join(text.split()) or self._response.reason

    def _finish(self) -> None:
        if self._left == 0:
            self._response.close()


class Doors:
    """`hosts`: the hub's own, beside its brokers'. `plain`: whether addresses of this very machine may do
    without TLS. `spent(sent, received)` hears of every byte of a body."""

    def __init__(
        self, bundle: Bundle, *, hosts: Collection[str], plain: bool, timeout: float,
        spent: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self._own = {h.lower() for h in (*hosts, *(urlsplit(b).hostname or "" for b in bundle.brokers))} - {
            ""
        }
        self._plain, self._timeout, self._spent = plain, timeout, spent
        self._bundle, self._contexts = bundle, dict[str, ssl.SSLContext]()
        self._open: dict[tuple[str, bool], HTTPConnection] = {}
        self._torn, self._answer = False, list[Answer]()

    def own(self, address: str) -> bool:
        """Whether it is an address of the hub's own door, and not of a store beside it."""
        return self._is_own(_split(address))

    def _is_own(self, parts: SplitResult) -> bool:
        return parts.scheme == "https" and parts.hostname in self._own and parts.path.startswith(DOOR)

    def request(
        self, method: str, address: str, headers: Mapping[str, str], body: memoryview = NOTHING,
        sent: Callable[[int], None] = lambda count: None,
    ) -> Answer:  # fmt: skip
        """Raises Broken; BadUpdate for an address that no device goes to."""
        parts = _split(address)
        connection, target = self._connection(parts), parts.path or "/"
        with _wire(parts.netloc):
            connection.putrequest(method, f"{target}?{parts.query}" if parts.query else target)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
        try:
            for first in range(0, len(body), CHUNK):
                part = body[first : first + CHUNK]
                with _wire(parts.netloc):
                    connection.send(part)
                self._spent(len(part), 0)
                sent(len(part))
        except Broken:
            self._torn = True  # a door that refuses may say so and hang up before it has heard all of it
        with _wire(parts.netloc):
            self._answer = [Answer(connection.getresponse(), parts.netloc)]
        return self._answer[0]

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
        self._open.clear()
        self._answer.clear()
        self._torn = False

    def _connection(self, parts: SplitResult) -> HTTPConnection:
        if self._torn or not all(answer.read for answer in self._answer):
            self.close()  # what was not sent or read to its end stands in the way
        place = (parts.netloc, self._is_own(parts))
        if place not in self._open:
            self._open[place] = self._made(parts)
        return self._open[place]

    def _made(self, parts: SplitResult) -> HTTPConnection:
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            if not (self._plain and _here(host)):
                raise BadUpdate(f"the address of {parts.netloc} is not https: nothing goes in plain text")
            return HTTPConnection(host, port, timeout=self._timeout)
        tls = self._trust(own=self._is_own(parts))
        proxy = proxy_for(host, port or 443)
        if proxy is None:
            return HTTPSConnection(host, port, timeout=self._timeout, context=tls)
        made = HTTPSConnection(proxy.host, proxy.port, timeout=self._timeout, context=tls)
        made.set_tunnel(host, port or 443, proxy.headers)
        return made

    def _trust(self, *, own: bool) -> ssl.SSLContext:
        """Made when it is first needed: all the authorities of the world take time and memory, and a fleet
        without a door of its own may have no certificates."""
        whose = "own" if own else "system"
        if whose not in self._contexts:
            self._contexts[whose] = context(self._bundle) if own else ssl.create_default_context()
        return self._contexts[whose]


@contextmanager
def _wire(host: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Unavailable(f"{host} is not known by the right certificate: {error.verify_message}") from None
    except (InvalidURL, ValueError) as error:
        raise BadUpdate(f"{host[:80]!r}: the address is not one: {str(error)[:80]}") from None
    except (OSError, HTTPException) as error:
        raise Broken(f"{host} does not answer: {str(error) or type(error).__name__}") from None


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadUpdate(f"{address[:80]!r} is no address of an object")
    return parts


def _here(host: str) -> bool:
    """Whether it is this very machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
