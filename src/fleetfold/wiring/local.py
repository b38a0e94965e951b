"""A run on one machine: it lives in one folder.

     HOME/runs/{run}/
ledger.db   records     models/ rounds/   objects     bus.db   tasks and reports
devices.db  the devices' journals          lock        who holds the run
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.adapters.counted import Counted, Wrote, unwatched
from fleetfold.adapters.group_commit import GroupCommit
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords, NoAlarm
from fleetfold.adapters.objects import FileObjects
from fleetfold.adapters.parted import Parted
from fleetfold.adapters.routed import Routed
from fleetfold.adapters.sqlite import SqliteBus, SqliteLink, SqliteRecords
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.app import App
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent, Models
from fleetfold.agent.trainer import Device, Trainer
from fleetfold.coordinator import Coordinator
from fleetfold.coordinator.coordinator import Test
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.policy import policies
from fleetfold.coordinator.registry import by_devices_clock, by_own_clock
from fleetfold.errors import BadConfig
from fleetfold.ledger import Ledger
from fleetfold.ports import Control, Link, Objects, Records, Transfer
from fleetfold.settings import Settings
from fleetfold.wiring.faults import faulty

FLEET, SITE = "fleet.db", "hub.json"
"""Links in the folder of a run of the hub's: to the hub's records, and to what it is."""
CLOUD = "aws.json"
"""The link in the folder of a run on AWS: to what this machine knows of its stack."""


class Place(Struct, frozen=True):
    """A run on one machine: the home of all runs, and this one's name."""

    home: Path
    run: str

    @property
    def folder(self) -> Path:
        return self.home / layout.run(self.run)


class Fleet(Struct, frozen=True):
    """The devices of one process: their agents by name, and what they share. What they report is told when
    `link` is flushed."""

    agents: dict[str, Agent]
    link: GroupCommit


clock = time.time
"""Seconds since the epoch."""


def home() -> Path:
    """FLEETFOLD_HOME, or .fleetfold in the current folder."""
    return Path(os.environ.get("FLEETFOLD_HOME") or ".fleetfold").absolute()


def hub_folder(home: Path) -> Path:
    return home / "hub"


def hub_records(home: Path) -> Records:
    return SqliteRecords(hub_folder(home) / "hub.db", durable=True)


Where = Literal["here", "hub", "cloud"]
"""Who drives a run: a process on this machine that is watched, the hub on this machine, functions on AWS."""


def where(place: Place) -> Where:
    links: tuple[tuple[Where, str], ...] = (("cloud", CLOUD), ("hub", FLEET))
    return next((kind for kind, link in links if (place.folder / link).is_symlink()), "here")


def is_hubs(place: Place) -> bool:
    """Whether it is a run of the hub's."""
    return where(place) == "hub"


def ledger(place: Place, *, durable: bool = False) -> Ledger:
    """Of a run, wherever it is: of the hub's runs the fleet is the hub's, of those on AWS the stack's."""
    return Ledger(records(place, durable=durable), alone=where(place) != "cloud")


def records(place: Place, *, durable: bool = False) -> Records:
    """Of a run, wherever it is, as they lie."""
    return faulty("coordinator", _RECORDS[where(place)](place, durable))


def objects(place: Place, *, durable: bool = False) -> Objects:
    """Of a run, wherever it is: the hub's may be in a store, those of a run on AWS are."""
    return _OBJECTS[where(place)](place, durable)


def ledger_of_stack(path: Path) -> Ledger:
    """Of a stack on AWS, by what this machine knows of it."""
    from fleetfold.wiring import aws

    names = _cloud(path)
    return Ledger(aws.records(names.table, names.region), alone=False)


def address(place: Place) -> str:
    """Where a person finds the run's objects; "" for its own folder."""
    return (
        f"s3://{_cloud(place.folder / CLOUD).bucket}/{layout.run(place.run)}"
        if where(place) == "cloud"
        else ""
    )


def _records_here(place: Place, durable: bool) -> Records:
    return SqliteRecords(place.folder / "ledger.db", durable=durable)


def _records_of_hub(place: Place, durable: bool) -> Records:
    return Routed(_records_here(place, durable), SqliteRecords(place.folder / FLEET, durable=durable))


def _records_of_cloud(place: Place, durable: bool) -> Records:
    from fleetfold.wiring import aws

    names = _cloud(place.folder / CLOUD)
    return aws.records(names.table, names.region)


def _objects_here(place: Place, durable: bool) -> Objects:
    return faulty("coordinator", FileObjects(place.home, durable=durable))


def _objects_of_hub(place: Place, durable: bool) -> Objects:
    if url := _Store.of(place).objects:
        from fleetfold.adapters.stores import open_store

        return Parted(open_store(url))
    return faulty("coordinator", Parted(FileObjects(place.home, durable=durable)))


def _objects_of_cloud(place: Place, durable: bool) -> Objects:
    from fleetfold.wiring import aws

    names = _cloud(place.folder / CLOUD)
    return aws.objects(names.bucket, names.region).objects


