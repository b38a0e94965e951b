"""A door over real TLS that keeps the contract of signed addresses, or breaks it as it is told; and a proxy.

door.trouble("GET", cut(100), status(503))      # so the next two GETs go; then all is well again
"""

import hashlib
import socket
import ssl
import tempfile
import threading
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub.pki_transfer import Authority, Pair


class Seen(dict[str, str]):
    """A request as it came: method, key, and its headers in lower case."""


class Door(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, pair: Pair | None, authority: Authority | None, host: str = "127.0.0.1") -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.objects: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.now = 1000
        self.troubles: dict[str, list[Trouble]] = defaultdict(list)
        self.released = threading.Event()
        self.base = f"http{'s' if pair else ''}://{host}:{self.server_address[1]}"
        if pair:
            self.socket = _context(pair, authority).wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def address(self, key: str, method: str, until: int = 2000) -> str:
        return f"{self.base}/objects/{key}?method={method}&until={until}"

    def trouble(self, method: str, *troubles: "Trouble") -> None:
        self.troubles[method] += troubles

    def methods(self) -> list[str]:
        return [seen["method"] for seen in self.seen]

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this is about."""


class _Visit(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Door

    def do_GET(self) -> None:
        key = self._judged()
        if key is None:
            return
        if key not in self.server.objects:
            return self.say(404, b"there is no such object")
        data, asked = self.server.objects[key], self.headers.get("Range")
        if asked is None or self.command == "HEAD":
            return self.say(200, data)
        first = int(asked.removeprefix("bytes=").removesuffix("-"))
        if first >= len(data):
            return self.say(416, b"no such range", {"Content-Range": f"bytes */{len(data)}"})
        said = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        return self.say(206, data[first:], said)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        key = self._judged()
        if key is not None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            promised = f"sha-256=:{b64encode(hashlib.sha256(data).digest()).decode()}:"
            if self.server.base.startswith("https") and self.headers.get("Content-Digest") not in (
                promised,
                None,
            ):
                return self.say(422, b"other bytes than were promised")
            before = self.server.objects.setdefault(key, data)
            self.say(201 if before is data else 200 if before == data else 409, b"")
        return None

    def _judged(self) -> str | None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        key = parts.path.removeprefix("/objects/")
        self.server.seen.append(
            Seen({n.lower(): v for n, v in self.headers.items()} | {"method": self.command, "key": key})
        )
        found = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        self.server.seen[-1]["certificate"] = str(bool(found))
        if self.server.troubles[self.command] and self.server.troubles[self.command].pop(0)(self):
            return None
        if int(query["until"][0]) < self.server.now:
            return self.refuse(410, b"the address has expired: ask for a fresh one")
        if self.command not in ("HEAD", query["method"][0]):
            return self.refuse(403, b"the address is for another method")
        return key

    def refuse(self, status: int, sentence: bytes) -> None:
        """Without hearing the body."""
        self.close_connection = True
        self.say(status, sentence, {"Connection": "close"})

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Trouble = Callable[[_Visit], bool]
"""What goes wrong with a request. → whether it was answered, or never will be."""


def status(code: int, sentence: bytes = b"not now") -> Trouble:
    def go(visit: _Visit) -> bool:
        visit.refuse(code, sentence)
        return True

    return go


def cut(after: int) -> Trouble:
    """The connection ends after so many bytes of what was asked for."""

    def go(visit: _Visit) -> bool:
        data = visit.server.objects[urlsplit(visit.path).path.removeprefix("/objects/")]
        first = int((visit.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        visit.send_response(206 if first else 200)
        visit.send_header("Content-Length", str(len(data) - first))
        if first:
            visit.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        visit.end_headers()
        visit.wfile.write(data[first : first + after])
        visit.close_connection = True
        return True

    return go


def says(body: bytes, status: int = 200, **headers: str) -> Trouble:
    """Something else than what lies there."""

    def go(visit: _Visit) -> bool:
        visit.say(status, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return go


def endless(visit: _Visit) -> bool:
    """A body that never says how long it is, and never ends."""
    visit.send_response(200)
    visit.send_header("Transfer-Encoding", "chunked")
    visit.end_headers()
    while not visit.server.released.is_set():
        visit.wfile.write(b"400\r\n" + bytes(1024) + b"\r\n")
    return True


def silent(visit: _Visit) -> bool:
    """Nothing is ever answered."""
    visit.close_connection = True
    visit.server.released.wait()
    return True


def lost(visit: _Visit) -> bool:
    """All is done, but the answer does not come through."""
    key = urlsplit(visit.path).path.removeprefix("/objects/")
    visit.server.objects[key] = visit.rfile.read(int(visit.headers["Content-Length"]))
    visit.close_connection = True
    return True


def _context(pair: Pair, authority: Authority | None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "pair.pem")
        place.write_text(pair.certificate + pair.key)
        made.load_cert_chain(place)
    if authority is not None:
        made.load_verify_locations(cadata=authority.pem)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


class Proxy:
    """CONNECT only, for who gives the right words; every name leads to this machine."""

    def __init__(self, words: str) -> None:
        self._expected = f"proxy-authorization: basic {b64encode(words.encode()).decode()}".lower()
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(visitor,), daemon=True).start()

    def _tunnel(self, visitor: socket.socket) -> None:
        with visitor:
            head = b""
            while b"\r\n\r\n" not in head:
                head += visitor.recv(1)
            first, *rest = head.decode().split("\r\n")
            self.asked.append(first)
            if self._expected not in [line.lower() for line in rest]:
                visitor.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", int(first.split()[1].rpartition(":")[2]))) as door:
                visitor.sendall(b"HTTP/1.1 200 there you are\r\n\r\n")
                back = threading.Thread(target=_pour, args=(door, visitor))
                back.start()
                _pour(visitor, door)
                back.join()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
