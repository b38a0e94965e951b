"""Writes of one process that may wait for each other, so that one commit serves many.

    promised    written at once, and with it what was settled since       ┐ flush: what is settled,
    settled     waits for the next promise, or for flush                  ├ then what is reported
    reported    waits for flush                                           ┘

What is lost with the process is found again: the update that was delivered says that it was settled, and
what is settled is reported by `Agent.resume`.
"""

from collections.abc import Iterable, Sequence
from threading import Lock

from fleetfold.adapters.sqlite import SqliteLink
from fleetfold.messages import Report, Task
from fleetfold.ports import Record, Records


class GroupCommit:
    """The journals' records and the link of the devices of one process; from several threads."""

    def __init__(self, records: Records, link: SqliteLink) -> None:
        self._records, self._link, self._lock = records, link, Lock()
        self._settled: dict[str, bytes] = {}
        self._reports: list[Report] = []

    def get(self, key: str) -> Record | None:
        with self._lock:
            value = self._settled.get(key)
            return self._records.get(key) if value is None else Record(value, 0)

    def scan(self, prefix: str) -> Iterable[tuple[str, Record]]:
        self.put_many(())
        return self._records.scan(prefix)

    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None:
        """Write these, and what waits, now."""
        with self._lock:
            self._put(values)

    def put_soon(self, values: Sequence[tuple[str, bytes]]) -> None:
        """Write these with the next ones."""
        with self._lock:
            self._settled.update(values)

    def tasks(self) -> Sequence[Task]:
        return self._link.tasks()

    def report(self, report: Report) -> None:
        """Have it told with the next flush."""
        with self._lock:
            self._reports.append(report)

    def flush(self) -> bool:
        """Write all that waits. → whether something was reported."""
        with self._lock:
            self._put(())
            if not self._reports:
                return False
            self._link.report_all(self._reports)
            self._reports.clear()
            return True

    def _put(self, values: Sequence[tuple[str, bytes]]) -> None:
        together = [*self._settled.items(), *values]
        if together:
            self._records.put_many(together)
            self._settled.clear()
