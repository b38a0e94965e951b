"""When a device may work, and how much: what is read, and what follows from it."""

import os
from pathlib import Path

import pytest

from fleetfold.adapters.memory import MemoryRecords
from fleetfold.device import conditions
from fleetfold.device.budget import Budget
from fleetfold.device.conditions import Condition, Network, OwnLoad, Power
from fleetfold.device.own import Facts
from fleetfold.device.presence import Herald, presence
from fleetfold.messages import Presence

HOUR, DAY = 3600.0, 86400.0


def supply(root: Path, name: str, **files: str) -> None:
    folder = root / "sys/class/power_supply" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text + "\n")


def test_a_device_without_a_battery_is_charging_and_says_so(tmp_path: Path) -> None:
    assert conditions.charging(conditions.power(tmp_path)) == Condition(
        "charging", True, "there is no battery"
    )


def test_a_battery_that_empties_is_named_with_its_level(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="41")
    supply(tmp_path, "mouse", type="Battery", scope="Device", status="Full", capacity="99")
    found = conditions.charging(conditions.power(tmp_path))
    assert found == Condition("charging", False, "battery is discharging at 41%")
    assert conditions.waiting_for([found]) == "waiting: charging is required, battery is discharging at 41%"


@pytest.mark.parametrize(
    ("power", "holds"),
    [
        (Power(0.4, "Discharging", True), True),
        (Power(0.8, "Not charging", None), True),
        (Power(1.0, "Full", None), True),
        (Power(None, "Unknown", None), True),  # what cannot be told holds
        (Power(0.4, "Discharging", None), False),
    ],
)
def test_mains_or_a_battery_that_does_not_empty_is_charging(power: Power, holds: bool) -> None:
    assert conditions.charging(power).holds is holds


def route(root: Path, interface: str) -> None:
    (root / "proc/net").mkdir(parents=True)
    words = [interface, "00000000", "010200C0", "0003", "0", "0", "0", "00000000", "0", "0", "0"]
    (root / "proc/net/route").write_text("Iface\tDestination\n" + "\t".join(words) + "\n")


@pytest.mark.parametrize(
    ("interface", "said", "metered"),
    [
        ("eth0", "", False), ("wwan0", "", True), ("ppp0", "", True), ("eth0", "yes (guessed)", True),
        ("wwan0", "no", False), ("eth0", "unknown", False),
    ],
)  # fmt: skip
def test_networkmanager_says_what_is_metered_and_else_the_kind_of_interface(
    interface: str, said: str, metered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    route(tmp_path, interface)
    (tmp_path / "bin").mkdir()
    if said:
        command = tmp_path / "bin/nmcli"
        command.write_text(f"#!/bin/sh\n[ \"$6\" = {interface} ] && echo 'GENERAL.METERED:{said}'\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    found = conditions.network(tmp_path)
    assert found.metered is metered
    assert interface in found.said


def test_without_a_route_nothing_is_known_and_unmetered_holds(tmp_path: Path) -> None:
    assert conditions.unmetered(conditions.network(tmp_path)).holds


def test_our_own_work_does_not_make_a_device_busy() -> None:
    own = OwnLoad()
    own.add(0.0, 0.0)
    for second in range(1, 300):
        own.add(2.0 * second, float(second))  # two cores, all the time
    assert own.value == pytest.approx(2.0, rel=0.02)
    assert conditions.idle(2.2, own.value, 4, None).holds
    assert not conditions.idle(2.2, 0.0, 4, None).holds
    assert not conditions.idle(0.0, 0.0, 4, 12.0).holds
    assert conditions.idle(0.0, 0.0, 4, -1e7).holds  # the clock has jumped: not a key of the future


def test_the_owners_command_says_what_holds_and_why() -> None:
    assert conditions.own("door", "echo it is shut; exit 1") == Condition("door", False, "it is shut")
    assert conditions.own("door", "true") == Condition("door", True, "exit code 0")


class Clock:
    def __init__(self) -> None:
        self.date, self.up = "2031-12-24", 0.0


def budget(records: MemoryRecords, clock: Clock, boot: str = "one") -> Budget:
    return Budget(records, 200_000_000, lambda: clock.date, lambda: clock.up, boot)


def test_a_task_that_needs_more_than_is_left_of_the_day_is_refused_with_the_numbers() -> None:
    found = budget(MemoryRecords(), Clock())
    found.spend(160_000_000)
    assert found.refusal(40_000_000) == ""
    assert found.refusal(51_000_000) == ("the day's budget of 200.0 MB: 40.0 MB left, the task needs 51.0 MB")
    assert Budget(MemoryRecords(), 0, lambda: "", lambda: 0.0, "").refusal(10**15) == ""


def test_what_was_used_outlives_the_process() -> None:
    records, clock = MemoryRecords(), Clock()
    first = budget(records, clock)
    first.spend(150_000_000)
    assert budget(records, clock).used == 150_000_000


def test_a_new_day_is_a_new_budget_but_a_clock_that_jumps_is_one_only_once() -> None:
    clock = Clock()
    found = budget(MemoryRecords(), clock)
    found.spend(100)
    clock.date = "2031-12-25"
    assert found.used == 0
    found.spend(100)
    for date in ("2033-01-01", "2031-12-25", "2035-01-01"):
        clock.date, clock.up = date, clock.up + HOUR
        assert found.used == 100
    clock.date, clock.up = "2035-01-02", clock.up + DAY
    assert found.used == 0


def test_a_device_that_begins_each_boot_in_the_past_gets_one_budget_a_day() -> None:
    records, clock = MemoryRecords(), Clock()
    found = budget(records, clock)
    found.spend(STEP := 2_000_000)
    for boot in ("two", "three", "four"):
        clock.date, clock.up = "1970-01-01", 5.0
        found = budget(records, clock, boot)
        assert found.used == STEP
        clock.date = "2031-12-24"
        assert found.used == STEP


def test_a_date_that_went_back_for_good_is_believed_after_an_hour() -> None:
    clock = Clock()
    found = budget(MemoryRecords(), clock)
    found.spend(100)
    clock.date, clock.up = "2030-01-01", 2 * HOUR
    assert found.used == 100
    clock.date, clock.up = "2030-01-02", DAY
    assert found.used == 0


def test_presence_is_said_when_it_changes_and_now_and_then_and_at_most_once_a_minute() -> None:
    said: list[Presence] = []
    now = [0.0]
    herald = Herald(said.append, lambda: now[0])

    def at(seconds: float, battery: float, waits: str = "") -> None:
        now[0] = seconds
        herald.show(presence("d", waits, Facts(), False, Power(battery, "Charging"), Network(False), 10**9))

    at(0, 0.50)
    at(30, 0.80)  # too soon
    at(61, 0.53)  # nothing new
    at(62, 0.80)
    at(123, 0.80, "waiting: charging is required, battery is discharging at 80%")
    at(200, 0.79, "waiting: charging is required, battery is discharging at 79%")  # nothing new
    at(723, 0.79, "waiting: charging is required, battery is discharging at 79%")  # ten minutes
    assert [(p.battery, p.available) for p in said] == [(0.5, True), (0.8, True), (0.8, False), (0.79, False)]
