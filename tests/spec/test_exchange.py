"""An app of another framework sends messages: an exchange is a round, and survives what a round survives."""

from collections import Counter
from functools import cache

import msgspec
import numpy as np
import pytest

from fleetfold import layout
from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.agent.journal import Journal
from fleetfold.coordinator.exchange import Terms
from fleetfold.fold.tensors import read, write
from fleetfold.ledger import place
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.round.state import Phase
from tests.talk import Talk, header

STEPS = {apart: Talk(apart=apart).live() for apart in (False, True)}
ALIVE = Faults(None, simulated_death)


@cache
def undisturbed() -> bytes:
    talk = Talk()
    talk.live()
    assert talk.run().state is RunState.DONE
    return talk.model


def test_an_app_with_a_bus_of_its_own_and_one_without_come_to_the_same() -> None:
    talk = Talk(apart=True)
    talk.live()
    assert talk.model == undisturbed()
    assert [(r.number, r.phase, len(r.arrived)) for r in talk.ledger.rounds("r")] == [
        (n, Phase.DONE, 4) for n in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("apart", "at"),
    [(apart, at) for apart, every in ((False, 1), (True, 5)) for at in range(1, STEPS[apart] + 1, every)],
)
def test_everything_dies_at_this_step_and_the_app_begun_again_comes_to_the_same(apart: bool, at: int) -> None:
    talk = Talk(apart=apart)
    talk.live(at=at)
    finished = [key for key in talk.objects.list("runs/r/rounds/") if "/updates/" in key]
    before = len(talk.answerer.answered)
    talk.live()
    assert talk.model == undisturbed()
    again = {layout.update(layout.round("r", n, "message"), d) for d, n in talk.answerer.answered[before:]}
    assert not again.intersection(finished), "what had been delivered was answered again"
    assert {d.arrived for d in talk.ledger.fleet()} == {3}, "each device counted once an exchange"


def test_the_state_that_a_device_keeps_is_that_of_its_delivered_answers_alone() -> None:
    for at in range(1, STEPS[False] + 1, 3):
        talk = Talk()
        talk.live(at=at)
        talk.live()
        for device in talk.devices:
            journal = Journal(talk.journals, device.name, "")
            (entry,) = journal.open()
            assert journal.kept(entry.task) == b"...", f"after a death at step {at}"


def spoilt(change: str):  # type: ignore[no-untyped-def]
    """What becomes of the answers of d0, whose file is changed in that way."""

    def tamper(device: str, data: bytes) -> bytes:
        if device != "d0":
            return data
        tensors, about = read(data)
        said = msgspec.json.decode(about)
        tensors = {name: np.array(x) for name, x in tensors.items()}
        match change:
            case "nan":
                tensors["w"][3] = np.nan
            case "shape":
                tensors["w"] = tensors["w"][:3]
            case "name":
                tensors["v"] = tensors.pop("w")
            case "app":
                said["message"]["app"] = "v0"
            case "message":
                said["message"]["reply_to"] = "another"
            case "weight":
                del said["metrics"]["weight"]
            case "negative":
                said["metrics"]["weight"] = -1.0
            case "metrics":
                said["metrics"]["accuracy"] = 1.0
            case "cut":
                return data[:-2]
            case "text":
                return b"<html>"
        return write(tensors, msgspec.json.encode(said))

    return tamper


REASONS = {
    "nan": "not finite", "shape": "has the shape", "name": "is missing", "app": "another version of the app",
    "message": "it was asked", "weight": "reports no 'weight'", "negative": "is no weight",
    "metrics": "other metrics than most", "cut": "cut off", "text": "not a file of tensors",
}  # fmt: skip


@pytest.mark.parametrize("change", REASONS)
@pytest.mark.parametrize("fold", ["", "mean"])
def test_an_answer_that_is_not_what_it_has_to_be_is_left_out(change: str, fold: str) -> None:
    terms = Terms(timeout=60.0, alike=True, weight="weight", same_metrics=True, fold=fold)
    talk = Talk(tamper=spoilt(change), terms=terms, target=1.0, quorum=2)
    talk.live()
    messenger = talk.messenger(ALIVE)
    assert [reply.device for reply in messenger.replies(1)] == ["d1", "d2", "d3"]
    ((device, reason),) = messenger.refusals(1)
    assert device == "d0"
    assert REASONS[change] in reason


def test_wrong_names_nan_and_silence_leave_the_other_two() -> None:
    def tamper(device: str, data: bytes) -> bytes:
        tensors, about = read(data)
        if device == "d0":
            return write({"v": np.array(tensors["w"])}, about)
        if device == "d1":
            return write({"w": np.full_like(tensors["w"], np.nan)}, about)
        return data

    talk = Talk(devices=4, silent=1, exchanges=1, tamper=tamper, quorum=2)
    talk.live()
    round = talk.ledger.rounds("r")[0]
    assert round.phase is Phase.DONE
    assert "deadline passed" in round.reason
    assert [reply.device for reply in talk.messenger(ALIVE).replies(1)] == ["d2", "d3"]


def test_an_exchange_without_a_quorum_hands_over_nothing() -> None:
    talk = Talk(devices=1, silent=3, exchanges=1, quorum=3)
    talk.live()
    messenger = talk.messenger(ALIVE)
    assert messenger.replies(1) == []
    assert messenger.round(1).phase is Phase.FAILED  # type: ignore[union-attr]


def test_so_many_exchanges_without_a_quorum_in_a_row_are_hopeless() -> None:
    talk = Talk(devices=1, silent=3, exchanges=3, quorum=3, patience=3)
    talk.live()
    assert talk.messenger(ALIVE).hopeless().startswith("3 exchanges in a row failed; the last: ")
    assert Talk(devices=1, silent=3, exchanges=2, quorum=3).messenger(ALIVE).hopeless() == ""


