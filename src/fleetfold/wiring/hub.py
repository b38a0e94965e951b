"""A hub on site: what it knows lies in HOME/hub/hub.db, synced with every write; runs lie beside it.

HOME/hub/         hub.json hub.db, keys and certificates
HOME/runs/{run}/  as on one machine; its `fleet.db` and `hub.json` are links to the hub's own
"""

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fleetfold.adapters.connection import Connection
from fleetfold.adapters.memory import NoAlarm
from fleetfold.adapters.mqtt_bus import MqttBus
from fleetfold.adapters.objects import FileObjects
from fleetfold.adapters.parted import Parted
from fleetfold.coordinator import Coordinator
from fleetfold.coordinator.coordinator import Ignored, Test
from fleetfold.coordinator.folding import AWAY, HERE
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.policy import policies
from fleetfold.ledger import Ledger
from fleetfold.ports import Control, Objects, Signer
from fleetfold.settings import Settings
from fleetfold.wiring import local
from fleetfold.wiring.faults import faulty
from fleetfold.wiring.local import FLEET, SITE, Place

UNDER_ONE_ROOF = (0.2, 2.0)
"""Seconds after which the hub tries its own broker again, at first and at most."""


folder, records = local.hub_folder, local.hub_records
"""Of the hub in a home: where it lies, and what it knows."""


def files(home: Path) -> FileObjects:
    return FileObjects(home, durable=True)


def objects(home: Path, url: str) -> tuple[Objects, Signer | None]:
    """Where the hub's runs keep their objects, and what signs addresses of a store at `url`; "": here, and
    the door's own signer does. Raises BadConfig or Unavailable."""
    if not url:
        return faulty("coordinator", Parted(files(home))), None
    from fleetfold.adapters.stores import open_store  # with what it brings: for whoever has a store

    store = open_store(url)
    return faulty("coordinator", Parted(store)), store


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
    connection = Connection("hub", (address,), trust, pauses=UNDER_ONE_ROOF)
    return connection, MqttBus(connection, fleet, signer, local.clock, log, woken)


def coordinator(
    place: Place, settings: Settings, objects: Objects, control: Control, clock: Callable[[], float],
    test: Test, ignored: Ignored, *, away: bool,
) -> Coordinator:  # fmt: skip
    """Of a run that this hub alone drives; `away`: its objects are in a store."""
    return Coordinator(
        place.run, ledger(place), objects, faulty("coordinator", control), NoAlarm(), policies(settings),
        clock, sole=True, test=test, site=AWAY if away else HERE, ignored=ignored,
    )  # fmt: skip


def messenger(
    place: Place, settings: Settings, objects: Objects, control: Control, clock: Callable[[], float],
    ignored: Ignored, *, away: bool,
) -> Messenger:  # fmt: skip
    """Of a run that an app's own process drives: this hub has its bus."""
    return Messenger(
        place.run, ledger(place), objects, faulty("coordinator", control), NoAlarm(), policies(settings),
        clock, merges=False, sole=True, site=AWAY if away else HERE, ignored=ignored,
    )  # fmt: skip
