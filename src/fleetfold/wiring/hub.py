"""A hub on site: what it knows lies in HOME/hub/hub.db, synced with every write."""

from pathlib import Path

from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.ports import Records


def folder(home: Path) -> Path:
    return home / "hub"


def records(home: Path) -> Records:
    return SqliteRecords(folder(home) / "hub.db", durable=True)
