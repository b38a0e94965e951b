"""What AWS IoT Core has otherwise than Mosquitto, and where a device keeps to it. The broker here is a few
bytes of this file: it shows what a device says to one, not what the real one does."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fleetfold import layout
from fleetfold.adapters import connection
from fleetfold.adapters.connection import ALPN, Connection
from fleetfold.adapters.doors import context
from fleetfold.adapters.mqtt_link import MqttLink
from fleetfold.bundle import Bundle
from fleetfold.messages import LIMIT, Answer, Presence, Report, understood
from fleetfold.wiring import device
from tests.hub.pki_transfer import Authority
from tests.hub.proxy import Proxy
from tests.hub.wire import QUICK, soon

HOST = "a1b2c3-ats.iot.eu-central-1.amazonaws.com"
LONG = "n" * 64


class Endpoint:
    """Takes in whoever has a certificate and names the protocol; `spoken`: what each has named."""

    def __init__(self, authority: Authority) -> None:
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.pem)
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.set_alpn_protocols(["x-amzn-http-ca", *ALPN])
        self._pair = authority.server(HOST)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.spoken = list[str | None]()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)

    def load(self, place: str) -> None:
        with open(place, "w") as file:
            file.write(self._pair.certificate + self._pair.key)
        self._tls.load_cert_chain(place)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._threads.append(threading.Thread(target=self._talk, args=(client,), daemon=True))
                self._threads[-1].start()

    def _talk(self, client: socket.socket) -> None:
        with client, suppress(OSError), self._tls.wrap_socket(client, server_side=True) as heard:
            self.spoken.append(heard.selected_alpn_protocol())
            if heard.selected_alpn_protocol() not in ALPN:
                return
            heard.recv(4096)
            heard.sendall(bytes([0x20, 3, 0, 0, 0]))  # CONNACK: no session, let in
            asked = heard.recv(4096)
            heard.sendall(bytes([0x90, 6, *asked[2:4], 0, 1, 1, 1]))  # SUBACK of three topics
            while heard.recv(4096):
                pass


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def endpoint(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    made = Endpoint(authority)
    made.load(str(tmp_path_factory.mktemp("endpoint") / "pair.pem"))
    yield made
    made.close()


def test_behind_a_firewall_that_lets_443_out_alone_a_device_asks_there_for_mqtt_by_name(
    endpoint: Endpoint, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy({HOST: "127.0.0.1"}, "u", "p", {443: endpoint.port})
    monkeypatch.setenv("https_proxy", f"http://u:p@127.0.0.1:{proxy.port}")
    bundle = authority.bundle("press-7", f"mqtts://{HOST}:8883")
    brokers = (*bundle.brokers, f"mqtts://{HOST}:443")
    made = Connection("press-7", brokers, context(bundle), pauses=QUICK, in_flight=device.IN_FLIGHT)
    link = MqttLink(made, "main", "press-7", time.monotonic)
    link.start()
    try:
        soon(lambda: link.connected)
        assert link.broker == brokers[1]
        assert endpoint.spoken == ALPN
        assert proxy.refused, "8883 was tried first"
    finally:
        link.close()
        proxy.close()


def test_a_device_keeps_to_what_the_broker_takes_of_one_connection() -> None:
    assert device.IN_FLIGHT <= 100, "messages without an acknowledgment"
    assert 30 <= connection.KEEPALIVE <= 1200
    assert connection.SESSION <= 7 * 24 * 3600
    assert len(layout.TO_DEVICE) <= 8, "filters in one subscription"


def test_a_topic_has_room_for_the_longest_names() -> None:
    for word in (*layout.TO_DEVICE, *layout.FROM_DEVICE):
        topic = layout.topic(LONG, LONG, word)
        assert len(topic.encode()) <= 256
        assert topic.count("/") <= 7


class Held:
    """A connection that keeps what is said."""

    address, connected, why = "here", True, ""

    def __init__(self) -> None:
        self.said: list[tuple[str, bytes]] = []

    def post(self, topic: str, payload: bytes, retain: bool, about: object = None) -> None:
        self.said.append((topic.rpartition("/")[2], payload))


@pytest.mark.parametrize("what", ["answer", "refusal", "presence", "many metrics"])
def test_what_is_too_long_for_a_message_is_said_shorter(what: str) -> None:
    held, text = Held(), "é" * LIMIT
    link = MqttLink(held, "main", "press-7", time.monotonic)  # type: ignore[arg-type]
    match what:
        case "answer":
            link.answer(Answer(id="1", device="press-7", state="failed", reason=text))
        case "refusal":
            link.report(Report(run="r", round=1, kind="train", device="press-7", state="failed", reason=text))
        case "presence":
            link.say(Presence(device="press-7", reason=text))
        case _:
            metrics: dict[str, float | None] = {f"metric {k}": 1.0 for k in range(9999)}
            link.answer(Answer(id="1", device="press-7", state="done", metrics=metrics))
    ((word, payload),) = held.said
    said = understood("press-7", word, payload)
    assert not isinstance(said, str), said
    assert "bytes" in said.reason if what == "many metrics" else said.reason.startswith("é")


def test_a_fleet_without_a_door_needs_no_certificate_for_a_stores_addresses(authority: Authority) -> None:
    from fleetfold.adapters.doors import Doors

    given = Bundle(fleet="main", device="press-7", brokers=(), authority="", certificate="")
    doors = Doors(given, hosts=[], plain=False, timeout=1.0, spent=lambda sent, received: None)
    assert not doors.own("https://bucket.s3.eu-central-1.amazonaws.com/objects/x?X-Amz-Signature=0")
    doors.close()
