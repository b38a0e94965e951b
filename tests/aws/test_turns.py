"""Turns of a run: who is waited for, what ends a round, and what the workflow is told."""

import ast
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fleetfold import layout
from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.aws import handlers, steps, workflow
from fleetfold.coordinator import errands
from fleetfold.coordinator.opening import extend, wish
from fleetfold.errors import BadConfig
from fleetfold.ledger import place
from fleetfold.messages import Answer, Ask, Command, Presence, Report, encode
from fleetfold.round.run import RunState, Wish
from fleetfold.round.state import Phase
from tests.aws.platform import Platform
from tests.world import World


def lived(platform: Platform, **input: int) -> Platform:
    execution = platform.start(**input)
    platform.live()
    assert execution.ended == "SUCCEEDED", execution.ended
    return platform


def phases(platform: Platform) -> list[tuple[str, Phase]]:
    return [(round.kind, round.phase) for round in platform.ledger.rounds("r")]


def test_a_tick_at_the_deadline_closes_a_round_that_some_never_answer() -> None:
    platform = lived(Platform(3, silent=1, rounds=2, deadline=600.0))
    assert phases(platform) == [("train", Phase.DONE)] * 2
    assert platform.calls["tick"] == 2
    assert platform.executions["e"].visited.count("Open") == 2, "nobody had to ask again"
    world = World(3, silent=1, rounds=2, deadline=600.0)
    world.live()
    assert platform.model() == world.model()


def test_where_no_alarm_rings_the_state_that_waits_asks_again_after_the_deadline() -> None:
    platform = Platform(3, silent=1, rounds=2, deadline=600.0)
    platform.deaf = True
    execution = platform.start(patience=700)
    platform.live()
    assert execution.ended == "SUCCEEDED"
    assert phases(platform) == [("train", Phase.DONE)] * 2
    assert platform.calls["tick"] == 0
    assert "silence" in execution.data
    assert execution.data["silence"]["Error"] == "States.Timeout"


def test_a_round_that_fails_is_followed_by_the_next_until_patience_is_spent() -> None:
    platform = Platform(1, silent=3, rounds=5, deadline=60.0, patience=3)
    execution = platform.start()
    platform.live()
    assert execution.ended == "FAILED"
    assert phases(platform) == [("train", Phase.FAILED)] * 3
    assert platform.run().state is RunState.FAILED
    assert [row.phase for row in platform.rows] == ["failed"] * 3
    assert [(d.chosen, d.failures) for d in platform.ledger.fleet()] == [(3, 0), (3, 3), (3, 3), (3, 3)]


def test_an_update_that_is_unfit_for_the_fold_is_taken_out_and_the_rest_is_folded_again() -> None:
    def spoiled(device: str, update: bytes) -> bytes:
        return update[:-4] + b"\xff\xff\xff\x7f" if device == "d1" else update

    settings: dict[str, Any] = {"rounds": 2, "tensors": "w"}
    platform = lived(Platform(tamper=spoiled, **settings))
    world = World(tamper=spoiled, **settings)
    world.live()
    assert platform.model() == world.model()
    assert [(row.arrived, row.refused) for row in platform.rows] == [(3, 1)] * 2
    assert platform.calls["publish"] == 4


@pytest.mark.parametrize("seed", range(4))
def test_late_updates_are_credited_once_to_the_round_that_is_open(seed: int) -> None:
    platform = Platform(
        6, rounds=4, late="credit", target=4, quorum=2, deadline=600.0, keep=0, select="all",
        chance=random.Random(seed),
        pace=lambda device, number: 50.0 + 90.0 * (int(device[1:]) % 6) + number,
    )  # fmt: skip
    lived(platform)
    counted_once(platform)
    assert sum(row.credited for row in platform.rows) > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_buffered_run_counts_each_update_once(seed: int) -> None:
    platform = Platform(
        6, rounds=6, mode="buffered", target=2, quorum=2, deadline=900.0, keep=0, lease=5.0,
        chance=random.Random(seed), pace=lambda device, number: 20.0 + 31.0 * (int(device[1:]) + number % 3),
    )  # fmt: skip
    lived(platform)
    counted_once(platform)


