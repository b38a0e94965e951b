"""What devices send: whatever it is, the round goes on, and what was refused is written down with why."""

import json
import re
from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from fleetfold import Trained, Work, layout
from fleetfold.adapters.memory import MemoryObjects, MemoryRecords
from fleetfold.coordinator.folding import average
from fleetfold.coordinator.intake import Intake, training
from fleetfold.fold.tensors import Tensors, read, write
from fleetfold.ledger import Ledger
from fleetfold.messages import Report, Timings, UpdateHeader, encode
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.round.state import Policy, Round
from tests.world import Walk, World


class Liar(Walk):
    """One of its devices, d1, returns `spoil` of what it trained."""

    def __init__(self, spoil: Callable[[Tensors], Tensors]) -> None:
        super().__init__()
        self.spoil = spoil

    def train(self, model: Tensors, work: Work) -> Trained:
        honest = super().train(model, work)
        if work.device.name != "d1":
            return honest
        return Trained(tensors=self.spoil(honest.tensors), examples=10_000)


def nan(tensors: Tensors) -> Tensors:
    w = tensors["w"].copy()
    w[3] = np.nan
    return {**tensors, "w": w}


def reason(world: World, round: int = 1) -> str:
    found = world.ledger.arrival(layout.round("r", round, "train"), "d1")
    assert found is not None
    assert found[0].state == "refused"
    if not found[0].reason.startswith("device refused"):
        written = fetch(world.objects, layout.quarantine(layout.round("r", round, "train"), "d1"))
        assert json.loads(written)["reason"] == found[0].reason
    return found[0].reason


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (nan, "not finite"),
        (lambda t: {**t, "w": t["w"] / np.float32(0)}, "not finite"),
        (lambda t: {k: v for k, v in t.items() if k != "steps"}, "'steps' is missing"),
        (lambda t: {**t, "w": t["w"].astype(np.float64)}, "'w' is F64"),
        (lambda t: {"v": t["w"], "steps": t["steps"], "none": t["none"]}, "is missing|is not in the model"),
        (lambda t: {"w": t["w"], "none": t["none"]}, "'steps' is missing"),
        (lambda t: {**t, "steps": t["steps"].astype(np.uint64)}, "'steps' is U64"),
        (lambda t: {**t, "w": t["w"][:5]}, r"'w' is F32\[5\], in the model F32\[7\]"),
    ],
)
@pytest.mark.parametrize("honest_agent", [True, False])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_bad_update_is_refused_by_the_agent_or_by_the_gate_and_the_round_goes_on_without_it(
    spoil: Callable[[Tensors], Tensors], said: str, honest_agent: bool
) -> None:
    def tamper(device: str, update: bytes) -> bytes:
        tensors, about = read(update)
        return write(spoil(tensors), about) if device == "d1" else update

    world = World(trainer=Liar(spoil), rounds=2) if honest_agent else World(tamper=tamper, rounds=2)
    world.live()
    assert world.run().state is RunState.DONE
    assert re.search(said, reason(world, 1))
    assert re.search(said, reason(world, 2))
    honest = World(rounds=2)
    honest.devices = [d for d in honest.devices if d.name != "d1"]
    honest.live()
    tensors, expected = read(world.model())[0], read(honest.model())[0]
    assert all(tensors[n].tobytes() == expected[n].tobytes() for n in expected), "it left no trace"


def test_a_device_whose_code_fails_says_where_and_the_round_goes_on() -> None:
    class Broken(Walk):
        def train(self, model: Tensors, work: Work) -> Trained:
            if work.device.name == "d1":
                raise ZeroDivisionError("no data today")
            return super().train(model, work)

    world = World(trainer=Broken(), rounds=1)
    world.live()
    found = world.ledger.arrival(layout.round("r", 1, "train"), "d1")
    assert found is not None
    assert found[0].reason.startswith("device failed: ")
    assert "ZeroDivisionError: no data today" in found[0].reason
    assert "test_intake.py line" in found[0].reason


def test_silence_is_waited_for_until_the_deadline_and_no_longer() -> None:
    world = World(silent=1, rounds=2, deadline=30.0)
    world.live()
    rounds = world.ledger.rounds("r")
    assert [r.reason for r in rounds] == ["folded 4 updates: deadline passed"] * 2
    assert [r.ended_at - r.opened_at for r in rounds] == [30.0, 30.0]


def test_rounds_without_a_quorum_fail_and_at_last_the_run_says_why() -> None:
    world = World(devices=1, silent=3, rounds=9, deadline=10.0, patience=3)
    world.live()
    assert world.run().state is RunState.FAILED
    assert world.run().reason == ("3 rounds in a row failed; the last: 1 update, quorum 2: deadline passed")
    assert world.run().version == 0, "the old model stands"


