"""A run whose app sends messages, on a simulated platform: functions take in, the app's process elsewhere
opens exchanges and reads the answers."""

from typing import Any

import numpy as np
import pytest

from fleetfold.adapters.memory import NoAlarm
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.opening import open_messages
from fleetfold.coordinator.policy import policies
from fleetfold.fold.plan import LAMBDA
from fleetfold.fold.tensors import Tensors, write
from fleetfold.ledger import Ledger
from fleetfold.round.run import RunState
from fleetfold.round.state import ENDED
from tests.aws.platform import Platform, Turn
from tests.talk import Parrot, Talk


class Both(Parrot):
    """A device of a fleet that has both kinds of apps."""

    def init(self, seed: int) -> Tensors:
        return {"w": np.zeros(7, np.float32)}


class Elsewhere:
    """The app's process, which speaks on the fleet's bus and hears nothing of it."""

    def __init__(self, platform: Platform, **settings: Any) -> None:
        self.platform, self.talk = platform, Talk(answerer=platform.trainer, **settings)
        names = [device.name for device in platform.ledger.fleet()]
        open_messages("m", "app", self.talk.settings, names, platform.ledger, platform.now)
        self.messenger = Messenger(
            "m", Ledger(platform.records, alone=False), platform.objects,
            Turn(platform.bus, (), platform.said), NoAlarm(), policies(self.talk.settings),
            lambda: platform.now, site=LAMBDA,
        )  # fmt: skip
        self.talk.objects = platform.objects

    def live(self, exchanges: int = 3) -> bytes:
        model = write({"w": np.zeros(7, np.float32)})
        for number in range(1, exchanges + 1):
            self.messenger.send(number, self.talk.outgoing(model, number), self.talk.terms)
            for _ in range(1_000):
                found = self.messenger.round(number)
                assert found is not None
                if found.phase in ENDED:
                    break
                if not self.platform._happens():
                    wake = self.messenger.step()
                    self.platform.now = max(self.platform.now, min(wake, self.platform.now + 1))
            model = self.talk.averaged(self.messenger, number, model)
        self.messenger.end(RunState.DONE, "the app has ended")
        while self.platform._happens():
            pass
        return model


def alone() -> bytes:
    """What the same app comes to on one machine, under the same names."""
    talk = Talk()
    talk.live()
    return talk.model


def test_exchanges_over_functions_come_to_what_they_come_to_on_one_machine() -> None:
    platform = Platform(trainer=Both(), rounds=1)
    elsewhere = Elsewhere(platform)
    assert elsewhere.live() == alone()
    told = [(row.kind, row.round, row.arrived) for row in platform.rows]
    assert told == [("message", 1, 4), ("message", 2, 4)], "of the last one when somebody looks again"
    platform.invoke("tick", {"run": "m"})
    assert platform.rows[-1].round == 3
    assert platform.troubles == []
    assert (platform.calls["publish"], platform.calls["initiate"]) == (0, 0)


@pytest.mark.parametrize("name", ["collect", "status"])
def test_a_function_that_dies_at_any_write_or_meets_itself_there_changes_nothing(name: str) -> None:
    counting = Platform(trainer=Both(), rounds=1)
    counting.victim = name
    expected = Elsewhere(counting).live()
    for at in range(1, counting.steps[name] + 1):
        for meets in (False, True):
            platform = Platform(trainer=Both(), rounds=1)
            platform.victim, platform.at, platform.meets = name, at, meets
            assert Elsewhere(platform).live() == expected
            assert len(platform.trainer.answered) == 12, "nothing was answered twice"


def test_silent_devices_are_waited_for_until_the_deadline_and_no_longer() -> None:
    platform = Platform(devices=3, silent=1, trainer=Both(), rounds=1)
    elsewhere = Elsewhere(platform, quorum=2)
    elsewhere.live(exchanges=1)
    assert [reply.device for reply in elsewhere.messenger.replies(1)] == ["d0", "d1", "d2"]
    assert platform.now >= 1_060.0
