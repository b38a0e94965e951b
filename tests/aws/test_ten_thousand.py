"""Ten thousand devices report within moments, and several functions take their reports in at once.

queue ─▶ batches of 1,000 ─▶ collect × 5 at once ─▶ gate, arrival records ─▶ one commit of the round a batch

The table is an emulator's behind one lock (tests/aws/moto_double.py): how long it takes says nothing of the
real one, how often it is asked does.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest

from fleetfold import layout
from fleetfold.adapters import boto
from fleetfold.adapters.dynamo import MOST, DynamoRecords
from fleetfold.adapters.iot import IotBus
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords, NoAlarm
from fleetfold.coordinator import Coordinator
from fleetfold.coordinator.folding import AWAY
from fleetfold.coordinator.opening import open_run
from fleetfold.coordinator.policy import policies
from fleetfold.coordinator.turns import Turns
from fleetfold.fold.codecs import encode as encoded
from fleetfold.fold.tensors import header_in, read, write
from fleetfold.ledger import Arrival, Ledger
from fleetfold.messages import Form, Report, UpdateHeader, encode
from fleetfold.ports import Control, Letter, Records
from fleetfold.round.state import Phase, Round
from fleetfold.settings import Settings
from tests.aws.conftest import Aws
from tests.aws.weather import LOST, SENT, THROTTLED, UNREACHED, Weather
from tests.world import Walk

AT_ONCE = 5
"""Functions that collect at once."""
RUN, ROUND = layout.run("r"), layout.round("r", 1, "train")
NOW = 1_000.0


class Watched:
    """Records, and what is done to them: `rounds` that were committed, and commits that were `lost` to
    another; `largest`: bytes of a value."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rounds, self.lost, self.largest = list[Round](), 0, 0

    def over(self, records: DynamoRecords) -> "_Watching":
        return _Watching(self, records)

    def note(self, key: str, value: bytes, won: bool) -> None:
        with self.lock:
            self.largest = max(self.largest, len(value))
            if key == ROUND and won:
                self.rounds.append(msgspec.json.decode(value, type=Round))
            elif key == ROUND:
                self.lost += 1


class _Watching:
    def __init__(self, watched: Watched, records: DynamoRecords) -> None:
        self._watched, self._records = watched, records
        self.get, self.get_many = records.get, records.get_many
        self.put_many, self.scan = records.put_many, records.scan

    def swap(self, key: str, value: bytes, expect: int) -> bool:
        won = self._records.swap(key, value, expect)
        self._watched.note(key, value, won)
        return won


class Fleet:
    """A run whose round of everybody is open, its updates delivered, and nobody has said so yet. `asked`:
    the devices of each set that was to be folded."""

    def __init__(self, devices: int) -> None:
        self.settings = Settings(devices=devices, select="all", quorum=1.0, deadline=3_600.0)
        self.names = [f"device-{k:05}" for k in range(devices)]
        self.objects, self.asked = MemoryObjects(), list[list[str]]()
        self._records = MemoryRecords()
        model = write(Walk().init(0))
        open_run("r", "app", self.settings, model, self.names, Ledger(self._records), self.objects, NOW)
        self.coordinator(self._records, MemoryBus()).step()
        given, header = read(model)[0], header_in(model)
        tensors = encoded(given, given, header, Form(), [0], sent=0, residual=None, feedback=False).tensors
        for name in self.names:
            about = UpdateHeader(run="r", round=1, kind="train", device=name, examples=7, metrics={"loss": 1})
            self.objects.put(layout.update(ROUND, name), [write(tensors, encode(about))])

    def move(self, records: Records) -> None:
        """The run and its round to other records; nobody asks for the registry here."""
        for key in (RUN, ROUND):
            found = self._records.get(key)
            assert found is not None
            assert records.swap(key, found.value, expect=0)

    def coordinator(self, records: Records, control: Control) -> Coordinator:
        return Coordinator(
            "r", Ledger(records, alone=False), self.objects, control, NoAlarm(), policies(self.settings),
            lambda: NOW, site=AWAY, elsewhere=self._fold,
            turn=Turns(records, time.time, time.sleep, random.random),
        )  # fmt: skip

    def _fold(self, round: Round, counted: Sequence[Arrival], settings: Settings) -> None:
        self.asked.append([arrival.device for arrival in counted])

    def collect(self, records: Records, devices: Sequence[str]) -> set[str]:
        """One invocation. → receipts of what it took care of."""
        said = [Report(run="r", round=1, kind="train", device=name, state="delivered") for name in devices]
        letters = [Letter(str(k), report) for k, report in enumerate(said)]
        bus = IotBus(None, "f", None, lambda: NOW, letters)  # type: ignore[arg-type]
        self.coordinator(records, bus).step(opening=False)
        return bus.done