_RECORDS: dict[Where, Callable[[Place, bool], Records]] = {
    "here": _records_here, "hub": _records_of_hub, "cloud": _records_of_cloud,
}  # fmt: skip
_OBJECTS: dict[Where, Callable[[Place, bool], Objects]] = {
    "here": _objects_here, "hub": _objects_of_hub, "cloud": _objects_of_cloud,
}  # fmt: skip


class _Cloud(Struct):
    """What is to be known here of a stack, to read its runs."""

    bucket: str
    table: str
    region: str


def _cloud(path: Path) -> _Cloud:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Cloud)
    except (OSError, msgspec.MsgspecError):
        why = f"{path}: that stack on AWS is not known here any more"
        raise BadConfig(why, next="fleetfold aws deploy") from None


class _Store(Struct):
    """What is to be known here of a hub: where its runs keep their objects; "": as others do."""

    objects: str = ""

    @classmethod
    def of(cls, place: Place) -> "_Store":
        path = place.folder / SITE
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else cls()


def control(place: Place, *, durable: bool = False) -> Control:
    return faulty("coordinator", SqliteBus(place.folder / "bus.db", durable=durable))


def coordinator(
    place: Place, settings: Settings, control: Control, clock: Callable[[], float], test: Test | None,
    wrote: Wrote = unwatched,
) -> Coordinator:  # fmt: skip
    """The coordinator of a run on this machine, which must hold the run's lock. `wrote` hears how far models
    are."""
    durable = is_durable(settings)
    kept = Counted(objects(place, durable=durable), wrote)
    return Coordinator(
        place.run, ledger(place, durable=durable), kept, control, NoAlarm(),
        policies(settings), clock, sole=True, test=test, stopwatch=by_devices_clock,
    )  # fmt: skip


def messenger(
    place: Place, settings: Settings, control: Control | None, clock: Callable[[], float], *,
    merges: bool = True,
) -> Messenger:  # fmt: skip
    """The exchanges of a run on this machine, by the process of its app; `control` None: another one has the
    bus. That which has it holds the run's lock. `merges` False: the process that has the app is another."""
    durable = is_durable(settings)
    return Messenger(
        place.run, ledger(place, durable=durable), objects(place, durable=durable), control, NoAlarm(),
        policies(settings), clock, sole=True, merges=merges,
        stopwatch=by_devices_clock if where(place) == "here" else by_own_clock,
    )  # fmt: skip


def fleet(
    place: Place, settings: Settings, app: App, trainer: Trainer, devices: Sequence[Device],
    timer: Callable[[], float], process: str, life: str,
) -> Fleet:  # fmt: skip
    """Agents of simulated devices, in this process; `life` names the run that supervises it."""
    durable = is_durable(settings)
    journals = faulty(process, SqliteRecords(place.folder / "devices.db", durable=durable))
    transfer = faulty(process, ObjectTransfer(FileObjects(place.home, durable=durable)))
    names = [device.name for device in devices]
    link = faulty(process, SqliteLink(place.folder / "bus.db", names, durable=durable))
    together, models = GroupCommit(journals, link), Models()
    agents = {
        device.name: Agent(
            device,
            trainer,
            Journal(together, device.name, life, together.put_soon),
            transfer,
            together,
            timer,
            app=app,
            models=models,
        )
        for device in devices
    }
    return Fleet(agents, together)


class InMemory:
    """A coordinator and its devices in the memory of one process, for simulation."""

    def __init__(self) -> None:
        self.objects, self.records, self.bus = MemoryObjects(), MemoryRecords(), MemoryBus()
        self.journals, self.models = MemoryRecords(), Models()
        self.ledger = Ledger(self.records)

    def coordinator(
        self, run: str, settings: Settings, clock: Callable[[], float], test: Test | None
    ) -> Coordinator:
        return Coordinator(
            run, self.ledger, self.objects, self.bus, NoAlarm(), policies(settings), clock,
            sole=True, test=test,
        )  # fmt: skip

    def messenger(
        self, run: str, settings: Settings, clock: Callable[[], float], *, control: bool = True,
        merges: bool = True,
    ) -> Messenger:  # fmt: skip
        return Messenger(
            run, self.ledger, self.objects, self.bus if control else None, NoAlarm(), policies(settings),
            clock, sole=True, merges=merges,
        )  # fmt: skip

    def transfer(self) -> Transfer:
        return ObjectTransfer(self.objects)

    def link(self, devices: Sequence[str]) -> Link:
        return self.bus.link(devices)

    def agent(
        self, device: Device, trainer: Trainer, transfer: Transfer, link: Link, timer: Callable[[], float]
    ) -> Agent:
        """An agent behind doors that may be wrapped."""
        return Agent(
            device,
            trainer,
            Journal(self.journals, device.name, "sim"),
            transfer,
            link,
            timer,
            models=self.models,
        )


def is_durable(settings: Settings) -> bool:
    return settings.durability == "power"