def test_reports_of_strangers_unknown_rounds_and_other_runs_are_counted_and_ignored() -> None:
    world = World(rounds=1)
    stranger = Report(run="r", round=1, kind="train", device="mallory", state="delivered")
    ignored: Counter[str] = Counter()
    coordinator = world.coordinator(_never(), ignored=lambda reason: ignored.update([reason]))
    coordinator.step()
    header = UpdateHeader(run="r", round=1, kind="train", device="mallory", examples=1)
    world.objects.put(layout.update(layout.round("r", 1, "train"), "mallory"), [write({}, encode(header))])
    for round, run in ((1, "r"), (7, "r"), (1, "other")):
        world.bus.post(Report(run=run, round=round, kind="train", device="mallory", state="delivered"))
    coordinator.step()
    assert world.bus.letters() == [], "acknowledged, or it would come for ever"
    assert ignored == {
        "report of a device that was not invited to its round": 1,
        "report for no round of run 'r' here": 1,
        "report for no round of run 'other' here": 1,
    }
    world.live()
    assert world.run().state is RunState.DONE
    note = fetch(world.objects, layout.quarantine(layout.round("r", 1, "train"), stranger.device))
    assert "was not invited" in json.loads(note)["reason"]


def test_a_file_that_changes_after_it_was_admitted_is_taken_out() -> None:
    world = World(rounds=1, target=1.0)
    coordinator = world.coordinator(_never())
    coordinator.step()
    link = world.bus.link(["d0", "d1", "d2"])
    for task in link.tasks():
        world.agent(next(d for d in world.devices if d.name == task.device), _never()).handle(task)
    coordinator.step()
    key = layout.update(layout.round("r", 1, "train"), "d1")
    world.objects.put(key, [fetch(world.objects, key)[:-12]])
    world.live()
    assert world.run().state is RunState.DONE
    assert "no longer the file that was admitted" in reason(world)


@pytest.mark.parametrize("seed", range(10))
def test_rounds_in_which_all_devices_but_one_send_spoilt_files_end_with_a_finite_model(seed: int) -> None:
    def tamper(device: str, update: bytes) -> bytes:
        chance, data = Random(f"{seed} {device} {len(update)}"), bytearray(update)
        for _ in range(chance.randrange(1, 9) if device != "d0" else 0):
            place = chance.randrange(len(data))
            data[place : place + chance.choice((0, 1, 1, 1, 9))] = chance.randbytes(
                chance.choice((0, 1, 1, 1, 9))
            )
        return bytes(data)

    world = World(devices=9, rounds=3, quorum=1, tamper=tamper)
    world.live()
    assert world.run().state is RunState.DONE
    assert world.run().version == 3
    assert np.isfinite(read(world.model())[0]["w"]).all()
    for number in (1, 2, 3):
        for arrival in world.ledger.arrivals(layout.round("r", number, "train")).values():
            assert arrival.reason.isprintable()


def test_what_a_report_says_cannot_write_to_a_terminal_nor_take_longer_than_time() -> None:
    world = World(rounds=1, target=1.0, devices=3)
    world.coordinator(_never()).step()
    for device, state in (("d0", "failed"), ("d1", "refused"), ("d2", "delivered")):
        took = Timings(download=1e308, compute=-1.0)
        world.bus.post(
            Report(
                run="r", round=1, kind="train", device=device, state=state, reason="\x1b[2J" * 999, took=took
            )
        )  # fmt: skip
    world.live()
    arrivals = world.ledger.arrivals(layout.round("r", 1, "train"))
    assert len(arrivals) == 3
    for arrival in arrivals.values():
        assert arrival.reason.isprintable()
        assert len(arrival.reason) < 600
        assert arrival.took == Timings()


def test_an_update_that_goes_while_it_is_judged_is_refused() -> None:
    class Going(MemoryObjects):
        def size(self, key: str) -> int | None:
            return super().size(key) or (99 if key.endswith("d1.safetensors") else None)

    policy = Policy(target=1, quorum=1, deadline=9.0)
    round = Round(run="r", number=1, base=0, cohort="c", invited=2, policy=policy, opened_at=0.0)
    report = Report(run="r", round=1, kind="train", device="d1", state="delivered")
    gate = training(round, None, World().settings)
    intake = Intake(Ledger(MemoryRecords()), Going(), round, {"d1": 0}, gate)
    judged = intake.judge([report], 1.0)
    assert judged["d1"].reason == "there is no update at runs/r/rounds/000001/updates/d1.safetensors"


@pytest.mark.parametrize("value", [1e308, -1e308])
def test_a_mean_of_metrics_that_overflows_is_none(value: float) -> None:
    assert average([({"loss": value}, 1 << 40)]) == {"loss": None}


def _never():  # type: ignore[no-untyped-def]
    from fleetfold.adapters.faults import Faults, simulated_death

    return Faults(None, simulated_death)
