"""A hub for one device that is tried: authority, broker and door of its own, in a folder, on free ports.

device ⇄ broker ⇄ what it said, in order, one wait for all of it
device ⇄ door ⇄ objects that tell who reads what, can keep a reader waiting, and can break off
"""

import random
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes

from fleetfold import layout
from fleetfold.adapters.connection import Connection, properties
from fleetfold.adapters.mqtt_bus import MqttBus
from fleetfold.adapters.objects import File, FileObjects
from fleetfold.adapters.parted import Parted
from fleetfold.bundle import save
from fleetfold.errors import Unavailable
from fleetfold.hub import authority
from fleetfold.hub.broker import TOLD, Broker
from fleetfold.hub.door import Door, tls
from fleetfold.hub.enrol import credential, enroll
from fleetfold.hub.signing import HubSigner
from fleetfold.wiring import hub as wiring

DEVICE = "tried"
PORTS = range(20_000, 32_000)
"""Below those that the system gives to whoever connects."""
LINGER = 0.5
"""Seconds between what is sent last and the break of a connection: what was sent is to arrive."""
PATIENCE = 20.0
"""Seconds in which a broker that was just started answers."""
HOLD = 120.0
"""Seconds after which a reader that is kept waiting goes on whatever is."""


class Said(NamedTuple):
    """A message of the device's, as the broker handed it over."""

    word: str
    payload: bytes
    kept: bool  # came because the broker keeps it, and not just now
    correlation: bytes


class Published(NamedTuple):
    topic: str
    size: int
    retain: bool


