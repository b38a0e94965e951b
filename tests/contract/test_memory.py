from collections.abc import Callable

import pytest

from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords
from fleetfold.ports import Control, Link, Objects, Records
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
