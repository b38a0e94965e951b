"""What a device promised and what it has done: one small record per run and kind of work.

    promised ──▶ delivered (the update is safe, the report can be told again)

Rounds of a run only go up, so the newest entry says all. A task that killed its process again and
again is given up after ATTEMPTS; what killed the whole machine, or everything at once, does not count.
"""

import msgspec
from msgspec import Struct

from fleetfold.messages import Report, Task, encode
from fleetfold.ports import Records

ATTEMPTS = 3
"""Times that a task may be begun without being finished, in one life."""


class Entry(Struct, frozen=True, kw_only=True):
    task: Task
    attempts: int = 0
    life: str = ""  # in which it was begun so often
    report: Report | None = None  # the answer, once it is settled


_ENTRY = msgspec.json.Decoder(Entry)


class Journal:
    """The journal of one device, in records of its own. `life` names what outlives the process and
    starts it again: the machine since its boot, or the run that supervises its workers."""

    def __init__(self, records: Records, device: str, life: str) -> None:
        self._records, self._prefix, self._life = records, f"journal/{device}/", life

    def entry(self, task: Task) -> Entry | None:
        """The newest entry for the task's run and kind of work."""
        record = self._records.get(self._key(task))
        return None if record is None else _ENTRY.decode(record.value)

    def attempts(self, task: Task) -> int:
        """How often this very task was begun in this life and not finished."""
        entry = self.entry(task)
        same = entry is not None and (entry.task.round, entry.life) == (task.round, self._life)
        return entry.attempts if entry is not None and same else 0

    def promise(self, task: Task) -> None:
        self._put(Entry(task=task, attempts=self.attempts(task) + 1, life=self._life))

    def settle(self, task: Task, report: Report) -> None:
        self._put(Entry(task=task, report=report))

    def open(self) -> list[Entry]:
        """Every newest entry: what is to be finished, or told again, after a restart."""
        return [_ENTRY.decode(record.value) for _, record in self._records.scan(self._prefix)]

    def _put(self, entry: Entry) -> None:
        self._records.put_many([(self._key(entry.task), encode(entry))])

    def _key(self, task: Task) -> str:
        return f"{self._prefix}{task.run}/{task.kind}"
