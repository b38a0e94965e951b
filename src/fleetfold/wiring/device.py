"""What runs on a device: its journal in SQLite, its way to objects over signed addresses.

     HOME/
bundle.json  who it is   settings.json  on which terms   journal.db  records, of this process and its worker
cache/       models      spool/         updates          state.json  for `agent status`
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from fleetfold import bundle
from fleetfold.adapters.connection import Connection
from fleetfold.adapters.doors import context
from fleetfold.adapters.mqtt_link import MqttLink
from fleetfold.adapters.provisioning import Provisioning
from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.bundle import Bundle, Claim
from fleetfold.errors import Unavailable
from fleetfold.messages import Ask, Grant
from fleetfold.ports import Records, Transfer
from fleetfold.wiring.faults import faulty

if TYPE_CHECKING:
    from fleetfold.adapters.poll_link import PollLink
    from fleetfold.adapters.provisioning import Provisioning

LINK = "fleetfold.wiring.device:link"
GREENGRASS = "fleetfold.wiring.device:greengrass"
PLAIN = "FLEETFOLD_AGENT_PLAIN"
"""In the environment, `1`: addresses of this very machine may be in plain text, for doubles of stores."""
TRANSFER = "fleetfold.wiring.device:transfer"
"""module:name of what makes a device's way to its fleet, and to objects: its own process makes it there."""


IN_FLIGHT = 100
"""Messages of a device that may be on their way: AWS IoT Core takes no more."""


class Way(Transfer, Protocol):
    """A device's way to objects, also outside of any round."""

    def take(self, address: str, digest: str, size: int) -> bytes | memoryview:
        """The model of that digest."""

    def put(self, address: str, data: memoryview) -> None: ...


def link(own: Bundle) -> MqttLink:
    """The device's end of the bus."""
    connection = Connection(own.device, own.brokers, context(own), in_flight=IN_FLIGHT)
    return MqttLink(connection, own.fleet, own.device, time.monotonic)


def poll(own: Bundle, home: Path) -> "PollLink":
    """The end of a device that has no connection."""
    from fleetfold.adapters.poll_link import PollLink

    return PollLink(own, home / "poll.json", time.monotonic, plain=os.environ.get(PLAIN) == "1")


def provisioning(claim: Claim) -> "Provisioning":
    """The way to become a device by a claim."""
    from fleetfold.adapters.provisioning import Provisioning

    return Provisioning(claim)


def greengrass(own: Bundle) -> MqttLink:
    """The same through the nucleus that started us."""
    from fleetfold.adapters.greengrass_link import Ipc

    return MqttLink(Ipc(), own.fleet, own.device, time.monotonic)


def transfer(
    home: Path,
    ask: Callable[[Ask], Grant],
    wait: Callable[[int], None],
    spent: Callable[[int, int], None],
    progress: Callable[[str, int, int], None],
) -> Way:
    """The device's way to objects, over signed addresses."""
    from fleetfold.adapters.https import SignedTransfer  # for the worker alone: it needs numpy

    own = bundle.load(home / "bundle.json")
    hosts = [host] if (host := urlsplit(own.door).hostname) else []
    plain = os.environ.get(PLAIN) == "1"
    return SignedTransfer(home, own, ask, wait, hosts=hosts, plain=plain, spent=spent, progress=progress)


def link_by(reference: str, bundle: Bundle, home: Path) -> Any:
    polls = bundle.poll[0] and reference == LINK
    return faulty("agent", poll(bundle, home) if polls else _named(reference)(bundle))


def transfer_by(reference: str, *doors: Any) -> Way:
    made: Way = faulty("worker", _named(reference)(*doors))
    return made


def _named(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def records(home: Path, process: str) -> Records:
    """The device's own, of which every write survives a power cut."""
    return faulty(process, SqliteRecords(home / "journal.db", durable=True))


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Wait until no other process works for this device: that of a supervisor that died is about to end."""
    with (home / "worker.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_file(place: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file whole or not at all. Raises Unavailable."""
    staged = place.with_name(f".{place.name}")  # one process at a time writes in a device's home
    try:
        with staged.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(staged, place)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise Unavailable(f"cannot write {place}: {error.strerror}") from error
