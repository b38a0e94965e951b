from collections.abc import Callable, Iterable, Sequence

import pytest

from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords
from fleetfold.adapters.routed import Routed
from fleetfold.ports import Control, Link, Objects, Record, Records
from tests.contract.bus import BusContract
from tests.contract.objects import HeldObjectsContract
from tests.contract.records import RecordsContract


class TestMemoryObjects(HeldObjectsContract):
    @pytest.fixture
    def objects(self) -> Objects:
        return MemoryObjects()


class TestObjectsBehindFaultsThatNeverStrike(HeldObjectsContract):
    @pytest.fixture
    def objects(self) -> Objects:
        return Faults(None, simulated_death).wrap(MemoryObjects())


class TestMemoryRecords(RecordsContract):
    @pytest.fixture
    def records(self) -> Records:
        return MemoryRecords()

    @pytest.fixture
    def same(self, records: Records) -> Records:
        return records


class TestMemoryBus(BusContract):
    @pytest.fixture
    def control(self) -> Control:
        return MemoryBus()

    @pytest.fixture
    def links(self, control: MemoryBus) -> Callable[[list[str]], Link]:
        return control.link


class TestRoutedRecords(RecordsContract):
    @pytest.fixture
    def records(self) -> Records:
        return Routed(MemoryRecords(), MemoryRecords())

    @pytest.fixture
    def same(self, records: Records) -> Records:
        return records


class TestRoutedRecordsOfTheFleet(TestRoutedRecords):
    """The same, of keys that all lie with the hub."""

    @pytest.fixture
    def records(self) -> Records:
        return Below("fleet/", Routed(MemoryRecords(), MemoryRecords()))


def test_what_is_of_the_fleet_lies_with_the_hub_and_all_else_with_the_run() -> None:
    own, fleet = MemoryRecords(), MemoryRecords()
    routed = Routed(own, fleet)
    routed.put_many([("fleet/a", b"1"), ("runs/r", b"2"), ("fleet/b", b"3")])
    assert routed.swap("fleet/c", b"4", 0)
    assert [key for key, _ in routed.scan("fleet/")] == ["fleet/a", "fleet/b", "fleet/c"]
    assert [key for key, _ in routed.scan("runs/")] == ["runs/r"]
    assert [key for key, _ in fleet.scan("fleet/")] == ["fleet/a", "fleet/b", "fleet/c"]
    assert (own.get("fleet/a"), fleet.get("runs/r")) == (None, None)


class Below:
    """Records whose keys all begin with `prefix`."""

    def __init__(self, prefix: str, records: Records) -> None:
        self._prefix, self._records = prefix, records

    def get(self, key: str) -> Record | None:
        return self._records.get(self._prefix + key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
        found = self._records.get_many([self._prefix + key for key in keys])
        return {key.removeprefix(self._prefix): record for key, record in found.items()}

    def swap(self, key: str, value: bytes, expect: int) -> bool:
        return self._records.swap(self._prefix + key, value, expect)

    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None:
        self._records.put_many([(self._prefix + key, value) for key, value in values])

    def scan(self, prefix: str) -> Iterable[tuple[str, Record]]:
        found = self._records.scan(self._prefix + prefix)
        return ((key.removeprefix(self._prefix), record) for key, record in found)
