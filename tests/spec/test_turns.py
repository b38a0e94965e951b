"""Who has many arrivals to tell waits for a turn, and for nobody who has died in his."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleetfold import layout
from fleetfold.adapters.memory import MemoryRecords
from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.coordinator.turns import LEASE, PATIENCE, Turns
from fleetfold.ports import Records


class Hour:
    """A clock that goes on while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def turns(records: Records, hour: Hour) -> Turns:
    return Turns(records, hour, hour.sleep, lambda: 0.5)


def test_turns_follow_one_another_and_cost_no_wait_where_nobody_is() -> None:
    records, hour = MemoryRecords(), Hour()
    for _ in range(3):
        with turns(records, hour)("runs/r/rounds/000001"):
            pass
    assert hour.now == 1_000.0
    assert list(records.scan("runs/r/rounds/")) == [], "no round is taken for another"


def test_only_one_is_at_it_at_a_time(tmp_path: Path) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        mine = Turns(SqliteRecords(tmp_path / "t.db"), time.time, time.sleep, lambda: 0.01)
        with mine("k"):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most == 1


def test_a_turn_that_its_process_died_in_ends_by_itself() -> None:
    records, hour = MemoryRecords(), Hour()
    dead = turns(records, hour)("k")
    dead.__enter__()
    with turns(records, hour)("k"):
        assert LEASE <= hour.now - 1_000 < LEASE + 1


def test_a_turn_is_given_back_also_if_what_was_done_in_it_failed() -> None:
    records, hour = MemoryRecords(), Hour()
    with pytest.raises(LookupError), turns(records, hour)("k"):
        raise LookupError
    with turns(records, hour)("k"):
        assert hour.now == 1_000.0


def test_who_was_overtaken_does_not_give_back_the_turn_of_another() -> None:
    records, hour = MemoryRecords(), Hour()
    slow = turns(records, hour)("k")
    slow.__enter__()
    hour.now += LEASE
    with turns(records, hour)("k"):
        held = records.get(layout.turn("k"))
        slow.__exit__(None, None, None)
        assert records.get(layout.turn("k")) == held


def test_nobody_waits_for_ever_or_for_a_clock_that_is_wrong() -> None:
    records, hour = MemoryRecords(), Hour()
    records.put_many([(layout.turn("k"), b"9999999999")])
    with turns(records, hour)("k"):
        assert hour.now == 1_000.0

    class Crowded(MemoryRecords):
        """Somebody else is always quicker."""

        def swap(self, key: str, value: bytes, expect: int) -> bool:
            return False

    with turns(Crowded(), hour)("k"):
        assert PATIENCE <= hour.now - 1_000 < PATIENCE + 1