def counted_once(platform: Platform) -> None:
    rounds = platform.ledger.rounds("r")
    assert {round.phase for round in rounds} == {Phase.DONE}
    counts: Counter[str] = Counter()
    for round in rounds:
        here = {a.seat: a for a in platform.ledger.arrivals(place(round)).values()}
        counts.update([*(here[seat].key for seat in round.arrived), *round.credits])
    assert set(counts.values()) == {1}
    assert max(Counter(platform.trained()).values()) == 1


def test_a_private_run_is_folded_by_one_function_and_spends_no_more_than_it_says() -> None:
    platform = lived(Platform(rounds=3, noise=1.0, clip=1.0, quorum=1.0))
    assert platform.calls["fold_shard"] == 0
    assert [release.round for release in platform.ledger.releases("r")] == [1, 2, 3]


# Rounds that somebody asks for


def test_one_more_round_is_one_more_round() -> None:
    platform = lived(Platform(rounds=2))
    for more in (3, 4):
        execution = platform.start(f"by schedule {more}", rounds=1)
        platform.live()
        assert execution.ended == "SUCCEEDED"
        assert platform.run().round == more
    world = World(rounds=4)
    world.live()
    assert platform.model() == world.model()


def test_an_execution_gives_a_run_more_to_do_once() -> None:
    platform = lived(Platform(rounds=1))
    for _ in range(3):
        platform.invoke("initiate", {"run": "r", "rounds": 1, "token": "t", "execution": "x"})
    assert platform.run().settings.rounds == 2
    platform.start("y")
    platform.live()
    assert platform.run().round == 2
    platform.invoke("initiate", {"run": "r", "rounds": 1, "token": "u", "execution": "x"})
    assert platform.run().settings.rounds == 2, "its first state timed out just as the run ended"


def test_a_run_that_has_ended_ends_an_execution_at_once() -> None:
    platform = lived(Platform(rounds=1))
    assert lived(platform).run().round == 1
    assert platform.executions["e"].visited.count("Open") == 1


def test_a_run_that_is_not_there_is_no_reason_to_try_again() -> None:
    platform = Platform(rounds=1)
    with pytest.raises(BadConfig):
        platform.invoke("initiate", {"run": "other", "token": "t"})
    platform.invoke("tick", {"run": "other"})
    assert platform.ignored == ["message for run 'other', which is not here"]


def test_a_run_whose_settings_name_what_no_function_has_fails_and_says_so() -> None:
    platform = Platform(rounds=1, select="mine:rule")
    execution = platform.start()
    platform.live()
    assert execution.ended == "FAILED"
    assert "mine" in platform.run().reason


# Waiting for devices


def absent(platform: Platform) -> None:
    gone = [
        (layout.device(d.name), encode(with_says(d, Presence(device=d.name, online=False))))
        for d in platform.ledger.fleet()
    ]
    platform.records.put_many(gone)


def with_says(device: Any, presence: Presence) -> Any:
    from msgspec.structs import replace

    return replace(device, says=presence)


def test_a_quorum_that_is_a_count_is_waited_for_and_the_last_device_that_comes_opens_the_round() -> None:
    platform = Platform(3, rounds=1, quorum=3)
    absent(platform)
    platform.start(patience=86_400)
    while platform._happens():
        pass
    assert platform.ledger.rounds("r") == []
    assert "0 of 3 devices are there" in platform.run().reason
    assert platform.alarms, "it is looked at again also if nobody says that he came"
    for number, device in enumerate(("d0", "d1", "d2")):
        assert platform.ledger.rounds("r") == []
        platform.lifecycle(device, "connected", platform.now + number, 0)
        while platform._happens():
            pass
    platform.live()
    assert phases(platform) == [("train", Phase.DONE)]
    assert platform.calls["tick"] == 0


def test_rounds_that_are_paced_are_opened_when_they_are_due() -> None:
    platform = lived(Platform(rounds=3, cadence=3_600.0))
    opened = [round.opened_at for round in platform.ledger.rounds("r")]
    assert [b - a for a, b in pairwise(opened)] == [pytest.approx(3_600, abs=60)] * 2
    assert platform.executions["e"].visited.count("Open") == 3


# What the workflow is told


def standing(**about: Any) -> workflow.Standing:
    return workflow.Standing(**{"run": "r", "phase": "next", "round": 1, **about})


