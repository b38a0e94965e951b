"""A run of Flower's as one of ours: what becomes of a message, whoever dies, leaves or is late."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from fleetfold import Device, layout
from fleetfold.agent.app import App
from fleetfold.agent.trainer import Answered, Model, Trainer
from fleetfold.coordinator.opening import open_messages
from fleetfold.errors import BadConfig
from fleetfold.flower.bridge.lines import Back, Forward
from fleetfold.flower.bridge.post import PREFIX, Fleet, FleetPost
from fleetfold.flower.bridge.run import OVERDUE, Limits
from fleetfold.fold.tensors import read, write
from fleetfold.ledger import Ledger
from fleetfold.messages import Envelope, Presence, Task
from fleetfold.ports import Control
from fleetfold.round.fleet import heard
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.wiring import local
from fleetfold.wiring.local import Place
from tests.talk import Parrot

LIMITS = Limits(patience=600.0, away=60.0, idle=100.0)
ME = "link.example:9092"


class Site:
    """Devices a and b in this process, a post to them, and a clock. `hubs`: somebody else has the bus."""

    def __init__(self, home: Path, *, hubs: bool = False) -> None:
        self.home, self.now, self.hubs, self.sent, self.others = home, 1_000.0, hubs, 0, False
        self.parrot = Parrot()
        self.open_again()

    def open_again(self) -> None:
        """The bridge anew, as after its death."""
        fleet = Fleet(
            home=self.home, where="here", open=self._open, drive=self._drive, waiting=lambda run: self.others
        )
        self.post = FleetPost(fleet, ME, LIMITS, lambda: self.now)

    def _open(self, place: Place, forward: Forward) -> Run:
        settings = Settings(devices=2, app=forward.settings)
        return open_messages(place.run, ME, settings, ["a", "b"], local.ledger(place), self.now)

    @contextmanager
    def _drive(self, place: Place, run: Run) -> Iterator[tuple[Control | None, Callable[[], None]]]:
        yield None if self.hubs else local.control(place), lambda: None

    def message(
        self, device: str = "a", run: int = 7, value: float = 1.0, seconds: float = 3_600.0
    ) -> Forward:
        self.sent += 1
        file = self.home / f"{self.sent}.safetensors"
        file.write_bytes(write({"w": np.full(3, value, np.float32)}))
        records = [["config", "config", [["server-round", 2]]], ["arrays", "arrays", "", {}]]
        about = Envelope(id=f"m{self.sent}", type="train", app="print", records=records)
        return Forward(
            device=device, run=run, message=about, settings={"lr": 0.5}, file=str(file),
            digest=hashlib.sha256(file.read_bytes()).hexdigest(), size=file.stat().st_size,
            until=self.now + seconds,
        )  # fmt: skip

    def sent_now(self, device: str = "a", **about: float) -> Forward:
        forward = self.message(device, **about)  # type: ignore[arg-type]
        self.post.take(forward)
        self.post.step()
        return forward

    def work(self, run: int = 7, trainer: object = None) -> None:
        """Have the devices do what they are asked for."""
        self.devices_work(run, trainer)
        self.post.step()

    def devices_work(self, run: int = 7, trainer: object = None) -> None:
        devices = [Device(name=name, index=k, count=2) for k, name in enumerate("ab")]
        app = App("parrots", "", "")
        fleet = local.fleet(
            self.place(run), self.run(run).settings, app, cast(Trainer, trainer or self.parrot), devices,
            lambda: 0.0, "worker", "1",
        )  # fmt: skip
        for task in fleet.link.tasks():
            fleet.agents[task.device].handle(task)
        fleet.link.flush()

    def place(self, run: int = 7) -> Place:
        return Place(self.home, f"{PREFIX}{run}")

    def ledger(self, run: int = 7) -> Ledger:
        return local.ledger(self.place(run))

    def run(self, run: int = 7) -> Run:
        found = self.ledger(run).run(self.place(run).run)
        assert found
        return found[0]

    def goes(self, device: str, *, online: bool = False) -> None:
        ledger = self.ledger()
        says = Presence(device=device, online=online)
        ledger.save_devices([heard(entry, says, self.now) for entry in ledger.devices([device])])

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.post.step()
        self.post.step()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def error(back: Back | None) -> tuple[int, str]:
    assert back is not None
    assert back.message.error is not None
    return back.message.error


def test_a_message_is_an_exchange_of_a_run_that_is_called_like_flowers(site: Site) -> None:
    asked = site.sent_now()
    assert site.post.back(asked) is None
    site.work()
    back = site.post.back(asked)
    assert back is not None
    assert back.message.reply_to == asked.message.id
    assert read(Path(back.file).read_bytes())[0]["w"].shape == (3,)
    (round,) = site.ledger().rounds("flower-7")
    assert (round.label, round.turn, round.invited) == ("train", 2, 1)
    assert (site.run().app, site.run().settings.app) == (ME, {"lr": 0.5})


def test_a_message_that_is_asked_again_is_the_same_exchange_also_of_another_process(site: Site) -> None:
    asked = site.sent_now()
    site.post.take(asked)
    site.open_again()
    site.post.take(asked)
    site.work()
    first = site.post.back(asked)
    site.open_again()
    site.post.take(asked)
    site.work()
    assert site.post.back(asked) == first
    assert site.parrot.answered == [("a", 1)]


def test_what_was_answered_while_the_bridge_was_away_is_not_trained_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    asked = site.sent_now()
    site.devices_work()
    site.open_again()
    site.post.take(asked)
    site.post.step()
    site.post.step()
    assert site.post.back(asked) is not None
    site.work()
    assert site.parrot.answered == [("a", 1)]


def test_messages_to_two_devices_are_under_way_together(site: Site) -> None:
    a, b = site.sent_now("a"), site.sent_now("b")
    site.work()
    assert site.post.back(a)
    assert site.post.back(b)
    assert sorted(site.parrot.answered) == [("a", 1), ("b", 2)]


def test_a_content_that_goes_to_many_is_kept_once(site: Site) -> None:
    site.sent_now("a")
    site.sent_now("b")
    assert len(list((site.home / layout.contents("flower-7")).iterdir())) == 1


def test_a_device_that_does_not_answer_is_an_error_when_its_time_is_over(site: Site) -> None:
    asked = site.sent_now()
    site.passes(601.0)
    assert error(site.post.back(asked)) == (5, "a did not answer within 600 s")


def test_a_messages_own_time_bounds_the_wait(site: Site) -> None:
    asked = site.sent_now(seconds=30.0)
    site.passes(31.0)
    assert error(site.post.back(asked)) == (5, "a did not answer within 30 s")


def test_a_device_that_is_not_there_is_waited_for_shortly(site: Site) -> None:
    site.sent_now("b")  # the run is there, and so is its fleet
    site.goes("a")
    asked = site.sent_now("a")
    site.passes(59.0)
    assert site.post.back(asked) is None
    site.passes(2.0)
    assert error(site.post.back(asked)) == (5, "a did not answer within 60 s")


def test_a_device_that_is_off_and_comes_in_time_answers(site: Site) -> None:
    site.sent_now("b")
    site.goes("a")
    asked = site.sent_now("a")
    site.passes(30.0)
    site.goes("a", online=True)
    site.work()
    back = site.post.back(asked)
    assert back is not None
    assert back.message.error is None


def test_a_device_that_leaves_at_work_is_waited_for_shortly_and_free_when_it_has_answered(site: Site) -> None:
    asked = site.sent_now("a")
    site.goes("a")
    site.passes(10.0)
    site.passes(55.0)
    assert site.post.back(asked) is None
    site.passes(10.0)
    assert error(site.post.back(asked)) == (5, "a has left, and was not there again within 60 s")
    site.goes("a", online=True)
    later = site.sent_now("a")
    site.work()  # what it had been asked for first
    site.passes(1.0)
    site.work()
    back = site.post.back(later)
    assert back is not None
    assert back.message.reply_to == later.message.id
    assert error(site.post.back(asked))[0] == 5


class Failing:
    def answer(self, task: Task, content: Model, device: Device, state: bytes) -> Answered:
        raise ZeroDivisionError("no data")


def test_a_device_whose_app_fails_is_an_error_that_says_why(site: Site) -> None:
    asked = site.sent_now()
    site.work(trainer=Failing())
    code, why = error(site.post.back(asked))
    assert code == 2
    assert why.startswith("a: ")
    assert "no data" in why


def test_where_no_hub_is_at_the_run_that_is_told_after_the_deadline(tmp_path: Path) -> None:
    site = Site(tmp_path, hubs=True)
    asked = site.sent_now()
    site.passes(600.0 + OVERDUE - 1)
    assert site.post.back(asked) is None
    site.passes(2.0)
    code, why = error(site.post.back(asked))
    assert code == 5
    assert "fleetfold hub status" in why


def test_a_run_without_messages_ends_and_another_message_opens_it_again(site: Site) -> None:
    asked = site.sent_now()
    site.work()
    assert site.post.back(asked)
    site.passes(99.0)
    assert site.run().state is RunState.RUNNING
    site.passes(2.0)
    assert (site.run().state, site.run().reason) == (RunState.DONE, "no message came any more")
    asked = site.sent_now()
    assert site.run().state is RunState.RUNNING
    site.work()
    assert site.post.back(asked)
    assert [round.number for round in site.ledger().rounds("flower-7")] == [1, 2]


def test_a_run_ends_sooner_where_others_wait(site: Site) -> None:
    asked = site.sent_now()
    site.work()
    assert site.post.back(asked)
    site.others = True
    site.passes(61.0)
    assert site.run().state is RunState.DONE


def test_a_run_whose_device_is_at_work_does_not_end(site: Site) -> None:
    asked = site.sent_now()
    site.passes(500.0)
    assert site.run().state is RunState.RUNNING
    site.work()
    assert site.post.back(asked)


def test_a_bridge_that_is_stopped_ends_its_runs_and_one_that_was_killed_does_not(site: Site) -> None:
    asked = site.sent_now()
    site.work()
    assert site.post.back(asked)
    site.open_again()
    assert site.run().state is RunState.RUNNING
    site.passes(101.0)
    assert site.run().state is RunState.DONE
    site.sent_now()
    site.post.close()
    assert (site.run().state, site.run().reason) == (RunState.DONE, "the bridge was ended")


def test_each_of_flowers_runs_is_a_run_of_its_own(site: Site) -> None:
    one, two = site.sent_now("a", run=7), site.sent_now("b", run=8)
    site.work(7)
    site.work(8)
    assert site.post.back(one)
    assert site.post.back(two)
    assert site.parrot.answered == [("a", 1), ("b", 1)]


def test_what_nobody_asks_for_any_more_is_removed(site: Site) -> None:
    for number in range(24):
        asked = site.sent_now(value=float(number))
        site.work()
        assert site.post.back(asked)
    assert len(list((site.home / layout.contents("flower-7")).iterdir())) <= 17
    assert len(list((site.home / "runs" / "flower-7" / "rounds").glob("*/updates/*"))) <= 17
    site.open_again()
    asked = site.sent_now()
    site.work()
    assert site.post.back(asked)


def test_a_file_that_is_not_what_was_said_is_no_message(site: Site) -> None:
    asked = site.message()
    Path(asked.file).write_bytes(b"cut")
    with pytest.raises(BadConfig, match="has 3 bytes"):
        site.post.take(asked)
