"""What a device promised and what it has done: one small record per run and kind of work.

    promised ──▶ delivered (the update is safe, the report can be told again)
    kept         what a task leaves for the next one: two slots, one in force, one of the task at hand

Rounds of a run only go up, so the newest entry says all. A task that killed its process again and
again is given up after ATTEMPTS; what killed the whole machine, or everything at once, does not count.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from fleetfold.messages import Report, Task, encode
from fleetfold.ports import Record

ATTEMPTS = 3
"""Times that a task may be begun without being finished, in one life."""


class Entry(Struct, frozen=True, kw_only=True):
    task: Task
    attempts: int = 0
    life: str = ""  # in which it was begun so often
    report: Report | None = None  # the answer, once it is settled
    kept: int = -1  # the slot in force: left by the newest update that was delivered
    filling: bool = False  # the task at hand has left something in the other slot


PIECE = 8 << 20
"""Bytes of one record of what is kept."""
_ENTRY = msgspec.json.Decoder(Entry)


Write = Callable[[Sequence[tuple[str, bytes]]], None]


class Pages(Protocol):
    """What a journal needs of Records."""

    def get(self, key: str) -> Record | None: ...
    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None: ...
    def scan(self, prefix: str) -> Iterable[tuple[str, Record]]: ...


class Journal:
    """The journal of one device, in records of its own. `life` names what outlives the process and starts it
    again: the machine since its boot, or the run that supervises its workers. `soon`, for who has that
    journal alone, writes what may still be lost with the process: that a task is settled (None: at once)."""

    def __init__(self, records: Pages, device: str, life: str, soon: Write | None = None) -> None:
        self._device, self._life = device, life
        self._records, self._soon, self._prefix = records, soon or records.put_many, f"journal/{device}/"
        self._alone = soon is not None
        self._newest: tuple[str, Entry | None] | None = None  # of the task at hand, by key

    def entry(self, task: Task) -> Entry | None:
        """The newest entry for the task's run and kind of work."""
        key = self._key(task)
        if self._newest is None or self._newest[0] != key or not self._alone:
            record = self._records.get(key)
            self._newest = key, None if record is None else _ENTRY.decode(record.value)
        return self._newest[1]

    def attempts(self, task: Task) -> int:
        """How often this very task was begun in this life and not finished."""
        return self._attempts(self.entry(task), task)

    def _attempts(self, entry: Entry | None, task: Task) -> int:
        same = entry is not None and (entry.task.round, entry.life) == (task.round, self._life)
        return entry.attempts if entry is not None and same else 0

    def left_behind(self, task: Task) -> bool:
        """Whether this device has gone on to a later round since."""
        entry = self.entry(task)
        return entry is not None and entry.task.round > task.round

    def answer(self, task: Task) -> Report | None:
        """What was answered to this very task, if it is settled."""
        entry = self.entry(task)
        return entry.report if entry is not None and entry.task.round == task.round else None

    def excuse(self, task: Task, attempts: int) -> None:
        """Only so many attempts count: what came since was not the task's fault."""
        entry = self.entry(task)
        if entry is not None and entry.report is None and self.attempts(task) > attempts:
            self._put(msgspec.structs.replace(entry, attempts=attempts))

    def promise(self, task: Task) -> None:
        entry = self.entry(task)
        attempts = self._attempts(entry, task) + 1
        self._put(Entry(task=task, attempts=attempts, life=self._life, kept=_slot(entry)))

    def settle(self, task: Task, report: Report) -> None:
        entry = self.entry(task)
        slot = _slot(entry)
        left = entry is not None and entry.filling and entry.task.round == task.round
        if left and report.state == "delivered":
            slot = _other(slot)
        self._put(Entry(task=task, report=report, kept=slot), self._soon)
        self._newest = None  # its task is as large as a message: a process may have thousands of devices

    def kept(self, task: Task) -> bytes | None:
        """What the newest update that was delivered left for this run's next; None: nothing yet."""
        slot, pieces = _slot(self.entry(task)), list[bytes]()
        while slot >= 0 and (record := self._records.get(self._piece(task, slot, len(pieces)))):
            pieces.append(record.value)
            if len(record.value) < PIECE:
                break
        return b"".join(pieces) if pieces else None

    def keep(self, task: Task, data: bytes) -> None:
        """Leave that for the next one; what is in force stays so until the task is settled as delivered. The
        task was promised."""
        slot = _other(_slot(self.entry(task)))
        for k in range(0, len(data) + 1, PIECE):  # the last one is shorter than a piece, and ends it
            self._records.put_many([(self._piece(task, slot, k // PIECE), data[k : k + PIECE])])
        entry = self.entry(task)
        if entry is not None and not entry.filling:
            self._put(msgspec.structs.replace(entry, filling=True))

    def _piece(self, task: Task, slot: int, number: int) -> str:
        return f"kept/{self._device}/{task.run}/{slot}/{number:06}"

    def open(self) -> list[Entry]:
        """Every newest entry: what is to be finished, or told again, after a restart."""
        return [_ENTRY.decode(record.value) for _, record in self._records.scan(self._prefix)]

    def _put(self, entry: Entry, write: Write | None = None) -> None:
        key, self._newest = self._key(entry.task), None  # where the write fails, nobody knows what is there
        (write or self._records.put_many)([(key, encode(entry))])
        self._newest = key, entry

    def _key(self, task: Task) -> str:
        return f"{self._prefix}{task.run}:{task.kind}"


def _slot(entry: Entry | None) -> int:
    """That in force; -1: none yet."""
    return -1 if entry is None else entry.kept


def _other(slot: int) -> int:
    """The slot that is not in force; of none, the first."""
    return 0 if slot != 0 else 1
