"""A hub's folder with an authority and some devices, and its broker, once for each module that asks.

site    .folder HOME/hub · .records · .place (a Site, on free ports of this machine) · .bundles by device:
        a, b and c belong; nothing runs
broker  the site's Mosquitto, running
"""

import random
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.bundle import Bundle
from fleetfold.hub import authority
from fleetfold.hub.broker import Broker, tell
from fleetfold.hub.enrol import enroll, revoke
from fleetfold.ports import Records

DEVICES = ("a", "b", "c")


class Enrolled:
    """A hub's folder, and what its commands do to it: record, then tell the broker if one runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = authority.Site(
            hosts=("localhost", "127.0.0.1"), listen="127.0.0.1", mqtt=free_port(), websockets=free_port(),
            door=free_port(),
        )  # fmt: skip
        authority.create(folder, self.place)
        self.records: Records = SqliteRecords(folder / "hub.db")
        self.bundles = {device: self.enroll(device) for device in DEVICES}

    def enroll(self, device: str, csr: str = "") -> Bundle:
        bundle = enroll(self.records, self.folder, device, now=1_000.0, csr=csr)
        tell(self.folder, self.records, device)
        return bundle

    def revoke(self, device: str) -> None:
        revoke(self.records, device, now=2_000.0)
        tell(self.folder, self.records, device)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    return Enrolled(tmp_path_factory.mktemp("home") / "hub")


@pytest.fixture(scope="module")
def broker(site: Enrolled) -> Iterator[Broker]:
    assert shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin"), (
        "these tests need the real broker: apt install mosquitto"
    )
    running = Broker(site.folder, site.records)
    running.start()
    yield running
    running.stop()


def free_port() -> int:
    """Below those that the system gives to whoever connects: a server that starts again needs it again."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
