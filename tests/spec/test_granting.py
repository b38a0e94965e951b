"""Fresh addresses: who gets them, for what, and why not."""

import pytest

from fleetfold import layout
from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.coordinator.granting import grant
from fleetfold.coordinator.sources import header_of
from fleetfold.fold.gate import largest
from fleetfold.messages import LIMIT, Ask, Grant, Report, encode
from tests.world import World


class Long:
    """A signer whose addresses are long, as those of a store with passing credentials are, and which notes
    what it allowed."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}

    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return f"GET {key} {device} {seconds:g}"

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        self.most[key] = most
        return f"PUT {key} {device} " + "x" * 1500


@pytest.fixture
def world() -> World:
    made = World(devices=2, silent=1, rounds=2)
    made.coordinator(Faults(None, simulated_death)).step()
    return made


def asked(world: World, signer: Long | None = None, **changes: object) -> Grant:
    ask = Ask(**({"run": "r", "round": 1, "kind": "train", "device": "d0"} | changes))  # type: ignore[arg-type]
    found = grant(ask, world.ledger, world.objects, signer or Long(), 60.0)
    assert (found.run, found.round, found.device, found.parts, found.first) == (
        ask.run, ask.round, ask.device, ask.parts, ask.first
    )  # fmt: skip
    assert bool(found.reason) != bool(found.updates), "addresses, or why there are none"
    return found


def test_who_is_invited_and_has_not_answered_gets_the_model_and_a_place_for_the_update(world: World) -> None:
    signer = Long()
    found = asked(world, signer)
    assert found.model == f"GET {layout.model('r', 0)} d0 60"
    key = layout.update(layout.round("r", 1, "train"), "d0")
    assert [address[: len(key) + 7] for address in found.updates] == [f"PUT {key} d0"]
    assert signer.most[key] == largest(header_of(world.objects, layout.model("r", 0)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run": "other"}, "there is no round 1 of run other"),
        ({"run": "../r"}, "there is no round 1 of run ../r"),
        ({"run": "\x1b[2J" * 10_000}, "there is no round 1 of run \\x1b[2J"),
        ({"round": 2}, "there is no round 2"),
        ({"round": -1}, "there is no round -1"),
        ({"kind": "evaluate"}, "there is no round 1"),
        ({"device": "mallory"}, "mallory was not invited"),
        ({"parts": 2}, "2 parts, an update has at most 1"),
        ({"parts": -1}, "at most 1"),
        ({"parts": 1, "first": 2}, "at most 1"),
        ({"first": -1}, "at most 1"),
        ({"parts": 1 << 60}, "at most 1"),
    ],
)
def test_others_are_told_why_not(world: World, changes: dict[str, object], why: str) -> None:
    assert why in asked(world, **changes).reason


def test_who_has_answered_gets_no_more_addresses(world: World) -> None:
    coordinator = world.coordinator(Faults(None, simulated_death))
    world.bus.post(Report(run="r", round=1, kind="train", device="d0", state="refused"))
    coordinator.step()
    assert asked(world).reason == "it has answered already"


def test_for_a_round_that_is_over_there_are_none_unless_late_updates_count() -> None:
    for late, why in (("drop", "round 1 is over: "), ("credit", "")):
        world = World(devices=2, silent=1, rounds=1, deadline=10.0, late=late)
        world.live()
        reason = asked(world, device="d2").reason
        assert reason.startswith(why)
        assert bool(reason) == bool(why)


def test_of_very_many_parts_as_many_addresses_come_as_fit_a_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 300
    monkeypatch.setattr("fleetfold.coordinator.granting.largest", lambda model: total * layout.PART - 5)
    signer, have = Long(), list[str]()
    while len(have) < total:
        found = asked(world, signer, parts=total, first=len(have))
        assert len(encode(found)) <= LIMIT
        have += found.updates
    key = layout.update(layout.round("r", 1, "train"), "d0")
    keys = [layout.part(key, number, total) for number in range(total)]
    assert [address.split()[1] for address in have] == keys
    assert [signer.most[each] for each in keys] == [layout.PART] * (total - 1) + [layout.PART - 5]
    assert asked(world, parts=total, first=total - 1).updates[0] == have[-1]


def test_a_grant_writes_nothing(world: World) -> None:
    faults = Faults(None, simulated_death)
    ask = Ask(run="r", round=1, kind="train", device="d0")
    grant(ask, world.ledger, faults.wrap(world.objects), Long(), 60.0)
    assert faults.steps == 0
