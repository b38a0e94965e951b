"""A hub on site: what it knows lies in HOME/hub/hub.db, synced with every write; runs lie beside it.

HOME/hub/         hub.json hub.db, keys and certificates
HOME/runs/{run}/  as on one machine; its `fleet.db` and `hub.json` are links to the hub's own
"""

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from fleetfold.adapters.connection import Connection
from fleetfold.adapters.memory import NoAlarm
from fleetfold.adapters.mqtt_bus import LIFETIME, MqttBus
from fleetfold.adapters.objects import FileObjects
from fleetfold.adapters.parted import Parted
from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.coordinator import Coordinator
from fleetfold.coordinator.coordinator import Test
from fleetfold.coordinator.policy import policies
from fleetfold.ledger import Ledger
from fleetfold.messages import Command
from fleetfold.ports import Control, Objects, Records, Signer
from fleetfold.settings import Settings
from fleetfold.wiring import local
from fleetfold.wiring.faults import faulty
from fleetfold.wiring.local import FLEET, SITE, Place


def folder(home: Path) -> Path:
    return home / "hub"


def records(home: Path) -> Records:
    return SqliteRecords(folder(home) / "hub.db", durable=True)


def files(home: Path) -> FileObjects:
    return FileObjects(home, durable=True)


def objects(home: Path) -> Objects:
    """Where the hub's runs keep their objects."""
    return faulty("coordinator", Parted(files(home)))


def attach(place: Place) -> None:
    """Make a run's folder one of the hub's: its fleet is the hub's."""
    for name, target in ((FLEET, "hub.db"), (SITE, "hub.json")):
        with suppress(FileExistsError):
            (place.folder / name).symlink_to(os.path.relpath(folder(place.home) / target, place.folder))


def is_run(place: Place) -> bool:
    """Whether there is such a run of the hub's."""
    return (place.folder / "ledger.db").exists() and local.is_hubs(place)


def ledger(place: Place) -> Ledger:
    return local.ledger(place, durable=True)


def bus(
    folder: Path, address: str, fleet: str, signer: Signer, log: Callable[[str], None],
    woken: Callable[[], None],
) -> tuple[Connection, MqttBus]:  # fmt: skip
    """The hub's own connection to its broker, not started yet, and the bus over it."""
    trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    trust.check_hostname = False  # only the hub has a server's certificate of this authority
    trust.load_cert_chain(folder / "hub.pem", folder / "hub.key")
    connection = Connection("hub", (address,), trust, first=0.2)
    return connection, MqttBus(connection, fleet, signer, local.clock, log, woken)


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS for those who have a certificate of this fleet's authority, and for nobody else."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "server.pem", folder / "server.key")
    return made


def signed(command: Command, signer: Signer) -> Command:
    """The command with addresses instead of keys."""
    model, upload = command.model, command.upload
    return replace(
        command,
        model=signer.to_fetch(model, command.device, LIFETIME) if model else "",
        upload=signer.to_deliver(upload, command.device, LIFETIME, command.size) if upload else "",
    )


def coordinator(
    place: Place, settings: Settings, objects: Objects, control: Control, clock: Callable[[], float],
    test: Test,
) -> Coordinator:  # fmt: skip
    """Of a run that this hub alone drives."""
    return Coordinator(
        place.run, ledger(place), objects, faulty("coordinator", control), NoAlarm(), policies(settings),
        clock, sole=True, test=test,
    )  # fmt: skip
