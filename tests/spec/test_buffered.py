"""Buffered rounds: a fold every few updates, whatever round they were trained for, and nobody waited for."""

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetfold import Trained, Work, layout
from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.coordinator import late
from fleetfold.coordinator.folding import fold_round
from fleetfold.coordinator.late import BACKLOG, FARTHEST, backlog, reach
from fleetfold.coordinator.sources import header_of
from fleetfold.fold.tensors import Tensors
from fleetfold.ledger import Arrival, place
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.round.state import Phase, Round
from fleetfold.settings import Settings
from tests.world import Paced, Walk

SETTINGS = {
    "mode": "buffered", "target": 2, "rounds": 8, "deadline": 1_000.0, "select": "random", "keep": 0,
}  # fmt: skip


def pace(device: str, round: int) -> float:
    """Seconds of training: d5 takes as long as d0 for twelve rounds. No two end at the same moment."""
    index = int(device[1:])
    return (1.0, 1.3, 1.7, 2.9, 5.3, 11.9)[index % 6] + 0.001 * index + 0.01 * round


def a_world(pace: Callable[[str, int], float] = pace, **more: object) -> Paced:
    return Paced(pace, **{**SETTINGS, **more})  # type: ignore[arg-type]


def lived(pace: Callable[[str, int], float] = pace, **more: object) -> Paced:
    world = a_world(pace, **more)
    world.live()
    assert world.run().state is RunState.DONE, world.run().reason
    return world


def rounds(world: Paced) -> list[Round]:
    return [r for r in world.ledger.rounds("r") if r.kind == "train"]


def arrivals(world: Paced) -> dict[tuple[int, int], Arrival]:
    """(round, seat) → what became of it."""
    return {(r.number, a.seat): a for r in rounds(world) for a in world.ledger.arrivals(place(r)).values()}


def counted(world: Paced, round: Round) -> list[Arrival]:
    """What the round folded, as its record says, in the order of the fold."""
    found = arrivals(world)
    by_key = {arrival.key: arrival for arrival in found.values()}
    return [found[round.number, seat] for seat in sorted(round.arrived)] + [
        by_key[key] for key in sorted(round.credits)
    ]


def cohort(world: Paced, round: Round) -> list[str]:
    return json.loads(fetch(world.objects, round.cohort))


def lost_and_doubled(world: Paced) -> tuple[set[str], set[str]]:
    """Updates that came before the last round closed and count nowhere; those that count twice."""
    done = [r for r in rounds(world) if r.phase is Phase.DONE]
    counts = Counter(a.key for r in done for a in counted(world, r))
    end = max((r.closed_at for r in done), default=0.0)
    came = {a.key for a in arrivals(world).values() if a.state != "refused" and a.at < end}
    return came - set(counts), {key for key, n in counts.items() if n > 1}


def owed(world: Paced, round: Round) -> set[tuple[int, int]]:
    """What earlier rounds owed when `round` opened, by the times of arrivals alone."""
    invited = {
        (r.number, seat) for r in rounds(world) if r.number < round.number for seat in range(r.invited)
    }
    return invited - {part for part, a in arrivals(world).items() if a.at <= round.opened_at}


def test_a_fold_takes_as_many_updates_as_the_target_says_whatever_round_they_are_of() -> None:
    world = lived()
    assert [r.counted for r in rounds(world)] == [2] * 8
    assert any(not r.arrived for r in rounds(world)), "a round may live from what is owed alone"
    staleness = [r.base - a.base for r in rounds(world) for a in counted(world, r)]
    assert max(staleness) >= 4
    assert lost_and_doubled(world) == (set(), set())


@pytest.mark.parametrize(("cohort", "at_work"), [(1.0, 6), (4, 4)])
def test_nobody_is_asked_while_at_work_and_as_many_work_as_the_cohort_says(
    cohort: float, at_work: int
) -> None:
    world = lived(cohort=cohort, rounds=20)
    assert not world.twice
    assert [r.invited + len(owed(world, r)) for r in rounds(world)] == [at_work] * 20


def test_a_device_that_refuses_is_not_waited_for_and_is_asked_again() -> None:
    class Broken(Walk):
        def train(self, model: Tensors, work: Work) -> Trained:
            if work.device.name == "d5":
                raise ZeroDivisionError("no data today")
            return super().train(model, work)

    world = lived(trainer=Broken(), rounds=40)
    refused = {part for part, a in arrivals(world).items() if a.state == "refused"}
    assert len(refused) >= 2
    assert not refused & rounds(world)[-1].owed
    assert lost_and_doubled(world) == (set(), set())