@pytest.fixture
def clients(aws: Aws) -> Iterator[list[Any]]:
    """One for each function, as on AWS."""
    made = [boto.client("dynamodb") for _ in range(AT_ONCE)]
    yield made
    for client in made:
        client.close()


def brought_at_once(
    fleet: Fleet, watched: Watched, clients: Sequence[Any], table: str, batches: Sequence[Sequence[str]]
) -> list[set[str]]:
    """Each batch to one function, as many at once as there are clients. → receipts."""
    free = SimpleQueue[Any]()
    for client in clients:
        free.put(client)

    def collect(batch: Sequence[str]) -> set[str]:
        client = free.get()
        try:
            return fleet.collect(watched.over(DynamoRecords(client, table)), batch)
        finally:
            free.put(client)

    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(collect, batches))


def arriving(fleet: Fleet, batches: int) -> list[list[str]]:
    """All devices in any order, one in fifty twice, for queues bring at least once."""
    chance = random.Random(1)
    found = [*fleet.names, *chance.sample(fleet.names, len(fleet.names) // 50)]
    chance.shuffle(found)
    return [found[k::batches] for k in range(batches)]


def asking(clients: Sequence[Any]) -> Callable[[], Counter[str]]:
    """How often the table was asked for what."""
    asked, lock = Counter[str](), threading.Lock()

    def note(event_name: str, **_: object) -> None:
        with lock:
            asked[event_name.rpartition(".")[2]] += 1

    for client in clients:
        client.meta.events.register("before-send", note)
    return lambda: asked


@pytest.mark.parametrize("devices", [300, pytest.param(10_000, marks=pytest.mark.fleet)])
def test_of_very_many_arrivals_none_is_lost_and_the_round_closes_once(
    devices: int, aws: Aws, clients: list[Any]
) -> None:
    fleet, watched, table = Fleet(devices), Watched(), aws.table()
    fleet.move(DynamoRecords(clients[0], table))
    asked, batches = asking(clients), arriving(fleet, 10)
    start = time.monotonic()
    done = brought_at_once(fleet, watched, clients, table, batches)
    seconds = time.monotonic() - start
    print(
        f"\n{devices} arrivals in {seconds:.1f} s there, {asked().total() / devices:.3f} requests each, "
        f"{dict(asked())}; {len(watched.rounds)} commits of the round and {watched.lost} lost; the largest "
        f"item {watched.largest} bytes"
    )
    assert [len(receipts) for receipts in done] == [len(batch) for batch in batches]
    found = Ledger(DynamoRecords(clients[0], table)).round("r", 1)
    assert found is not None
    assert found[0].phase is Phase.FOLDING
    assert found[0].arrived == frozenset(range(devices))
    assert fleet.asked == [sorted(fleet.names)]
    assert sum(bool(round.outbox) for round in watched.rounds) == 1
    assert watched.largest <= MOST
    assert watched.lost * 10 <= len(watched.rounds)


def test_arrivals_are_as_many_where_one_write_in_four_is_refused_or_its_answer_lost(
    aws: Aws, clients: list[Any]
) -> None:
    fleet, watched, table = Fleet(200), Watched(), aws.table()
    fleet.move(DynamoRecords(clients[0], table))
    chance = random.Random(3)
    for client in clients:
        fates = [chance.choice([THROTTLED, LOST, UNREACHED, *[SENT] * 9]) for _ in range(500)]
        Weather(client).ahead = {"PutItem": fates}
    brought_at_once(fleet, watched, clients, table, arriving(fleet, 10))
    ledger = Ledger(DynamoRecords(aws.client("dynamodb"), table))
    found = ledger.round("r", 1)
    assert found is not None
    assert found[0].arrived == frozenset(range(200))
    assert {arrival.state for arrival in ledger.arrivals(ROUND).values()} == {"admitted"}
    assert fleet.asked == [sorted(fleet.names)]
