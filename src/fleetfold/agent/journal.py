"""What a device promised and what it has done: one small record per run and kind of work.

    promised ──▶ delivered (the update is safe, the report can be told again)

Rounds of a run only go up, so the newest entry says all. A task that killed the process again and
again is given up after ATTEMPTS.
"""

import msgspec
from msgspec import Struct

from fleetfold.messages import Report, Task, encode
from fleetfold.ports import Records

ATTEMPTS = 3
"""Times that a task may be begun without being finished."""


class Entry(Struct, frozen=True, kw_only=True):
    task: Task
    attempts: int = 0
    report: Report | None = None  # the answer, once it is settled


_ENTRY = msgspec.json.Decoder(Entry)


class Journal:
    """The journal of one device, in records of its own."""

    def __init__(self, records: Records, device: str) -> None:
        self._records, self._prefix = records, f"journal/{device}/"

    def entry(self, task: Task) -> Entry | None:
        """The newest entry for the task's run and kind of work."""
        record = self._records.get(self._key(task))
        return None if record is None else _ENTRY.decode(record.value)

    def promise(self, task: Task, attempts: int) -> None:
        self._put(Entry(task=task, attempts=attempts))

    def settle(self, task: Task, report: Report) -> None:
        self._put(Entry(task=task, report=report))

    def open(self) -> list[Entry]:
        """Every newest entry: what is to be finished, or told again, after a restart."""
        return [_ENTRY.decode(record.value) for _, record in self._records.scan(self._prefix)]

    def _put(self, entry: Entry) -> None:
        self._records.put_many([(self._key(entry.task), encode(entry))])

    def _key(self, task: Task) -> str:
        return f"{self._prefix}{task.run}/{task.kind}"
