"""Records and the bus in SQLite files: one machine, many processes, nothing running in between.

Every write is one transaction in write-ahead mode. `durable` as for objects: False survives the death
of any process, True a power cut (each commit is synced).
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from fleetfold.errors import Unavailable
from fleetfold.messages import Report, Task, encode
from fleetfold.ports import Letter, Record

_T = TypeVar("_T")
BUSY = 30.0
"""Seconds that a writer waits for another one before it says so."""
PAUSE = (5e-5, 5e-3)
"""Seconds between its tries, first and at most. A write takes 50 µs, and SQLite itself would wait 1 ms."""


class Database:
    """One SQLite file: opened, its tables made, its errors translated, its writes one transaction each."""

    def __init__(self, path: Path, tables: str, *, durable: bool) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._translated(error) from error

        def prepare(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            connection.executescript(tables)

        self._patiently(prepare)

    def read(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        return self._patiently(lambda connection: connection.execute(query, values).fetchall())

    def write(self, change: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `change` as one transaction: all of it, or none."""

        def transaction(connection: sqlite3.Connection) -> _T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = change(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        return self._patiently(transaction)

    def close(self) -> None:
        self._connection.close()

    def _patiently(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        give_up, pause = 0.0, PAUSE[0]
        while True:
            try:
                return work(self._connection)
            except sqlite3.Error as error:
                give_up = give_up or time.monotonic() + BUSY
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise self._translated(error) from error
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, PAUSE[1])

    def _translated(self, error: Exception) -> Unavailable:
        if "full" in str(error):
            return Unavailable(
                f"no space left on the disk while writing {self._path}; nothing was lost",
                next="make room, then fleetfold run --resume latest",
            )
        return Unavailable(f"cannot read or write {self._path}: {error}")


class SqliteRecords:
    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self._database = Database(
            path,
            "CREATE TABLE IF NOT EXISTS records"
            " (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID",
            durable=durable,
        )

    def get(self, key: str) -> Record | None:
        rows = self._database.read("SELECT value, version FROM records WHERE key = ?", (key,))
        return Record(*rows[0]) if rows else None  # type: ignore[arg-type]

    def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
        query = "SELECT key, value, version FROM records WHERE key IN (SELECT value FROM json_each(?))"
        rows = self._database.read(query, (msgspec.json.encode(keys).decode(),))
        return {key: Record(value, version) for key, value, version in rows}  # type: ignore[misc,arg-type]

    def swap(self, key: str, value: bytes, expect: int) -> bool:
        def change(connection: sqlite3.Connection) -> bool:
            if expect == 0:
                statement = "INSERT INTO records VALUES (?, ?, 1) ON CONFLICT DO NOTHING"
                return connection.execute(statement, (key, value)).rowcount == 1
            statement = "UPDATE records SET value = ?, version = version + 1 WHERE key = ? AND version = ?"
            return connection.execute(statement, (value, key, expect)).rowcount == 1

        return self._database.write(change)

    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None:
        statement = (
            "INSERT INTO records VALUES (?, ?, 1)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = version + 1"
        )
        self._database.write(lambda connection: connection.executemany(statement, values))

    def scan(self, prefix: str) -> Iterator[tuple[str, Record]]:
        query = (
            "SELECT key, value, version FROM records"
            " WHERE key >= ? AND key < ? AND instr(substr(key, ?), '/') = 0 ORDER BY key"
        )
        rows = self._database.read(query, (prefix, prefix[:-1] + chr(ord("/") + 1), len(prefix) + 1))
        return ((key, Record(value, version)) for key, value, version in rows)  # type: ignore[misc,arg-type]


_BUS = """
CREATE TABLE IF NOT EXISTS tasks (device TEXT PRIMARY KEY, task BLOB NOT NULL, serial INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS newest ON tasks (serial);
CREATE TABLE IF NOT EXISTS reports (receipt INTEGER PRIMARY KEY AUTOINCREMENT, report BLOB NOT NULL);
"""
_TASK = msgspec.json.Decoder(Task)
_REPORT = msgspec.json.Decoder(Report)


class SqliteBus:
    """The coordinator's end."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self._database = Database(path, _BUS, durable=durable)

    def invite(self, tasks: Sequence[Task]) -> None:
        rows = [(task.device, encode(task)) for task in tasks]
        statement = (
            "INSERT OR REPLACE INTO tasks VALUES (?, ?, (SELECT COALESCE(MAX(serial), 0) + 1 FROM tasks))"
        )
        self._database.write(lambda connection: connection.executemany(statement, rows))

    def letters(self) -> list[Letter]:
        rows = self._database.read("SELECT receipt, report FROM reports ORDER BY receipt")
        return [Letter(str(receipt), _REPORT.decode(report)) for receipt, report in rows]  # type: ignore[arg-type]

    def acknowledge(self, receipts: Sequence[str]) -> None:
        rows = [(int(receipt),) for receipt in receipts]
        statement = "DELETE FROM reports WHERE receipt = ?"
        if rows:
            self._database.write(lambda connection: connection.executemany(statement, rows))

    def withdraw(self, devices: Sequence[str]) -> None:
        rows = [(device,) for device in devices]
        statement = "UPDATE tasks SET task = x'' WHERE device = ?"  # the serial stays: they only go up
        if rows:
            self._database.write(lambda connection: connection.executemany(statement, rows))


class SqliteLink:
    """The end of some of the devices. What was handed over is known to this object alone."""

    def __init__(self, path: Path, devices: Sequence[str], *, durable: bool = False) -> None:
        self._database = Database(path, _BUS, durable=durable)
        self._devices = frozenset(devices)
        self._seen = 0

    def tasks(self) -> list[Task]:
        query = "SELECT device, task, serial FROM tasks WHERE serial > ? ORDER BY serial"
        fresh = []
        for device, task, serial in self._database.read(query, (self._seen,)):
            self._seen = int(serial)  # type: ignore[call-overload]
            if device in self._devices and task:
                fresh.append(_TASK.decode(task))  # type: ignore[arg-type]
        return fresh

    def report(self, report: Report) -> None:
        self.report_all([report])

    def report_all(self, reports: Sequence[Report]) -> None:
        rows = [(encode(report),) for report in reports]
        self._database.write(lambda c: c.executemany("INSERT INTO reports (report) VALUES (?)", rows))
