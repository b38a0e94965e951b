"""A run whose objects lie in a store. The S3 is an emulator of our own: tests/s3.py."""

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from fleetfold import layout
from fleetfold.adapters.memory import MemoryObjects
from fleetfold.adapters.objects import FileObjects
from fleetfold.adapters.stores import AHEAD, StoreObjects, open_store
from fleetfold.coordinator.folding import AWAY, HERE, fold_round
from fleetfold.coordinator.sources import header_of
from fleetfold.ledger import place
from fleetfold.ports import Objects
from fleetfold.round.run import RunState
from tests.s3 import BUCKET, S3, serving
from tests.world import Walk, World

WAYS: list[dict[str, object]] = [
    {},
    {"codec": "int8"},
    {"fold": "clipped_mean"},
    {"fold": "krum", "byzantine": 1},
    {"server": "adam"},
]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def ran(objects: Objects, devices: int = 5, values: int = 3 * AHEAD, **settings: object) -> World:
    world = World(devices, trainer=Walk((values,)), objects=objects, **{"rounds": 2} | settings)  # type: ignore[arg-type]
    world.live()
    assert world.run().state is RunState.DONE
    return world


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_over_a_store_ends_with_the_same_bytes_as_one_over_files(
    way: dict[str, object], tmp_path: Path
) -> None:
    stored, filed = ran(StoreObjects(MemoryStore(), "memory:"), **way), ran(FileObjects(tmp_path), **way)
    assert stored.model() == filed.model()


def test_a_run_over_s3_dies_at_every_step_and_ends_with_the_same_bytes(s3: S3) -> None:
    expected, at, died = ran(MemoryObjects(), devices=2, values=7, rounds=1).model(), 0, True
    while died:
        at += 1
        world = World(2, objects=open_store(f"s3://{BUCKET}/{at}"), rounds=1)
        died = world.live(at=at) == at
        world.live()
        assert world.model() == expected, at
    assert s3.uploads == {}


def test_a_small_update_costs_the_gate_two_requests_and_the_fold_one(s3: S3) -> None:
    ran(open_store(f"s3://{BUCKET}/p"), devices=10, values=7, rounds=1)
    of_updates = Counter(method for method, key in s3.asked if "/updates/" in key)
    transfers = Counter(PUT=10, HEAD=10)  # the devices' own: delivers, and asks whether it is there
    assert of_updates - transfers == Counter(HEAD=10, GET=20)


@pytest.mark.parametrize("fold", ["mean", "clipped_mean"])
def test_a_fold_that_asks_for_many_updates_at_once_makes_the_same_bytes(fold: str, s3: S3) -> None:
    world = ran(open_store(f"s3://{BUCKET}/p"), rounds=1, fold=fold)
    (round,) = world.ledger.rounds("r")
    arrivals = sorted(world.ledger.arrivals(place(round)).values(), key=lambda arrival: arrival.seat)
    header = header_of(world.objects, layout.model("r", 0))
    digests = [
        fold_round(world.objects, round, arrivals, world.settings, header, None, site=site).digest
        for site in (HERE, AWAY)
    ]
    assert digests == [sha256(world.model()).hexdigest()] * 2
