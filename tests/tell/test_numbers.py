"""The numbers of a round: which there are, and that everybody is told the same by the same names."""

import math
import re
import shutil
import subprocess

import pytest
from msgspec.structs import replace

from fleetfold.adapters.memory import MemoryObjects, MemoryRecords
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.messages import Presence
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import Phase, Policy, Round
from fleetfold.settings import Settings
from fleetfold.tell.numbers import NUMBERS, SIX, of
from fleetfold.tell.prometheus import Exposed, prometheus
from fleetfold.view import Following, rows
from tests.tell.hostile import TEXTS, row
from tests.world import World

RUN = Run(name="r-1", app="app", settings=Settings(), started_at=1_000.0, round=2)


@pytest.fixture(scope="module")
def lived() -> World:
    world = World(devices=3, silent=1, rounds=3, quorum=2, deadline=60.0, evaluate="cohort")
    world.live()
    return world


def test_a_round_has_the_six_numbers_and_what_they_say_is_what_the_ledger_says(lived: World) -> None:
    first = rows(lived.ledger, lived.objects, "r", lived.now)[0]
    found = of(first)
    assert {number.name for number in SIX} - found.keys() == {"reported_accuracy"}  # nobody reported one
    assert (found["devices_used"], found["responses_ok"], found["responses_failed"]) == (3, 3, 1)
    assert found["reported_loss"] == first.metrics["trained"]["loss"]
    assert found["run_seconds"] == first.seconds == first.ended_at - first.opened_at


def test_an_evaluation_has_scores_and_takes_nothing_of_the_training(lived: World) -> None:
    evaluation = next(r for r in rows(lived.ledger, lived.objects, "r", lived.now) if r.kind == "evaluate")
    found = of(evaluation)
    assert found["reported_accuracy"] == evaluation.metrics["devices"]["accuracy"]
    assert not {number.name for number in NUMBERS if number.adds} & found.keys()


def test_what_devices_say_of_the_model_they_were_given_comes_before_what_they_say_of_training() -> None:
    assert of(row())["reported_loss"] == 0.5
    assert of(row(metrics={"trained": {"loss": 9.0}}))["reported_loss"] == 9.0
    assert of(row(metrics={"test": {"loss": 1.0}, "devices": {"loss": None}})).get("reported_loss") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_left_out(value: float | None) -> None:
    assert "loss" not in of(row(loss=value))
    assert "fleetfold_loss" not in prometheus([(RUN, [row(loss=value)])])


def test_who_follows_a_run_sees_each_row_change_until_it_has_ended(lived: World) -> None:
    following = Following(lived.ledger, lived.objects, "r")
    whole = rows(lived.ledger, lived.objects, "r", lived.now)
    assert following.look(lived.now) == following.look(lived.now) == whole


def test_who_follows_from_the_beginning_misses_no_round() -> None:
    world = World(devices=2, rounds=3, evaluate="cohort")
    following = Following(world.ledger, world.objects, "r")
    assert following.look(world.now) == []
    for step in range(1, 400, 3):
        world.live(step)
        seen = [(r.round, r.kind, r.phase) for r in following.look(world.now)]
        whole = [(r.round, r.kind, r.phase) for r in rows(world.ledger, world.objects, "r", world.now)]
        assert seen == whole
        if world.run().state is not RunState.RUNNING:
            break
    assert len(seen) == 6


def test_an_answer_that_comes_late_is_in_the_row_of_an_exchange_that_has_just_ended() -> None:
    ledger = Ledger(MemoryRecords())
    ended = Round(
        run="r", number=1, kind="message", cohort="c", base=0, batch="b", invited=2, opened_at=1.0,
        policy=Policy(target=1, quorum=1, deadline=9.0), arrived=frozenset({0}), phase=Phase.DONE,
    )  # fmt: skip
    assert ledger.save_round(ended, 0)
    following = Following(ledger, MemoryObjects(), "r")
    assert [(r.arrived, r.late) for r in following.look(2.0)] == [(1, 0)]
    ledger.save_arrivals(place(ended), [Arrival(device="b", seat=1, state="late")])
    assert [(r.arrived, r.late) for r in following.look(3.0)] == [(1, 1)]


def page() -> str:
    says = Presence(device="a")
    gone = replace(says, online=False)
    fleet = [Device(name="a", says=says), Device(name="b", says=gone), Device(name="c")]
    open_now = row(3, phase="open", arrived=1, ended_at=0.0)
    return prometheus([(RUN, [row(1), row(2, cost=0.25), open_now])], fleet)


def test_prometheus_is_told_the_newest_of_each_number_and_the_sum_of_those_that_add_up() -> None:
    lines = page().splitlines()
    for line in (
        'fleetfold_reported_loss{run="r-1"} 0.25', 'fleetfold_devices_used{run="r-1"} 3',
        'fleetfold_devices_used_total{run="r-1"} 6', 'fleetfold_run_seconds_total{run="r-1"} 5',
        'fleetfold_cost_total{run="r-1"} 0.25', 'fleetfold_rounds_total{run="r-1",phase="done"} 2',
        'fleetfold_rounds_total{run="r-1",phase="failed"} 0', 'fleetfold_run_running{run="r-1"} 1',
        'fleetfold_round_arrived{run="r-1"} 1', 'fleetfold_round_invited{run="r-1"} 4',
        "fleetfold_devices_known 2", "fleetfold_devices_online 1", "fleetfold_devices_available 1",
    ):  # fmt: skip
        assert line in lines
    for number in SIX:
        assert f"fleetfold_{number.name}" in page()


def test_a_page_that_is_asked_for_again_tells_of_what_is_there_by_then(lived: World) -> None:
    fresh = World(devices=2, rounds=1)
    worlds = {"r": fresh}
    exposed = Exposed(lambda: [*worlds], lambda name: (worlds[name].ledger, worlds[name].objects, None))
    assert 'fleetfold_rounds_total{run="r",phase="done"} 0' in exposed.page(fresh.now)
    fresh.live()
    assert 'fleetfold_rounds_total{run="r",phase="done"} 1' in exposed.page(fresh.now)
    worlds.clear()
    assert exposed.page(fresh.now) == ""


_LINE = re.compile(
    r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="([^"\\]|\\["\\n])*"(,\w+="([^"\\]|\\["\\n])*")*\})? -?[0-9.e+-]+'
)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_no_text_breaks_out_of_its_label(text: str) -> None:
    told = prometheus([(replace(RUN, name=text), [row(reason=text)])])
    assert "\x1b" not in told
    assert all(_LINE.fullmatch(line) for line in told.split("\n")[:-1])
    assert len(told.encode()) < 20_000


@pytest.mark.tools
def test_promtool_finds_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "apt-get install prometheus"
    for told in (page(), prometheus([(replace(RUN, name=text), [row()]) for text in TEXTS])):
        result = subprocess.run(
            [promtool, "check", "metrics"], input=told, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stdout + result.stderr) == (0, "")