def test_a_silent_device_is_asked_again_when_its_own_rounds_deadline_has_passed_and_not_before() -> None:
    world = a_world(rounds=40, deadline=10.0)
    world.devices.pop()
    world.live()
    asked = [r for r in rounds(world) if "d5" in cohort(world, r)]
    gaps = [after.opened_at - before.opened_at for before, after in pairwise(asked)]
    assert gaps
    assert all(10.0 <= gap < 20.0 for gap in gaps)
    assert {d.name: d.failures for d in world.ledger.fleet()}["d5"] >= len(gaps)
    assert lost_and_doubled(world) == (set(), set())


def test_what_comes_after_its_deadline_is_credited_all_the_same() -> None:
    world = lived(deadline=8.0, rounds=14)
    first = next(a for (round, _), a in arrivals(world).items() if a.device == "d5" and round == 1)
    assert first.at > rounds(world)[0].deadline_at
    assert first.state == "credited"
    assert lost_and_doubled(world) == (set(), set())


def test_a_round_that_fails_gives_back_what_it_had() -> None:
    def slow(device: str, round: int) -> float:
        return pace(device, round) + (50.0 if int(device[1:]) > 0 and round == 1 else 0.0)

    world = lived(slow, deadline=20.0, quorum=2, patience=9)
    assert rounds(world)[0].phase is Phase.FAILED
    assert len(rounds(world)[0].arrived) == 1
    assert arrivals(world)[1, 0].state == "credited"
    assert lost_and_doubled(world) == (set(), set())


def test_what_a_failed_round_was_credited_with_goes_to_the_next_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(late, "FARTHEST", 1)

    def slow(device: str, round: int) -> float:
        return pace(device, round) + (50.0 if round == 2 else 0.0)

    world = lived(slow, deadline=20.0, target=4, quorum=4, patience=9)
    failed = rounds(world)[1]
    assert failed.reason == "2 updates, 2 of earlier rounds, quorum 4: deadline passed"
    assert lost_and_doubled(world) == (set(), set())


def test_what_was_answered_before_a_round_invites_is_not_waited_for_there() -> None:
    world = a_world()
    world.coordinator(Faults(None, simulated_death)).step()
    first = rounds(world)[0]
    fates = ("late", "refused", "credited")
    world.ledger.save_arrivals(place(first), [
        Arrival(device=f"d{seat}", seat=seat, state=fate, key=layout.update(place(first), f"d{seat}"))
        for seat, fate in enumerate(fates)
    ])  # fmt: skip
    second = replace(first, number=2, owed=frozenset((1, seat) for seat in range(4)))
    told = backlog(world.ledger, second, BACKLOG)
    assert told.answered == {(1, 0), (1, 1), (1, 2)}
    assert {layout.device_of(key) for key in told.credits} == {"d0", "d2"}


def test_a_straggler_is_timed_by_its_own_work_and_counts_as_having_contributed() -> None:
    world = lived(rounds=30)
    straggler = {d.name: d for d in world.ledger.fleet()}["d5"]
    assert straggler.turnaround == pytest.approx(12.0, rel=0.1)
    assert (straggler.failures, straggler.arrived) == (0, straggler.chosen)
    assert straggler.chosen >= 2


@pytest.mark.parametrize("select", ["turnaround", "fastest", "all", "random", "recent"])
def test_every_rule_of_selection_chooses_among_those_who_owe_nothing(select: str) -> None:
    world = lived(select=select, cohort=4, rounds=20)
    assert not world.twice
    assert lost_and_doubled(world) == (set(), set())


