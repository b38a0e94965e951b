"""Both ends of the bus on a real broker, for tests, and how to wait for what is on its way."""

import itertools
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from fleetfold.adapters.connection import Connection
from fleetfold.adapters.mqtt_bus import MqttBus
from fleetfold.adapters.mqtt_link import MqttLink
from fleetfold.bundle import Bundle
from fleetfold.messages import Answer, Command, Report, Task
from fleetfold.ports import Letter
from tests.hub.conftest import Enrolled

PATIENCE = 20.0
QUICK = (0.05, 0.5)
"""Pauses of a connection that is lost in a test: it does not wait long."""
_serial = itertools.count(1)


def soon(true: Callable[[], object]) -> None:
    """Wait until it is; fail when it is not within a time that is long for any machine."""
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.002)


def hub_context(folder: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    made.load_cert_chain(folder / "hub.pem", folder / "hub.key")
    return made


def context(bundle: Bundle) -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=bundle.authority)
    with NamedTemporaryFile("w") as file:
        file.write(bundle.certificate + bundle.key)
        file.flush()
        made.load_cert_chain(file.name)
    return made


class Plain:
    """A signer whose addresses are the keys."""

    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return key

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        return key


def bus_at(site: Enrolled, log: list[str] | None = None) -> MqttBus:
    """The hub's end, connected."""
    connection = Connection("hub", site.place.brokers[:1], hub_context(site.folder), pauses=QUICK)
    said = [] if log is None else log
    bus = MqttBus(connection, site.place.fleet, Plain(), time.time, said.append, lambda: None)
    connection.start()
    soon(lambda: connection.connected)
    return bus


def link_at(site: Enrolled, device: str, timer: Callable[[], float] = time.monotonic) -> MqttLink:
    """A device's end, connected."""
    link = MqttLink(connection_of(site, device), site.place.fleet, device, timer)
    link.start()
    soon(lambda: link.connected)
    return link


def connection_of(site: Enrolled, device: str) -> Connection:
    """A device's, not made yet."""
    bundle = site.bundles[device]
    return Connection(device, bundle.brokers[:1], context(bundle), pauses=QUICK)


def connected_link(bundle: Bundle) -> MqttLink:
    """The end of the device of that bundle."""
    connection = Connection(bundle.device, bundle.brokers, context(bundle), pauses=QUICK)
    link = MqttLink(connection, bundle.fleet, bundle.device, time.monotonic)
    link.start()
    soon(lambda: link.connected)
    return link


class Settled:
    """Devices' links as one, and the bus, that see what was on its way: a message that is sent now has
    come, and the broker keeps to the order of those before it."""

    def __init__(self, bus: MqttBus, links: dict[str, MqttLink]) -> None:
        self._bus, self._links = bus, links
        self.invite, self.acknowledge, self.withdraw = bus.invite, bus.acknowledge, bus.withdraw

    def tasks(self) -> Sequence[Task]:
        for device, link in self._links.items():
            id = str(next(_serial))
            self._bus.command(Command(id=id, device=device, what="cancel"))
            soon(lambda link=link, id=id: any(command.id == id for command in link.commands()))  # type: ignore[misc]
        return [task for link in self._links.values() for task in link.tasks()]

    def report(self, report: Report) -> None:
        self._links[report.device].report(report)

    def letters(self) -> Sequence[Letter]:
        for device, link in self._links.items():
            id = str(next(_serial))
            link.answer(Answer(id=id, device=device, state="done"))
            soon(lambda id=id: any(answer.id == id for answer in self._bus.answers()))  # type: ignore[misc]
        return self._bus.letters()
