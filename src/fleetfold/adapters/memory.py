"""The ports in one process's memory: for simulation and for tests. Nothing survives the process."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

from fleetfold.errors import Unavailable
from fleetfold.messages import Report, Task
from fleetfold.ports import Letter, Record


class MemoryObjects:
    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        whole = b"".join(data)
        self._data[key] = whole
        return len(whole)

    def open(self, key: str) -> "_Held":
        return _Held(self._data[key])

    def size(self, key: str) -> int | None:
        data = self._data.get(key)
        return None if data is None else len(data)

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self._data if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self._data.pop(key, None)


class _Held:
    file: int | None = None

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, offset: int, into: memoryview) -> int:
        part = self._data[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)

    def close(self) -> None:
        pass


class MemoryUploads:
    """Uploads to `objects`. `least`: bytes of each part but the last."""

    def __init__(self, objects: MemoryObjects, *, least: int = 5 << 20) -> None:
        self._objects, self._least, self._serial = objects, least, 0
        self.waiting: dict[tuple[str, str], dict[int, bytes]] = {}

    def begin(self, key: str) -> str:
        self._serial += 1
        self.waiting[key, str(self._serial)] = {}
        return str(self._serial)

    def put(self, key: str, upload: str, number: int, data: bytes | bytearray) -> None:
        self.waiting[key, upload][number] = bytes(data)

    def finish(self, key: str, upload: str, size: int) -> bool:
        found = self.waiting.get((key, upload))
        if found is None:
            if self._objects.size(key) != size:
                raise KeyError(key)
            return True
        parts = [part for _, part in sorted(found.items())]
        if sum(map(len, parts)) != size or not parts:
            return False
        if any(len(part) < self._least for part in parts[:-1]):
            raise Unavailable(f"{key} cannot be put together: a part is smaller than {self._least} bytes")
        self._objects.put(key, parts)
        self.waiting.pop((key, upload), None)
        return True

    def abandon(self, key: str, upload: str) -> None:
        self.waiting.pop((key, upload), None)


class MemoryRecords:
    def __init__(self) -> None:
        self._data: dict[str, Record] = {}
        self._keys: list[str] = []  # in order: a scan looks only at what it returns

    def get(self, key: str) -> Record | None:
        return self._data.get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
        return {key: self._data[key] for key in keys if key in self._data}

    def swap(self, key: str, value: bytes, expect: int) -> bool:
        current = self._data.get(key)
        if (current.version if current else 0) != expect:
            return False
        self._put(key, Record(value, expect + 1))
        return True

    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None:
        for key, value in values:
            current = self._data.get(key)
            self._put(key, Record(value, (current.version if current else 0) + 1))

    def scan(self, prefix: str) -> Iterator[tuple[str, Record]]:
        after = prefix[:-1] + chr(ord("/") + 1)
        found = self._keys[bisect_left(self._keys, prefix) : bisect_left(self._keys, after)]
        return iter([(key, self._data[key]) for key in found if "/" not in key[len(prefix) :]])

    def _put(self, key: str, record: Record) -> None:
        if key not in self._data:
            insort(self._keys, key)
        self._data[key] = record


class MemoryBus:
    """Both ends of the bus. `link` gives the devices' end for some of the devices."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[int, Task]] = {}
        self._letters: dict[str, Report] = {}
        self._serial = 0

    def invite(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self._serial += 1
            self._tasks[task.device] = (self._serial, task)

    def letters(self) -> list[Letter]:
        return [Letter(receipt, report) for receipt, report in self._letters.items()]

    def acknowledge(self, receipts: Sequence[str]) -> None:
        for receipt in receipts:
            self._letters.pop(receipt, None)

    def withdraw(self, devices: Sequence[str]) -> None:
        for device in devices:
            self._tasks.pop(device, None)

    def link(self, devices: Sequence[str]) -> "MemoryLink":
        return MemoryLink(self, devices)

    def post(self, report: Report) -> None:
        self._serial += 1
        self._letters[str(self._serial)] = report

    def newest(self, device: str) -> tuple[int, Task] | None:
        return self._tasks.get(device)


class MemoryLink:
    def __init__(self, bus: MemoryBus, devices: Sequence[str]) -> None:
        self._bus, self._devices = bus, devices
        self._seen: dict[str, int] = {}

    def tasks(self) -> list[Task]:
        fresh = []
        for device in self._devices:
            newest = self._bus.newest(device)
            if newest and newest[0] > self._seen.get(device, 0):
                self._seen[device] = newest[0]
                fresh.append(newest[1])
        return fresh

    def report(self, report: Report) -> None:
        self._bus.post(report)


class NoAlarm:
    """For a coordinator whose own loop looks at the clock."""

    def wake_at(self, run: str, time: float) -> None:
        pass