@pytest.mark.parametrize(
    "more",
    [
        {"server": "adam"}, {"fold": "median"}, {"fold": "krum"}, {"weight": "uniform", "staleness": 0.0},
        {"over_select": 0.5, "cohort": 4}, {"evaluate": "same"}, {"cadence": 3.0}, {"target": 1},
        {"target": 0.5}, {"late": "drop"},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_else_is_set_nothing_is_lost_and_nothing_counted_twice(more: dict[str, object]) -> None:
    world = lived(**more)
    assert not world.twice
    assert lost_and_doubled(world) == (set(), set())


def test_an_evaluation_asks_only_the_idle_and_where_there_is_none_it_is_skipped() -> None:
    world = lived(evaluate="cohort", rounds=30)
    evaluations = [r for r in world.ledger.rounds("r") if r.kind == "evaluate"]
    assert any(r.phase is Phase.DONE for r in evaluations)
    assert any(r.reason.endswith("nobody is at work") for r in evaluations)
    assert any(not r.invited for r in rounds(world)), "what came meanwhile leaves nobody to invite"
    assert not world.twice
    assert lost_and_doubled(world) == (set(), set())


def test_updates_are_let_go_when_they_are_folded_and_not_while_they_are_owed() -> None:
    world = lived(keep=1, rounds=60)
    assert not [a.reason for a in arrivals(world).values() if a.state == "refused"]
    assert lost_and_doubled(world) == (set(), set())
    left = {int(key.split("/")[3]) for key in world.objects.list("runs/r/rounds/") if "/updates/" in key}
    assert min(left) >= 60 - reach(world.settings)


def test_late_updates_are_looked_for_as_far_back_as_buffers_go_into_the_concurrency() -> None:
    assert reach(Settings()) == reach(Settings(cohort=100, devices=100, target=1)) == BACKLOG
    assert reach(Settings(mode="buffered", devices=100, cohort=30, target=10)) == BACKLOG + 3
    assert reach(Settings(mode="buffered", devices=100, target=0.1)) == BACKLOG + 10
    assert reach(Settings(mode="buffered", devices=9_999, target=1)) == FARTHEST


# Under deaths


STEPS = a_world().live()


def same_as_undisturbed(world: Paced) -> None:
    assert world.run().state is RunState.DONE
    assert not world.twice
    assert lost_and_doubled(world) == (set(), set())
    assert [r.credits for r in rounds(world)] == [r.credits for r in rounds(UNDISTURBED)]
    assert world.model() == UNDISTURBED.model()


UNDISTURBED = lived()


@pytest.mark.parametrize("at", range(1, STEPS + 1, 3))
def test_everything_dies_at_this_step_and_the_model_is_the_same_to_the_byte(at: int) -> None:
    world = a_world()
    world.live(at=at)
    world.live()
    same_as_undisturbed(world)
    counts = {d.name: (d.chosen, d.arrived, d.failures) for d in world.ledger.fleet()}
    assert counts == {d.name: (d.chosen, d.arrived, d.failures) for d in UNDISTURBED.ledger.fleet()}


@given(st.lists(st.integers(1, 90), max_size=12), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_deaths_duplicates_delays_and_reordering_together_change_nothing(lives: list[int], seed: int) -> None:
    world = a_world()
    for at in lives:
        world.live(at=at, unruly=random.Random(seed))
    world.live(unruly=random.Random(seed))
    same_as_undisturbed(world)


@given(
    paces=st.lists(st.floats(0.1, 40.0), min_size=6, max_size=6),
    target=st.integers(1, 6), cohort=st.integers(1, 6), deadline=st.floats(5.0, 60.0),
    lives=st.lists(st.integers(1, 120), max_size=5), seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whoever_is_slow_and_whatever_dies_each_update_counts_once(
    paces: list[float], target: int, cohort: int, deadline: float, lives: list[int], seed: int
) -> None:
    world = a_world(
        lambda device, round: paces[int(device[1:])] * (1 + (7 * round + int(device[1:])) % 3),
        target=target, cohort=cohort, deadline=deadline, patience=99, quorum=1,
    )  # fmt: skip
    for at in lives:
        world.live(at=at, unruly=random.Random(seed))
    world.live(unruly=random.Random(seed))
    assert world.run().state is RunState.DONE
    assert lost_and_doubled(world) == (set(), set())
    for round in rounds(world):
        if round.phase is Phase.DONE:
            again = fold_again(world, round)
            assert again == round.digest, "the model is that of the updates that the record names"


@pytest.mark.fleet
@given(
    paces=st.lists(st.integers(1, 30), min_size=6, max_size=6), target=st.integers(1, 3),
    quorum=st.integers(1, 3), lives=st.lists(st.integers(1, 200), max_size=3), seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_update_that_is_owed_is_kept_and_found_however_far_back_it_comes_from(
    paces: list[int], target: int, quorum: int, lives: list[int], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late, "FARTHEST", 1)
        world = a_world(
            lambda device, round: paces[int(device[1:])], rounds=40, target=target, quorum=quorum, keep=1
        )
        for at in lives:
            world.live(at=at, unruly=random.Random(seed))
        world.live(unruly=random.Random(seed))
    assert world.run().state is RunState.DONE
    assert not [a.reason for a in arrivals(world).values() if a.state == "refused"]
    assert lost_and_doubled(world) == (set(), set())


def test_an_owed_update_that_lies_there_is_taken_in_though_its_report_was_lost() -> None:
    world, stood = a_world(), None
    while stood is None or stood.phase is not Phase.OPEN or not stood.owed:
        world.live(at=40)
        stood = rounds(world)[-1]
    number, seat = min(stood.owed)
    device = cohort(world, rounds(world)[number - 1])[seat]
    mute = world.agent(next(d for d in world.devices if d.name == device), Faults(None, simulated_death))
    mute.handle(world.at_work[device, "train", number])
    world.bus.acknowledge([letter.receipt for letter in world.bus.letters()])
    world.coordinator(Faults(None, simulated_death)).resume()
    assert arrivals(world)[number, seat].credited_to == stood.number


def fold_again(world: Paced, round: Round) -> str:
    header = header_of(world.objects, layout.model("r", round.base))
    return fold_round(world.objects, round, counted(world, round), world.settings, header, None).digest
