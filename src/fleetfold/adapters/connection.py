"""One MQTT 5 connection that comes back by itself: each loss is followed by a pause with full jitter.

    mqtts://host:8883   TLS, both sides with certificates        wss://host:443/mqtt   the same in WebSockets

Behind a proxy that the environment names (HTTPS_PROXY) it goes through a CONNECT tunnel. It runs in a
thread of its own (`start`), or is driven from outside (`open`, `turn`), in a process that holds very many.
"""

import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleetfold.adapters.doors import proxy_for
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.ports import pause

KEEPALIVE = 60
"""Seconds of silence after which one side asks whether the other is there."""
SESSION = 24 * 3600
"""Seconds that the broker keeps what came for us while we were away."""
FIRST, MOST = 1.0, 60.0
"""Seconds of pause after the first loss, and at most."""
STEADY = 10.0
"""Seconds that a connection has to stand before its loss counts as the first."""
TIMEOUT = 10.0
"""Seconds in which a connection has to be made."""
ROOM = 100
"""Messages that wait for a connection; what comes when there are more is not sent."""
NOT_LET_IN = (
    "the broker ended the connection before it let us in: is this device revoked, or of another fleet?"
)
IN_FLIGHT = 500
"""Messages that may be on their way without an acknowledgment, in either direction."""
ALPN = ["x-amzn-mqtt-ca"]
"""What is said at port 443, where AWS IoT Core has other protocols too: MQTT, by certificates."""