def test_a_token_is_told_once_and_a_newer_one_is_kept() -> None:
    platform = Platform(rounds=1)
    told: list[str] = []

    class Machine:
        def tell(self, token: str, said: bytes) -> None:
            told.append(token)
            workflow.keep(platform.records, "r", lambda old: workflow.Wait(token="newer"))

    workflow.keep(platform.records, "r", lambda old: workflow.Wait(token="old"))
    waits = workflow.waiting(platform.records, "r")
    assert waits is not None
    workflow.tell(platform.records, Machine(), waits, standing())
    assert told == ["old"]
    kept = workflow.waiting(platform.records, "r")
    assert kept is not None
    assert kept.token == "newer"
    assert workflow.runs(platform.records) == ["r"]


def test_who_dies_after_it_told_a_token_leaves_it_to_the_next_turn_to_forget_it() -> None:
    platform = Platform(rounds=1)
    platform.victim = "publish"
    lived(platform)
    assert workflow.waiting(platform.records, "r") is None


@pytest.mark.parametrize(("seconds", "patience"), [(-5.0, 85), (-1e9, 60), (600.0, 690), (1e12, 31_536_000)])
def test_patience_is_what_a_state_may_wait(seconds: float, patience: int) -> None:
    assert workflow.patience(seconds) == patience


def test_a_stale_publish_of_a_round_that_is_over_changes_nothing() -> None:
    platform = Platform(rounds=3)
    asked: list[Any] = []
    plain = platform.invoke

    def noted(name: str, event: Any) -> Any:
        if name == "publish":
            asked.append(json.loads(json.dumps(event)))
        return plain(name, event)

    platform.invoke = noted  # type: ignore[method-assign]
    lived(platform)
    before = platform.model()
    platform.uploads.waiting.clear()
    again = platform.invoke("publish", asked[0])
    assert again["phase"] == "ended"
    assert platform.model() == before


# What devices ask for, and answer


def test_who_asks_for_fresh_addresses_gets_them_or_is_told_why_not() -> None:
    platform = Platform(2, rounds=1)
    platform.invoke("initiate", {"run": "r", "token": "t"})
    for round in (1, 2):
        ask = Ask(run="r", round=round, kind="train", device="d0")
        platform.say("d0", "ask", encode(ask))
        platform._deliver("status")
    assert [bool(grant.updates) for grant in platform.said] == [True, False]
    assert platform.said[1].reason == "there is no round 2 of run r"


def test_an_answer_is_found_by_whoever_asked_and_a_long_one_is_not_kept() -> None:
    platform = Platform(2, rounds=1)
    for id in ("1", "2"):
        errands.order(platform.records, Command(id=id, device="d0", what="cancel"), 0.0, 1e9)
    platform.say("d0", "answer", encode(Answer(id="1", device="d0", state="done")))
    platform.say("d0", "answer", encode(Answer(id="2", device="d0", state="done", reason="x" * 9_000)))
    platform.say("d0", "answer", encode(Answer(id="3", device="d0", state="done")))
    platform._deliver("status")
    first, second = errands.answer(platform.records, "1"), errands.answer(platform.records, "2")
    assert first is not None
    assert second is not None
    assert (first.state, second.state) == ("done", "failed")
    assert platform.ignored == ["answer to a command that nobody waits for"]


def test_a_refusal_and_a_failure_are_counted_against_their_round() -> None:
    platform = Platform(1, silent=2, rounds=1, quorum=1)
    platform.start()
    while platform._happens():
        pass
    for device, state in (("d1", "refused"), ("d2", "failed")):
        report = Report(run="r", round=1, kind="train", device=device, state=state, reason="no")  # type: ignore[arg-type]
        platform.say(device, "status", encode(report))
    platform.live()
    assert [(row.arrived, row.refused, row.phase) for row in platform.rows] == [(1, 2, "done")]
    assert platform.now == 1_000.0, "nobody waited for the deadline"


