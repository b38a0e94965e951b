"""Which devices may be invited: conditions over what they say, and what is done while too few are there."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfold.adapters.faults import Faults
from fleetfold.errors import BadConfig
from fleetfold.messages import Presence
from fleetfold.round.fleet import Device, heard
from fleetfold.round.where import eligible, parse
from tests.world import World

CAMERA = heard(
    Device(name="camera-7", examples=10, turnaround=2.0, failures=1),
    Presence(device="camera-7", battery=0.5, charging=True, link="unmetered", examples=200),
    now=100.0,
)


@pytest.mark.parametrize(
    "text",
    [
        "battery > 0.3",
        "battery > 0.3 and charging",
        'link == "unmetered" and examples >= 100',
        "charging == true and not failures > 3",
        "0.1 < battery <= 0.5",
        "seen < 60 or turnaround < 1",
        'name == "camera-7"',
        "(memory > 1000000000 or online)",
    ],
)
def test_a_condition_that_is_true_of_the_device(text: str) -> None:
    assert parse(text)(CAMERA, 110.0)


@pytest.mark.parametrize(
    "text",
    ["battery > 0.5", "memory > 0", 'link == "metered"', "seen > 60", "battery > link", "not charging"],
)
def test_a_condition_that_is_not_or_that_nobody_can_know(text: str) -> None:
    assert not parse(text)(CAMERA, 110.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("battery >", "invalid syntax"),
        ("batery > 0.3", "not known"),
        ("__import__('os').system('true')", "no comparison"),
        ("battery > (lambda: 0)()", "neither a fact"),
        ("battery in (1, 2)", "neither a fact"),
        ("battery > 1 + 1", "neither a fact"),
        ("1", "no comparison"),
        ("a" * 2000, "characters"),
        ("(" * 400 + "1" + ")" * 400, "parentheses"),
    ],
)
def test_what_is_no_condition_is_told_before_anything_is_opened(text: str, why: str) -> None:
    with pytest.raises(BadConfig, match=why):
        parse(text)


@given(st.text(max_size=80))
def test_no_text_does_more_than_be_a_condition_or_be_refused(text: str) -> None:
    with suppress(BadConfig):
        assert parse(text)(CAMERA, 110.0) in (True, False)


def test_who_is_off_or_not_free_is_not_invited_unless_the_run_says_so() -> None:
    off = heard(Device(name="off"), Presence(device="off", online=False), 1.0)
    busy = heard(Device(name="busy"), Presence(device="busy", available=False), 1.0)
    here = Device(name="of this machine")
    fleet = [off, busy, here, CAMERA]
    assert [d.name for d in eligible(fleet, None, 1.0, offline=False)] == ["of this machine", "camera-7"]
    found = [d.name for d in eligible(fleet, None, 1.0, offline=True)]
    assert found == ["off", "of this machine", "camera-7"], "who says that it is not free is not asked"


def test_a_round_is_opened_when_enough_devices_are_there_and_the_run_says_what_it_waits_for() -> None:
    world = World(devices=3, rounds=1, available=3)
    gone = heard(world.ledger.fleet()[0], Presence(device="d0", online=False), 1.0)
    world.ledger.save_devices([gone])
    coordinator = world.coordinator(Faults(None, lambda: None))
    wake = coordinator.step()
    assert world.now < wake < float("inf")
    assert world.run().reason == "waiting to open round 1: 2 of 3 devices are there, 3 are known"
    world.ledger.save_devices([heard(gone, Presence(device="d0"), 2.0)])
    world.live()
    assert world.run().state == "done"


def test_a_condition_leaves_out_whom_it_is_not_true_of() -> None:
    world = World(devices=3, rounds=2, where='name != "d1"')
    world.live()
    assert [(d.name, d.chosen) for d in world.ledger.fleet()] == [("d0", 2), ("d1", 0), ("d2", 2)]


def test_a_quorum_that_is_a_count_is_waited_for_before_a_round_is_opened() -> None:
    world = World(devices=3, rounds=1, cohort=3, quorum=3)
    gone = [heard(d, Presence(device=d.name, online=False), 1.0) for d in world.ledger.fleet()[1:]]
    world.ledger.save_devices(gone)
    world.coordinator(Faults(None, lambda: None)).step()
    assert world.run().reason == "waiting to open round 1: 1 of 3 devices are there, 3 are known"


def test_a_quorum_of_more_devices_than_there_are_is_all_of_them() -> None:
    world = World(devices=2, rounds=1, quorum=5)
    world.live()
    found = world.ledger.round(world.run().name, 1)
    assert found is not None
    assert found[0].policy.quorum == 2
    assert found[0].phase == "done"