class Connection:
    """`addresses`: tried in turn, the one that works is kept. `context` makes its TLS, and no other's.
    `pauses`: seconds after the first loss, and at most. `in_flight`, `session`: see IN_FLIGHT, SESSION.

    Whoever uses it sets `filters` (topics that it subscribes to), `heard(message, receipt)`, which is to lead
    to `acknowledge(receipt)` sooner or later, `changed(session)` after each connection: whether the broker
    remembers us, `lost()` after each loss, and `will` (topic, payload), retained, which the broker publishes
    when we are lost.
    """

    def __init__(
        self, client: str, addresses: tuple[str, ...], context: ssl.SSLContext, *,
        pauses: tuple[float, float] = (FIRST, MOST), in_flight: int = IN_FLIGHT, session: int = SESSION,
    ) -> None:  # fmt: skip
        self._id, self._addresses, self._context, self._pauses = client, addresses, context, pauses
        self._in_flight, self._expiry = in_flight, session
        self.filters: tuple[str, ...] = ()
        self.heard: Callable[[Any, str], None] = lambda message, receipt: None
        self.changed: Callable[[bool], None] = lambda session: None
        self.lost: Callable[[], None] = lambda: None
        self.will: tuple[str, bytes] | None = None
        self.wanting: Callable[[], None] = lambda: None  # without a thread: `turn` has something to write
        self.address, self.why, self.connected = addresses[0], "not tried yet", False
        self._tried = 0  # which address
        self._life = 0  # of the connection: receipts of an earlier one mean nothing to the broker
        self._session = self._let_in = False
        self._parting = "Normal disconnection"
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._posted: list[tuple[str, bytes, bool, Properties | None]] = []
        self._thread: threading.Thread | None = None
        self._client = self._made(self.address)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self._id}", daemon=True)
        self._wakes = socket.socketpair()
        for end in self._wakes:
            end.setblocking(False)
        self.wanting = self._wake
        self._thread.start()

    def close(self, *, will: bool = False) -> None:
        """Leave. `will`: have the broker publish the will, as if we were lost."""
        self._parting = "Disconnect with will message" if will else "Normal disconnection"
        self._closing.set()
        if self._thread is None:
            self._part()
            return
        self._wake()
        self._thread.join(3 * TIMEOUT)
        for end in self._wakes:
            end.close()

    def publish(
        self, topic: str, payload: bytes, retain: bool, about: Properties | None = None
    ) -> MQTTMessageInfo:
        """At QoS 1. Raises Unavailable where there is no connection."""
        if not self.connected:
            raise Unavailable(f"not connected to {self.address}: {self.why or 'it is being tried'}")
        return self._client.publish(topic, payload, 1, retain, about)

    def post(self, topic: str, payload: bytes, retain: bool, about: Properties | None = None) -> None:
        """The same, now or as soon as there is a connection."""
        with self._lock:
            if not self.connected:
                if len(self._posted) < ROOM:
                    self._posted.append((topic, payload, retain, about))
                return
        self._client.publish(topic, payload, 1, retain, about)

    def acknowledge(self, receipt: str) -> None:
        """The message of that receipt has been taken care of, and need not come again."""
        _, mid, qos = (int(part) for part in receipt.split(":"))
        if qos and self.stands(receipt):
            self._client.ack(mid, qos)

    def stands(self, receipt: str) -> bool:
        """Whether the message came by the connection that there is now; else it comes again."""
        return receipt.startswith(f"{self._life}:")

    # Without a thread

    def open(self) -> None:
        """Raises OSError, or a proxy's HTTPException. What is left of the way, `turn` makes."""
        self._connect()

    def socket(self) -> Any:
        return self._client.socket()

    def turn(self) -> bool:
        """Read, write and keep alive what can be now, without waiting: always in the same thread, when the
        socket is ready, when `wanting` was called, and now and then. → whether it still stands."""
        code = self._client.loop_read()
        found = self._client.socket()
        while found is not None and code is MQTTErrorCode.MQTT_ERR_SUCCESS and _pending(found):
            code = self._client.loop_read()
        if self._client.want_write():
            self._client.loop_write()
        self._client.loop_misc()
        stands = self._client.socket() is not None
        if stands and self._client.want_write():
            self.wanting()  # queued while the last of what was before it went out: nobody has said so
        return stands

    # In the thread

    def _run(self) -> None:
        losses = 0
        while not self._closing.is_set():
            since, stood = time.monotonic(), False
            try:
                self._connect()
                stood = self._attend()
                self.why = self.why or "it does not answer"
            except Exception as error:  # noqa: BLE001 - a thread that ends would never connect again
                self.why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if not stood:
                self._next_address()
            losses = 0 if stood and time.monotonic() - since > STEADY else losses + 1
            self._closing.wait(pause(losses, *self._pauses, random.random()))

    def _attend(self) -> bool:
        """Turn whenever there is something to do, until the connection is lost or given up. → whether it
        ever stood."""
        stood, give_up = False, time.monotonic() + 2 * TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakes[0], selectors.EVENT_READ)
            while (found := self._client.socket()) is not None:
                stood = stood or self.connected
                if self._closing.is_set() or not (stood or time.monotonic() < give_up):
                    self._part()
                    break
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
                key = selector.register(found, events)
                selector.select(1.0)
                selector.unregister(key.fileobj)
                with suppress(BlockingIOError):
                    self._wakes[0].recv(1 << 10)
                self.turn()
        return stood

    def _part(self) -> None:
        """Say goodbye, and be quiet."""
        self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, self._parting))
        for _ in range(100):
            if not self._client.want_write() or not self.turn():
                break
            time.sleep(0.01)
        with self._lock:
            self.connected = False

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._wakes[1].send(b"w")

    def _connect(self) -> None:
        parts = urlsplit(self.address)
        about = properties(
            PacketTypes.CONNECT, SessionExpiryInterval=self._expiry, ReceiveMaximum=self._in_flight
        )
        port = parts.port or (443 if parts.scheme == "wss" else 8883)
        if self.will:
            self._client.will_set(self.will[0], self.will[1], qos=1, retain=True)
        self.why, self._let_in = "", False
        self._client.connect(parts.hostname or "", port, KEEPALIVE, clean_start=False, properties=about)

    def _next_address(self) -> None:
        if len(self._addresses) > 1:
            self._tried += 1
            self.address = self._addresses[self._tried % len(self._addresses)]
            self._client = self._made(self.address)

    def _made(self, address: str) -> Client:
        parts = urlsplit(address)
        if parts.scheme not in ("mqtts", "wss") or not parts.hostname:
            raise BadConfig(f"{address!r} is no broker's address: mqtts://host:8883 or wss://host:443/mqtt")
        made = _Tunnelled(
            CallbackAPIVersion.VERSION2, client_id=self._id, protocol=MQTTProtocolVersion.MQTTv5,
            transport="websockets" if parts.scheme == "wss" else "tcp", reconnect_on_failure=False,
            manual_ack=True,
        )  # fmt: skip
        if parts.scheme == "wss":
            made.ws_set_options(parts.path or "/mqtt")
        self._context.set_alpn_protocols(ALPN if parts.scheme == "mqtts" and parts.port == 443 else [])
        made.tls_set_context(self._context)
        made.connect_timeout = TIMEOUT
        made.max_inflight_messages_set(self._in_flight)
        made.on_connect, made.on_subscribe = self._connected, self._subscribed
        made.on_disconnect, made.on_message = self._lost, self._message
        # Nothing is written in the thread of whoever publishes: TLS has one at a time.
        made.on_socket_register_write = lambda client, data, socket: self.wanting()
        return made

    def _connected(
        self, client: Client, data: object, flags: ConnectFlags, code: ReasonCode, more: Properties | None
    ) -> None:
        if code.is_failure:
            self.why = f"the broker refuses us: {code}"
            return
        self._life += 1
        self._session, self._let_in = flags.session_present, True
        client.subscribe([(topic, 1) for topic in self.filters])

    def _subscribed(
        self, client: Client, data: object, mid: int, codes: list[ReasonCode], more: Properties | None
    ) -> None:
        if refused := [code for code in codes if code.is_failure]:
            self.why = f"the broker refuses our topics: {refused[0]}"
            client.disconnect()
            return
        with self._lock:
            self.connected, posted = True, self._posted
            self._posted = []
        for message in posted:
            client.publish(message[0], message[1], 1, message[2], message[3])
        self.changed(self._session)

    def _lost(
        self, client: Client, data: object, flags: object, code: ReasonCode, more: Properties | None
    ) -> None:
        with self._lock:
            self.connected = False
        self.why = self.why or (f"the connection was lost: {code}" if self._let_in else NOT_LET_IN)
        self.lost()

    def _message(self, client: Client, data: object, message: MQTTMessage) -> None:
        self.heard(message, f"{self._life}:{message.mid}:{message.qos}")


class _Tunnelled(Client):
    """Through the proxy that the environment names for this host, if it does; nothing waits for more to go
    with it."""

    def _create_socket_connection(
        self,
    ) -> socket.socket:  # paho has a hook for SOCKS alone, by a package more
        proxy = proxy_for(self._host, self._port)
        if proxy is None:
            made = super()._create_socket_connection()
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # http.client does so by itself
            return made
        connection = HTTPConnection(proxy.host, proxy.port, timeout=TIMEOUT)
        connection.set_tunnel(self._host, self._port, proxy.headers)
        connection.connect()
        return connection.sock


def properties(packet: int, **values: object) -> Properties:
    """Properties of an MQTT 5 packet, by the names that the standard gives them."""
    made = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(made, name, value)
    return made


def _pending(found: Any) -> bool:
    """Whether something has been decrypted that the system's own `select` does not know of."""
    pending = getattr(found, "pending", None)
    return bool(pending()) if pending else False