def test_a_message_to_more_devices_than_the_app_wants_is_over_with_the_first_so_many_answers() -> None:
    talk = Talk(devices=3, silent=2, exchanges=1, terms=Terms(timeout=60.0, wanted=3))
    talk.live()
    round = talk.ledger.rounds("r")[0]
    assert (len(round.arrived), round.invited, talk.now) == (3, 5, 1_000.0)


def test_the_mean_of_the_answers_is_made_here_where_the_app_asks_for_it() -> None:
    terms = Terms(timeout=60.0, alike=True, weight="weight", fold="mean")
    talk = Talk(exchanges=1, terms=terms, shape=(50, 3))
    talk.live()
    messenger = talk.messenger(ALIVE)
    fold = messenger.fold(1)
    assert fold is not None
    mean = read(fetch(talk.objects, fold.key))[0]["w"]
    own = read(talk.averaged(messenger, 1, b""))[0]["w"]
    np.testing.assert_allclose(mean, own, atol=1e-6)
    assert header(fetch(talk.objects, fold.key)) == {"run": "r", "round": 1}


def test_answers_in_narrow_floats_are_not_folded_but_handed_over() -> None:
    def narrow(device: str, data: bytes) -> bytes:
        tensors, about = read(data)
        return write({"w": tensors["w"].astype(np.float16)}, about)

    talk = Talk(exchanges=1, terms=Terms(timeout=60.0, alike=True, fold="mean"), tamper=narrow)
    talk.live()
    messenger = talk.messenger(ALIVE)
    assert messenger.fold(1) is None
    assert len(messenger.replies(1)) == 4


def test_two_exchanges_are_open_at_once_with_devices_of_their_own() -> None:
    talk = Talk(exchanges=0)
    messenger = talk.messenger(ALIVE)
    sent = talk.outgoing(write({"w": np.zeros(7, np.float32)}), 1)
    messenger.send(1, sent[:2], talk.terms)
    messenger.send(2, talk.outgoing(write({"w": np.ones(7, np.float32)}), 2)[2:], talk.terms)
    assert messenger.busy() == {"d0", "d1", "d2", "d3"}
    agents = {d.name: talk.agent(d, ALIVE) for d in talk.devices}
    for task in talk.bus.link(list(agents)).tasks():
        agents[task.device].handle(task)
    messenger.step()
    assert [reply.device for n in (1, 2) for reply in messenger.replies(n)] == ["d0", "d1", "d2", "d3"]
    assert messenger.busy() == frozenset()


def test_a_bus_that_forgot_is_told_again_of_who_has_not_answered() -> None:
    talk = Talk(exchanges=0)
    messenger = talk.messenger(ALIVE)
    messenger.send(1, talk.outgoing(write({"w": np.zeros(7, np.float32)}), 1), talk.terms)
    link = talk.bus.link(["d0"])
    talk.agent(talk.devices[0], ALIVE).handle(link.tasks()[0])
    messenger.step()
    asked: list[str] = []
    talk.bus.invite = lambda tasks: asked.extend(task.device for task in tasks)  # type: ignore[method-assign,assignment]
    talk.messenger(ALIVE).repeat()
    assert asked == ["d1", "d2", "d3"]


def test_what_nobody_will_ask_for_again_is_removed() -> None:
    talk = Talk()
    talk.live()
    messenger = talk.messenger(ALIVE)
    newest = messenger.batch(3).sent[0].content
    messenger.retire(3, keep=[newest])
    updates = Counter(key.split("/")[3] for key in talk.objects.list("runs/r/rounds/") if "/updates/" in key)
    assert updates == {"000003-message": 4}
    assert talk.objects.list("runs/r/contents/") == [newest]
    messenger.retire(3, keep=[newest])
    assert [place(round) for round in talk.ledger.rounds("r")], "the records stay"


def test_what_an_app_may_ask_for_again_is_not_removed_with_what_came_after() -> None:
    talk = Talk()
    talk.live()
    talk.messenger(ALIVE).retire(3, after=1)
    updates = Counter(key.split("/")[3] for key in talk.objects.list("runs/r/rounds/") if "/updates/" in key)
    assert updates == {"000001-message": 4, "000003-message": 4}


@pytest.mark.parametrize("kept", [1, 3])
def test_a_fold_of_some_answers_says_whose_they_are(kept: int) -> None:
    terms = Terms(timeout=60.0, alike=True, weight="weight", fold="multi_krum", kept=kept)
    talk = Talk(exchanges=1, terms=terms)
    talk.live()
    fold = talk.messenger(ALIVE).fold(1)
    assert fold is not None
    _, about = read(fetch(talk.objects, fold.key))
    devices = msgspec.json.decode(about)["devices"]
    assert len(devices) == kept
    assert set(devices) <= set(talk.names)


def test_answers_that_weigh_nothing_together_are_not_folded() -> None:
    def tamper(device: str, data: bytes) -> bytes:
        tensors, about = read(data)
        said = msgspec.json.decode(about)
        said["metrics"]["weight"] = 0.0
        return write(tensors, msgspec.json.encode(said))

    for fold in ("mean", "multi_krum"):
        terms = Terms(timeout=60.0, alike=True, weight="weight", fold=fold, kept=2)
        talk = Talk(exchanges=1, terms=terms, tamper=tamper)
        with pytest.raises(ZeroDivisionError):  # the app's own
            talk.live()
        assert talk.messenger(ALIVE).fold(1) is None
        assert len(talk.messenger(ALIVE).replies(1)) == 4