def test_letters_of_a_run_that_fails_come_again_and_nobody_elses_do(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = Platform(2, rounds=1)
    plain = steps.turn

    def turn(cloud: Any, name: str, *about: Any, **more: Any) -> None:
        if name == "broken":
            raise RuntimeError("of this run alone")
        plain(cloud, name, *about, **more)

    monkeypatch.setattr(steps, "turn", turn)
    keys = [layout.update(layout.round(run, 1, "train"), "d0") for run in ("r", "broken", "r")]
    for key in keys:
        platform._stored(key)
    platform.queues["collect"][0] = platform.queues["collect"][0].__class__("unreadable", "{", 0.0)
    event = {"Records": [{"messageId": m.id, "body": m.body} for m in platform.queues["collect"]]}
    failed = platform.do("collect", event, Faults(None, simulated_death))
    assert failed == [platform.queues["collect"][1].id]
    assert "of this run alone" in platform.troubles[0]
    assert any(reason.startswith("notification that is none") for reason in platform.ignored)


def test_no_handler_is_longer_than_fifteen_lines() -> None:
    tree = ast.parse(Path(handlers.__file__).read_text())
    found = {
        node.name: node.end_lineno - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }
    assert {"initiate", "collect", "status", "tick", "fold_shard", "publish"} <= found.keys()
    assert max(found.values()) <= 15


# Several runs


def opened(platform: Platform, run: str) -> list[tuple[float, float]]:
    return [(round.opened_at, round.ended_at) for round in platform.ledger.rounds(run)]


@pytest.mark.parametrize("order", [("r", "s"), ("s", "r")])
def test_of_two_runs_the_one_that_was_begun_first_has_the_devices_and_the_other_says_so(
    order: tuple[str, str],
) -> None:
    platform = Platform(3, rounds=3, pace=lambda device, round: 5.0)
    platform.now += 1.0
    platform.open("s")
    for run in order:
        platform.start(run, run=run)
        platform._happens()
    while not platform.ledger.rounds("s") or not platform.ledger.rounds("r"):
        found = platform.ledger.run(order[1])
        assert found is not None
        if found[0].reason.startswith("waiting"):
            assert found[0].reason == f"waiting to open round 1: run {order[0]} has the devices"
        if not platform._happens():
            platform._sleep()
    platform.live()
    rounds = sorted([*opened(platform, "r"), *opened(platform, "s")])
    assert len(rounds) == 6
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(rounds)), "never two at once"
    assert opened(platform, "r")[-1] < opened(platform, "s")[-1]
    for run in ("r", "s"):
        found = platform.ledger.run(run)
        assert found is not None
        assert (found[0].state, found[0].version) == (RunState.DONE, 3)


def test_a_run_whose_execution_was_aborted_is_not_waited_for_for_ever() -> None:
    platform = Platform(3, rounds=1, deadline=60.0)
    platform.open("s")
    aborted = platform.start("r", patience=150)
    platform.agents.clear()
    aborted.advance()
    del platform.executions["r"]
    assert workflow.under_way(platform.records, platform.now) == ["r"]
    platform.now += 150.0 + workflow.FOLDING + 1.0
    assert workflow.under_way(platform.records, platform.now) == []


def test_what_fails_in_a_run_that_waits_does_not_keep_the_one_before_it_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    platform = Platform(3, rounds=1, pace=lambda device, round: 5.0)
    platform.now += 1.0
    platform.open("s")
    first = platform.start("r", run="r")
    platform._happens()
    platform.start("s", run="s")
    whole = steps.turn

    def broken(cloud: Any, name: str, *more: Any, **named: Any) -> None:
        if name == "s" and not named:  # neither begun nor woken: because the other has ended
            raise RuntimeError("the other run's trouble")
        whole(cloud, name, *more, **named)

    monkeypatch.setattr(steps, "turn", broken)
    while not first.ended:
        if not platform._happens():
            platform._sleep()
    assert first.ended == "SUCCEEDED"
    monkeypatch.undo()
    platform.live()
    found = platform.ledger.run("s")
    assert found is not None
    assert found[0].state is RunState.DONE
    assert any("trouble" in said for said in platform.troubles), platform.troubles


@pytest.mark.parametrize(("what", "state"), [("pause", RunState.PAUSED), ("stop", RunState.STOPPED)])
def test_a_run_that_is_paused_or_stopped_ends_its_execution_and_another_goes_on_with_it(
    what: Wish, state: RunState
) -> None:
    platform = Platform(3, silent=what == "stop", rounds=3, deadline=600.0)
    execution = platform.start()
    while platform.ledger.round("r", 1) is None:
        platform._happens()
    wish(platform.ledger, "r", what)
    platform.invoke("tick", {"run": "r"})
    platform.live()
    assert (execution.ended, platform.run().state) == ("SUCCEEDED", state)
    extend(platform.ledger, "r", None)
    platform.start("again")
    platform.live()
    assert (platform.run().state, platform.run().round) == (RunState.DONE, 3)
    assert platform.run().version == (3 if what == "pause" else 2)
