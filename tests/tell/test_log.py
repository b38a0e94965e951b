"""Logs: a line each, for people or for machines; and what a run's driver tells while it goes."""

import json
from io import StringIO
from pathlib import Path

import pytest

from fleetfold.ledger import Ledger, place
from fleetfold.log import Log
from fleetfold.round.run import RunState
from fleetfold.tell.journal import NAME
from fleetfold.tell.teller import Teller
from tests.tell.hostile import TEXTS
from tests.world import World


def test_a_line_is_an_object_with_run_round_device_and_reason_for_machines() -> None:
    out = StringIO()
    log = Log("json", out, clock=lambda: 12.3456, fleet="main")
    log("update refused", run="r", round=3, device="d0", reason="w is not finite", nothing=None, empty="")
    assert json.loads(out.getvalue()) == {
        "at": 12.346, "what": "update refused", "fleet": "main", "run": "r", "round": 3, "device": "d0",
        "reason": "w is not finite",
    }  # fmt: skip


def test_a_line_is_a_sentence_with_its_reason_for_people() -> None:
    out = StringIO()
    Log("text", out, fleet="main")("update refused", run="r", loss=0.123456789, reason="w is not finite")
    assert out.getvalue().partition(" ")[2] == "update refused (w is not finite) run=r loss=0.123457\n"


@pytest.mark.parametrize("shape", ["text", "json"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_whatever_a_device_says_is_one_line_that_no_terminal_obeys(text: str, shape: str) -> None:
    out = StringIO()
    Log(shape, out)(text, device=text, reason=text)
    [line] = out.getvalue().splitlines()
    assert line.isprintable()
    assert len(line) < 7_000


def test_a_log_that_nobody_reads_any_more_ends_nothing() -> None:
    out = StringIO()
    out.close()
    Log("text", out)("goes on")


def told(world: World, folder: Path, out: StringIO) -> Teller:
    return Teller(folder, Ledger(world.records), world.objects, "r", Log("json", out), lambda: world.now)


def test_rounds_are_told_as_they_open_and_end_each_once_whoever_dies_in_between(tmp_path: Path) -> None:
    out, world = StringIO(), World(devices=3, rounds=3, tamper=lambda d, u: b"\x00" * 9 if d == "d1" else u)
    for step in range(1, 400, 9):
        world.live(step)
        teller = told(world, tmp_path, out)
        teller.look()
        teller.look()
        teller.close()
        if world.run().state is not RunState.RUNNING:
            break
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["round"] for line in lines if line["what"] == "round done"] == [1, 2, 3]
    refused = [line for line in lines if line["what"] == "update refused"]
    assert [(line["run"], line["round"], line["device"]) for line in refused] == [
        ("r", n, "d1") for n in (1, 2, 3)
    ]
    assert all(line["reason"] for line in refused)
    assert len((tmp_path / NAME).read_text().splitlines()) == 3
    assert any(line["what"] == "round open" for line in lines)


def test_as_long_as_a_run_stands_its_teller_reads_one_small_record(tmp_path: Path) -> None:
    world = World(devices=2, rounds=2)
    world.live(20)
    read = list[str]()

    class Counting(Ledger):
        def arrivals(self, round: str) -> dict:  # type: ignore[type-arg]
            read.append(round)
            return super().arrivals(round)

    teller = Teller(tmp_path, Counting(world.records), world.objects, "r")
    teller.look()
    read.clear()
    for _ in range(5):
        teller.look()
    assert not read
    [round, *_] = world.ledger.rounds("r")
    assert place(round)
