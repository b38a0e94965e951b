"""The HTTPS endpoint of IoT Core, from its documentation: an emulator that notes what is published.

It keeps retained messages by topic, and refuses a payload above 128 KiB, as the real one does. It does not
show: policies, signatures, throttling (tests/aws/weather.py does), expiry, delivery to anybody, TLS.
"""

import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LIMIT = 128 * 1024


class Published(NamedTuple):
    topic: str
    payload: bytes
    qos: int
    retain: bool
    expiry: int | None  # seconds
    response: str  # topic
    correlation: bytes


class Iot(ThreadingHTTPServer):
    """`published`: everything, in order; `retained`: topic → how often it was changed, payload."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.published: list[Published] = []
        self.retained: dict[str, tuple[int, bytes]] = {}
        self.lock = threading.Lock()

    def clear(self) -> None:
        self.published.clear()
        self.retained.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, message: Published) -> None:
        with self.lock:
            self.published.append(message)
            if message.retain and message.payload:
                self.retained[message.topic] = (len(self.published), message.payload)
            elif message.retain:
                self.retained.pop(message.topic, None)


class _Request(BaseHTTPRequestHandler):
    server: Iot
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        said = {name: values[0] for name, values in parse_qs(address.query).items()}
        payload = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not address.path.startswith("/topics/"):
            return self._say(404, "ResourceNotFoundException")
        if len(payload) > LIMIT:
            return self._say(413, "RequestEntityTooLargeException")
        self.server.take(
            Published(
                unquote(address.path.removeprefix("/topics/")), payload,
                int(said.get("qos", "0")), said.get("retain") == "true",
                int(said["messageExpiry"]) if "messageExpiry" in said else None,
                said.get("responseTopic", ""),
                b64decode(self.headers.get("x-amz-mqtt5-correlation-data", "")),
            )
        )  # fmt: skip
        self._say(200)

    def _say(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("x-amzn-errortype", code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@contextmanager
def serving() -> Iterator[Iot]:
    server = Iot()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
