"""One MQTT 5 connection that comes back by itself: each loss is followed by a pause with full jitter.

    mqtts://host:8883   TLS, both sides with certificates        wss://host:443/mqtt   the same in WebSockets

Behind a proxy that the environment names (HTTPS_PROXY) it goes through a CONNECT tunnel. It runs in a
thread of its own (`start`), or is driven from outside (`open`, `turn`), in a process that holds very many.
"""

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleetfold.adapters.doors import proxy_for
from fleetfold.errors import BadConfig
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
IN_FLIGHT = 500
"""Messages that may be on their way without an acknowledgment, in either direction."""


class Connection:
    """`addresses`: tried in turn, the one that works is kept. `context` makes its TLS.

    Whoever uses it sets `filters` (topics that it subscribes to), `heard(message, receipt)`, which is to lead
    to `acknowledge(receipt)` sooner or later, `changed(session)` after each connection: whether the broker
    remembers us, and `will` (topic, payload), retained, which the broker publishes when we are lost.
    """

    def __init__(
        self, client: str, addresses: tuple[str, ...], context: ssl.SSLContext, *, first: float = FIRST
    ) -> None:
        self._id, self._addresses, self._context, self._first = client, addresses, context, first
        self.filters: tuple[str, ...] = ()
        self.heard: Callable[[MQTTMessage, str], None] = lambda message, receipt: None
        self.changed: Callable[[bool], None] = lambda session: None
        self.will: tuple[str, bytes] | None = None
        self.address, self.why, self.connected = addresses[0], "not tried yet", False
        self._tried = 0  # which address
        self._life = 0  # of the connection: receipts of an earlier one mean nothing to the broker
        self._session = False
        self._parting = "Normal disconnection"
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._client = self._made(self.address)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self._id}", daemon=True)
        self._thread.start()

    def close(self, *, will: bool = False) -> None:
        """Leave. `will`: have the broker publish the will, as if we were lost."""
        self._parting = "Disconnect with will message" if will else "Normal disconnection"
        self._closing.set()
        if self._thread is None:
            self._part()
            return
        if self.connected:
            self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, self._parting))
        self._thread.join(2 * TIMEOUT)

    def publish(
        self, topic: str, payload: bytes, retain: bool, properties: Properties | None = None
    ) -> MQTTMessageInfo:
        """At QoS 1; queued while there is no connection."""
        return self._client.publish(topic, payload, 1, retain, properties)

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
        """Raises OSError. The rest of the way, to `changed`, is made by `turn`."""
        self._connect()

    def socket(self) -> Any:
        return self._client.socket()

    def turn(self) -> bool:
        """Read, write and keep alive what can be now, without waiting. → whether it still stands."""
        code = self._client.loop_read()
        found = self._client.socket()
        while found is not None and code is MQTTErrorCode.MQTT_ERR_SUCCESS and _pending(found):
            code = self._client.loop_read()
        if self._client.want_write():
            self._client.loop_write()
        self._client.loop_misc()
        return self._client.socket() is not None

    # In the thread

    def _run(self) -> None:
        losses = 0
        while not self._closing.is_set():
            since = time.monotonic()
            try:
                self._connect()
                while not self._closing.is_set() and self._looped():
                    pass
                self.why = self.why or "the connection was lost"
            except (OSError, HTTPException, ValueError) as error:
                self.why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if not self.connected:
                self._next_address()
            losses = 0 if self.connected and time.monotonic() - since > STEADY else losses + 1
            if not self._closing.is_set():
                self.connected = False
                self._closing.wait(pause(losses, self._first, MOST, random.random()))
        self.connected = False
        self._part()

    def _looped(self) -> bool:
        return self._client.loop(timeout=1.0) is MQTTErrorCode.MQTT_ERR_SUCCESS

    def _part(self) -> None:
        """Say goodbye, if there is anybody to say it to."""
        give_up = time.monotonic() + TIMEOUT
        while self._client.socket() is not None and time.monotonic() < give_up:
            self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, self._parting))
            if not self._looped():
                break

    def _connect(self) -> None:
        parts = urlsplit(self.address)
        about = properties(PacketTypes.CONNECT, SessionExpiryInterval=SESSION, ReceiveMaximum=IN_FLIGHT)
        port = parts.port or (443 if parts.scheme == "wss" else 8883)
        if self.will:
            self._client.will_set(self.will[0], self.will[1], qos=1, retain=True)
        self.why = ""
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
        made.tls_set_context(self._context)
        made.connect_timeout = TIMEOUT
        made.max_inflight_messages_set(IN_FLIGHT)
        made.on_connect, made.on_subscribe = self._connected, self._subscribed
        made.on_disconnect, made.on_message = self._lost, self._message
        return made

    def _connected(
        self, client: Client, data: object, flags: ConnectFlags, code: ReasonCode, more: Properties | None
    ) -> None:
        if code.is_failure:
            self.why = f"the broker refuses us: {code}"
            return
        self._life += 1
        self._session = flags.session_present
        client.subscribe([(topic, 1) for topic in self.filters])

    def _subscribed(
        self, client: Client, data: object, mid: int, codes: list[ReasonCode], more: Properties | None
    ) -> None:
        if refused := [code for code in codes if code.is_failure]:
            self.why = f"the broker refuses our topics: {refused[0]}"
            client.disconnect()
            return
        self.connected = True
        self.changed(self._session)

    def _lost(
        self, client: Client, data: object, flags: object, code: ReasonCode, more: Properties | None
    ) -> None:
        self.why = self.why or f"the connection was lost: {code}"

    def _message(self, client: Client, data: object, message: MQTTMessage) -> None:
        self.heard(message, f"{self._life}:{message.mid}:{message.qos}")


class _Tunnelled(Client):
    """Through the proxy that the environment names for this host, if it does."""

    def _create_socket_connection(
        self,
    ) -> socket.socket:  # paho has a hook for SOCKS alone, by a package more
        proxy = proxy_for(self._host, self._port)
        if proxy is None:
            return super()._create_socket_connection()
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
