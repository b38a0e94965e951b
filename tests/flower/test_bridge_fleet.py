"""A real SuperLink over TLS, two real SuperNodes with keys, two devices of a real hub on MQTT."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fleetfold.flower.bridge_keeper import standings
from fleetfold.flower.bridge_nodes import Link, keyed
from fleetfold.ledger import Ledger
from fleetfold.round.state import Phase, Round
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place
from tests.flower.superlink import SuperLink
from tests.hub import fleet as hub
from tests.hub.fleet import Fleet

pytestmark = pytest.mark.fleet
DIGITS = Path(__file__).parent / "apps" / "digits"
ROUNDS = 3
NOTES = """


import os
import time


class Noted(Digits):
    def __call__(self, message, context):
        about = f"{context.node_config['partition-id']} {message.metadata.message_id}"
        with open(os.path.join(os.environ["TRAINED"], about), "a") as file:
            file.write("begun ")
        time.sleep(float(os.environ["PAUSE"]))
        return super().__call__(message, context)


app = Noted()
"""


class Bridged:
    """A fleet of two, a SuperLink, and the bridge in between."""

    def __init__(self, folder: Path, fleet: Fleet, link: SuperLink) -> None:
        self.folder, self.fleet, self.link, self.home = folder, fleet, link, fleet.home
        self.place = fleet.home / "bridges" / Link(address=link.address).name
        self.runs = set[str]()

    def start(self, *words: str) -> None:
        command = [
            *hub.PROGRAM, "flower", "bridge", "--superlink", self.link.address,
            "--root-certificates", str(self.link.root), "--keys", str(self.folder / "keys"),
            *self.fleet.names, *words,
        ]  # fmt: skip
        with (self.fleet.folder / "bridge.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self.fleet.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(60) == 0

    def connected(self) -> bool:
        now = standings(self.place).values()
        return bool(now) and all(standing.state == "connected" for standing in now)

    def new_run(self) -> str:
        """The run of ours that a new run of Flower's is; "" until it has begun."""
        found = {path.parent.name for path in (self.home / "runs").glob("flower-*/ledger.db")} - self.runs
        return next(iter(found), "")

    def exchanges(self, run: str) -> list[Round]:
        ledger: Ledger = wiring.ledger(Place(self.home, run))
        return [round for round in ledger.rounds(run) if round.kind == "message"]

    def trained(self) -> list[str]:
        """How often each message was begun by its device."""
        return [path.read_text() for path in (self.folder / "trained").iterdir()]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridged]:
    folder = tmp_path_factory.mktemp("bridge")
    (folder / "trained").mkdir()
    app = folder / "digits"
    shutil.copytree(DIGITS, app, ignore=shutil.ignore_patterns("__pycache__"))
    with (app / "digitsapp" / "client_app.py").open("a") as file:
        file.write(NOTES)
    told = {"TRAINED": str(folder / "trained"), "PAUSE": "1.0"}
    hub.PROGRAM[:] = [sys.executable, "-m", "fleetfold"]
    with SuperLink(folder / "link") as link, Fleet(folder, app, devices=2, environment=told) as fleet:
        for name in fleet.names:
            private, _ = keyed(folder / "keys", name)
            link.register(private.with_name(f"{name}.pub"))
        bridged = Bridged(folder, fleet, link)
        bridged.start("--away", "6s")
        try:
            fleet.until(bridged.connected)
            yield bridged
        finally:
            bridged.stop()
        assert not standings(bridged.place)
        left = subprocess.run(["pgrep", "-f", str(bridged.place)], capture_output=True, check=False).stdout
        assert not left, "Ctrl-C ends all that the bridge has started"


def result(
    system: Bridged, name: str, during: Callable[[str], None] = lambda run: None
) -> tuple[str, np.ndarray]:
    """What `flwr run` streamed, and (accuracy, loss) of each round as the devices measured them. `during`:
    what happens meanwhile to the run of that name."""
    place = system.folder / f"{name}.npz"
    config = f'num-server-rounds={ROUNDS} devices=2 result="{place}"'
    submitted = system.link.submit(system.folder / "digits", config)
    run = system.fleet.until(system.new_run)
    system.runs.add(run)
    during(run)
    said, _ = submitted.communicate(timeout=300)
    assert submitted.returncode == 0, said
    assert place.exists(), said
    return said, np.load(place)["metrics"].reshape(ROUNDS, -1)


def test_three_rounds_of_fedavg_are_trained_by_two_devices_of_ours(system: Bridged) -> None:
    _, metrics = result(system, "plain")
    accuracy = metrics[:, 0]
    assert accuracy[-1] > accuracy[0]
    rounds = system.exchanges(max(system.runs))
    assert [round.phase for round in rounds] == [Phase.DONE] * (2 * 2 * ROUNDS)
    assert {(round.label, round.turn) for round in rounds} == {
        (label, turn) for label in ("train", "evaluate") for turn in range(1, ROUNDS + 1)
    }


def test_a_bridge_that_is_killed_goes_on_and_nothing_is_trained_twice(system: Bridged) -> None:
    before = len(system.trained())

    def killed(run: str) -> None:
        fleet = system.fleet
        fleet.until(lambda: len(system.trained()) >= before + 6)  # in the second round
        system.kill()
        updates = system.home / "runs" / run / "rounds"
        fleet.until(lambda: len(list(updates.glob("*/updates/*"))) >= len(system.exchanges(run)))
        system.start("--away", "6s")

    _, metrics = result(system, "killed", killed)
    assert metrics[-1, 0] > metrics[0, 0]
    trained = system.trained()
    assert len(trained) - before == 2 * 2 * ROUNDS
    assert set(trained) == {"begun "}
    assert np.allclose(
        metrics, np.load(system.folder / "plain.npz")["metrics"].reshape(ROUNDS, -1), atol=1e-6
    )


def test_devices_that_are_simulated_on_this_machine_do_as_well(tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "result.npz"
    hub.PROGRAM[:] = [sys.executable, "-m", "fleetfold"]
    with SuperLink(tmp_path / "link") as link, (tmp_path / "bridge.log").open("ab") as log:
        names = ("device-000", "device-001")
        for name in names:
            keyed(tmp_path / "keys", name)
            link.register(tmp_path / "keys" / f"{name}.pub")
        command = [
            *hub.PROGRAM, "flower", "bridge", "--superlink", link.address, "--app", str(DIGITS),
            "--root-certificates", str(link.root), "--keys", str(tmp_path / "keys"),
        ]  # fmt: skip
        environment = {**link.environment, "FLEETFOLD_HOME": str(home)}
        bridge = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            said, _ = link.submit(DIGITS, f'num-server-rounds=1 devices=2 result="{place}"').communicate(
                timeout=300
            )
        finally:
            bridge.send_signal(signal.SIGINT)
            assert bridge.wait(60) == 0
    assert place.exists(), said + (tmp_path / "bridge.log").read_text()


def test_a_device_that_is_off_is_an_error_reply_in_time(system: Bridged) -> None:
    system.fleet.stop("device-001")
    system.fleet.until(lambda: not system.fleet.is_online("device-001"))
    said, _ = result(system, "off")
    assert said.count("device-001 did not answer within 6 s") == 2 * ROUNDS
    assert said.count("Received 1 results and 1 failures") == 2 * ROUNDS
