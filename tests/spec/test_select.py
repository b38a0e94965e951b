"""Who is invited."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetfold.coordinator.policy import unit
from fleetfold.errors import BadConfig
from fleetfold.round.fleet import Device, settle
from fleetfold.round.select import RULES, choose


def fleet(*turnarounds: float | None) -> list[Device]:
    return [
        Device(name=f"d{i:02}", turnaround=t, chosen=0 if t is None else 1, last_seen=float(i))
        for i, t in enumerate(turnarounds)
    ]


def draws(devices: list[Device], round: int) -> list[float]:
    return [unit(0, round, d.name) for d in devices]


def test_a_device_that_was_never_timed_is_tried_before_it_is_judged() -> None:
    devices = fleet(0.001, 0.001, None, 0.001)
    for rule in ("turnaround", "fastest"):
        assert "d02" in choose(RULES[rule], devices, 1, draws(devices, 1), 1)


def test_the_fast_are_chosen_far_more_often_but_not_always() -> None:
    devices = fleet(*[1.0] * 5, *[4.0] * 5)
    chosen = Counter(
        n for r in range(500) for n in choose(RULES["turnaround"], devices, 2, draws(devices, r), 1)
    )
    fast, slow = sum(chosen[f"d{i:02}"] for i in range(5)), sum(chosen[f"d{i:02}"] for i in range(5, 10))
    assert fast > 20 * slow > 0


def test_fastest_takes_the_k_fastest_and_recent_the_last_seen() -> None:
    devices = fleet(3.0, 1.0, 2.0)
    assert choose(RULES["fastest"], devices, 2, draws(devices, 1), 1) == ("d01", "d02")
    assert choose(RULES["recent"], devices, 2, draws(devices, 1), 1) == ("d01", "d02")
    assert choose(RULES["all"], devices, 1, draws(devices, 1), 1) == ("d00", "d01", "d02")


def test_nobody_is_starved_for_ever_not_even_by_the_fastest_rule() -> None:
    devices = {d.name: d for d in fleet(*[1.0] * 4, *[100.0] * 4)}
    last = dict.fromkeys(devices, 0)
    for round in range(1, 200):
        now = list(devices.values())
        for name in choose(RULES["fastest"], now, 4, draws(now, round), round):
            devices[name] = replace(devices[name], last_round=round)
            last[name] = round
    assert all(round > 150 for round in last.values())


def test_a_device_that_was_never_invited_is_not_forgotten_by_a_rule_that_does_not_look() -> None:
    devices = fleet(*[None] * 12)
    names = {n for r in range(1, 200) for n in choose(RULES["recent"], devices, 2, draws(devices, r), r)}
    assert {"d10", "d11"} < names


def test_a_users_rule_that_names_a_stranger_is_told_so() -> None:
    with pytest.raises(BadConfig, match="'nobody'"):
        choose(lambda fleet, k, draws: ["nobody"], fleet(1.0), 1, [0.5], 1)


@given(st.sampled_from(sorted(RULES)), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_a_cohort_is_sorted_of_the_fleet_and_as_large_as_asked(rule: str, n: int, k: int, round: int) -> None:
    devices = fleet(*[None if i % 3 == 0 else float(i) for i in range(n)])
    names = choose(RULES[rule], devices, k, draws(devices, round), round)
    assert list(names) == sorted(set(names))
    assert len(names) == (n if rule == "all" else min(n, k))


def test_turnaround_is_averaged_with_what_it_was_and_the_same_round_counts_once() -> None:
    device = settle(Device(name="d"), 1, took=10.0, seen=5.0, examples=3, decay=0.8)
    assert (device.turnaround, device.chosen, device.examples) == (10.0, 1, 3)
    device = settle(device, 2, took=20.0, seen=None, examples=None, decay=0.8)
    assert device.turnaround == pytest.approx(12.0)
    assert (device.failures, device.last_seen) == (1, 5.0)
    assert settle(device, 2, took=99.0, seen=9.0, examples=9, decay=0.8) == device