class Watched(FileObjects):
    """`reads`: (key, first byte) of each reading that was begun. `held`: keys whose readers wait for the
    event. `breaks`: keys whose next reader gets half of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads = list[tuple[str, int]]()
        self.held = dict[str, threading.Event]()
        self.breaks = set[str]()
        self.broken = set[str]()

    def open(self, key: str) -> File:
        file = super().open(key)
        return _Watching(file, key, self)


class _Watching(File):
    def __init__(self, file: File, key: str, objects: Watched) -> None:
        super().__init__(file.file or 0, key)
        self._name, self._objects, self._begun = key, objects, False
        self._half = 0

    def read(self, offset: int, into: memoryview) -> int:
        objects, key = self._objects, self._name
        if not self._begun:
            self._begun = True
            objects.reads.append((key, offset))
            if key in objects.breaks:
                objects.breaks.discard(key)
                objects.broken.add(key)
                self._half = offset + (objects.size(key) or 0) // 2
        if event := objects.held.get(key):
            event.wait(HOLD)
        if not self._half:
            return super().read(offset, into)
        if offset >= self._half:
            time.sleep(LINGER)
            return 0  # as if it had been cut short: the door hangs up
        return super().read(offset, into[: self._half - offset])


class Scratch:
    """`hosts`: names under which the device finds it; "" as `listen` is every address of this machine.
    Make and close it in one thread. Raises BadConfig or Unavailable."""

    def __init__(self, folder: Path, hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
                 listen: str = "127.0.0.1") -> None:  # fmt: skip
        home, hub = folder / "home", wiring.folder(folder / "home")
        self.place = authority.Site(
            hosts=hosts, listen=listen, mqtt=_free_port(), door=_free_port(), fleet="check"
        )
        authority.create(hub, self.place)
        records = wiring.records(home)
        self.bundle, self.log = folder / "device.bundle", hub / "mosquitto.log"
        save(enroll(records, hub, DEVICE, time.time()), self.bundle)
        own = credential(records, DEVICE)
        ids = {DEVICE: own.id if own else ""}
        self.name = f"serialNumber={ids[DEVICE]},CN={DEVICE}"
        self.secret, self.base = (hub / "signing.key").read_bytes(), f"https://{hosts[0]}:{self.place.door}"
        self.objects = Watched(home)
        self.lying = Parted(self.objects)
        self.said = list[Said]()
        self._changed, self._started = threading.Condition(), ExitStack()
        self.answering: Callable[[Said], None] = lambda said: None
        self._broker = Broker(hub, records, (*TOLD, "debug"))
        self.door = Door(
            self.objects, tls(hub / "server.pem", hub / "server.key", hub / "ca.pem"), self.secret, ids.get,
            lambda key: self._notify(), lambda line: None, time.time, host=listen, port=self.place.door,
        )  # fmt: skip
        self._hub = hub
        self._connection, self.bus = self._wired()

    def start(self) -> None:
        self._started.callback(self._broker.stop)
        self._broker.start()
        self.door.start()
        self._started.callback(self.door.stop)
        self._started.callback(lambda: self._connection.close())
        self._connect()

    def connect_anew(self) -> None:
        """Whatever the broker keeps of the device's messages comes again."""
        self._connection.close()
        self._connection, self.bus = self._wired()
        self._connect()

    def _wired(self) -> tuple[Connection, MqttBus]:
        address = f"mqtts://{self.place.listen or '127.0.0.1'}:{self.place.mqtt}"
        connection, bus = wiring.bus(
            self._hub, address, self.place.fleet, self.signer(), lambda line: None, lambda: None
        )
        connection.heard = self._heard
        return connection, bus

    def _connect(self) -> None:
        self._connection.start()
        give_up = time.monotonic() + PATIENCE
        while not self._connection.connected:
            if time.monotonic() > give_up:
                raise Unavailable(f"cannot reach the broker that was started: {self._connection.why}")
            time.sleep(0.01)

    def close(self) -> None:
        for event in self.objects.held.values():
            event.set()
        self._started.close()

    def signer(self, late: float = 0.0) -> HubSigner:
        """Of addresses; `late`: seconds by which its clock is behind."""
        return HubSigner(self.secret, self.base, lambda: time.time() - late)

    def tell(self, word: str, payload: bytes, *, expires: float = 600.0) -> None:
        """Any bytes, as the hub would send them."""
        about = properties(
            PacketTypes.PUBLISH, **({"MessageExpiryInterval": int(expires)} if payload else {})
        )
        topic = layout.topic(self.place.fleet, DEVICE, word)
        self._connection.publish(topic, payload, word == "task", about).wait_for_publish(10)

    def until(self, true: Callable[[], object], seconds: float) -> bool:
        """Whether it comes true in that time."""
        give_up = time.monotonic() + seconds
        with self._changed:
            while not true():
                if (left := give_up - time.monotonic()) <= 0:
                    return False
                self._changed.wait(min(left, 0.2))
        return True

    def publishes(self) -> list[Published]:
        """Whatever the device tried to publish."""
        found = re.findall(
            rf"(?:Received|Denied) PUBLISH from {re.escape(self.name)} "
            r"\(d[01], q[012], r([01]), m[0-9]+, '([^']*)', \.\.\. \(([0-9]+) bytes\)\)",
            self.log.read_text(errors="replace"),
        )
        return [Published(topic, int(size), retain == "1") for retain, topic, size in found]

    def subscriptions(self) -> set[tuple[str, int]]:
        """(filter, QoS) of whatever it tried to subscribe to."""
        found, own = set[tuple[str, int]](), False
        for line in self.log.read_text(errors="replace").splitlines():
            if entry := re.fullmatch(r"[^\t]*\t(\S+) \(QoS ([012])\)", line):
                found |= {(entry[1], int(entry[2]))} if own else set()
            else:
                own = f"Received SUBSCRIBE from {self.name}" in line
        return found

    def connections(self) -> list[tuple[int, bool]]:
        """(version of MQTT, clean start) of each that it made."""
        found = re.findall(
            rf"New client connected from \S+ as {re.escape(self.name)} \(p([0-9]), c([01])",
            self.log.read_text(errors="replace"),
        )
        return [(int(version), clean == "1") for version, clean in found]

    def _heard(self, message: MQTTMessage, receipt: str) -> None:
        word = message.topic.rpartition("/")[2]
        about = getattr(message.properties, "CorrelationData", b"")
        said = Said(word, bytes(message.payload), message.retain, about)
        with self._changed:
            self.said.append(said)
            self._changed.notify_all()
        self._connection.acknowledge(receipt)
        self.answering(said)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("", port))
            return port
