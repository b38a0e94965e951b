"""A bare MQTT client under any certificate, and what the broker says to it: for tests of what it may do.

client = Raw(site, pair)          waits until it is let in or not: `client.inside`, `client.why`
client.subscribe(filter) ─▶ "Granted QoS 1" or "Not authorized"    client.publish(topic, …) ─▶ "Success" …
client.heard                      (topic, payload) in the order in which they came
"""

import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleetfold.bundle import Bundle
from tests.hub.conftest import Enrolled

PATIENCE = 20.0
Pair = tuple[str, str]
"""Certificate and key, as PEM."""


def pair(bundle: Bundle) -> Pair:
    return bundle.certificate, bundle.key


def hub_pair(site: Enrolled, name: str = "hub") -> Pair:
    return (site.folder / f"{name}.pem").read_text(), (site.folder / f"{name}.key").read_text()


def trust(site: Enrolled, pair: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(site.folder / "ca.pem"))
    if pair:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pair.pem"
            file.write_text("".join(pair))
            context.load_cert_chain(file)
    return context


def at_once(opened: Any) -> None:
    """Sent when it is said, and not together with what may come after."""
    if isinstance(opened, socket.socket):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Raw:
    def __init__(
        self, site: Enrolled, pair: Pair | None, *, websockets: bool = False, client_id: str = "",
        clean: bool = True, session: int = 0, will: str = "",
    ) -> None:  # fmt: skip
        self.heard: list[tuple[str, bytes]] = []
        self.inside, self.session_present, self.why = False, False, ""
        self._changed = threading.Condition()
        self._answers: dict[int, str] = {}
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5,
            transport="websockets" if websockets else "tcp", reconnect_on_failure=False,
        )  # fmt: skip
        self._client.on_socket_open = lambda c, u, opened: at_once(opened)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda c, u, flags, code, p: self._note(inside=False, why=str(code))
        self._client.on_message = lambda c, u, m: self._hear((m.topic, m.payload))
        self._client.on_subscribe = lambda c, u, mid, codes, p: self._answer(mid, codes[0])
        self._client.on_publish = lambda c, u, mid, code, p: self._answer(mid, code)
        self._client.tls_set_context(trust(site, pair))
        if will:
            self._client.will_set(will, b"will", qos=1, retain=True)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session
        port = site.place.websockets if websockets else site.place.mqtt
        try:
            self._client.connect("127.0.0.1", port, clean_start=clean, properties=properties)
        except (OSError, ValueError) as error:
            self.why = str(error)
            return
        self._client.loop_start()
        self.until(lambda: self.inside or bool(self.why))

    def subscribe(self, filter: str) -> str:
        return self._asked(lambda: self._client.subscribe(filter, qos=1)[1])

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> str:
        return self._asked(lambda: self._client.publish(topic, payload, qos=1, retain=retain).mid)

    def until(self, done: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(done, PATIENCE), "nothing came"

    def until_heard(self, topic: str, payload: bytes) -> None:
        self.until(lambda: (topic, payload) in self.heard)

    def until_gone(self) -> None:
        self.until(lambda: not self.inside)

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def vanish(self) -> None:
        """As in a power cut: no word of farewell."""
        connection = self._client.socket()
        assert isinstance(connection, socket.socket)
        connection.shutdown(socket.SHUT_RDWR)
        self.until_gone()
        self._client.loop_stop()

    def _asked(self, ask: Callable[[], int | None]) -> str:
        if not self.inside:
            return "gone"
        mid = ask()
        assert mid is not None
        self.until(lambda: mid in self._answers or not self.inside)
        return self._answers.get(mid, "gone")

    def _on_connect(self, client: Client, data: Any, flags: Any, code: Any, properties: Any) -> None:
        self.session_present = flags.session_present
        self._note(inside=not code.is_failure, why=str(code) if code.is_failure else "")

    def _note(self, *, inside: bool, why: str) -> None:
        with self._changed:
            self.inside, self.why = inside, why
            self._changed.notify_all()

    def _hear(self, message: tuple[str, bytes]) -> None:
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    def _answer(self, mid: int, code: Any) -> None:
        with self._changed:
            self._answers[mid] = str(code)
            self._changed.notify_all()


@contextmanager
def leaving(client: Raw) -> Iterator[Raw]:
    yield client
    client.leave()
