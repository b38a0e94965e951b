"""kill -9, for real: the process of a FedAdam run dies at each of its writes, one after the other.

What follows must end with the same arrays, to the byte, as a run that lived, and train nothing twice that
had been delivered. With --suspend it is the app's own process that dies, of which there are several.
"""

import itertools
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fleetfold import layout
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place
from tests.flower.test_run import Desk

ROUNDS = 2
WORDS = (
    "flower", "run", "app", "--devices", "2", "--workers", "1", "--json",
    "--run-config", f"num-server-rounds={ROUNDS} model.width=3000", "--run-config",
)  # fmt: skip
LANES = 12
"""The steps are dealt out to so many tests, that they may run side by side."""


def ended(desk: Desk) -> bytes:
    """The last model of a run that has ended well."""
    place = Place(desk.folder / "home", "app-1")
    found = wiring.ledger(place).run(place.run)
    assert found is not None
    assert (found[0].state, found[0].version) == (RunState.DONE, ROUNDS)
    return fetch(wiring.objects(place), layout.model(place.run, ROUNDS))


def delivered(desk: Desk) -> set[str]:
    """(round, device) of what lies there; exchanges 1, 3, … train."""
    found = set()
    for path in desk.folder.glob("home/runs/*/rounds/*-message/updates/*.safetensors"):
        number, device = int(path.parts[-3].partition("-")[0]), int(path.stem.partition("-")[2])
        if number % 2:
            found.add(f"{number // 2 + 1} {device}")
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    desk = Desk(tmp_path_factory.mktemp("undisturbed"))
    _, errors, code = desk.run(*WORDS, desk.config)
    assert code == 0, errors
    assert desk.trained() == once()
    return ended(desk)


def once() -> Counter[str]:
    return Counter(f"{round} {device}" for round in range(1, ROUNDS + 1) for device in range(2))


def killed(desk: Desk, faults: str, *words: str) -> bool:
    """Whether it came so far as to die there."""
    _, errors, code = desk.run(*WORDS, desk.config, *words, FLEETFOLD_FAULTS=faults)
    assert code in (0, -signal.SIGKILL), errors
    return code != 0


def goes_on(desk: Desk) -> None:
    there, before = delivered(desk), desk.trained()
    _, errors, code = desk.run("flower", "run", "--resume", "latest", "--json")
    if "never opened" in errors:
        return
    assert code == 0, errors
    assert not (desk.trained() - before).keys() & there


@pytest.mark.parametrize("at", [31, 77, 123])
def test_the_process_of_a_run_is_killed_and_the_run_goes_on_to_the_same_bytes(
    at: int, undisturbed: bytes, tmp_path: Path
) -> None:
    desk = Desk(tmp_path)
    assert killed(desk, f"coordinator:{at}")
    goes_on(desk)
    assert ended(desk) == undisturbed


@pytest.mark.fleet
@pytest.mark.parametrize("lane", range(1, LANES + 1))
def test_the_process_of_a_run_is_killed_at_each_step(lane: int, undisturbed: bytes, tmp_path: Path) -> None:
    for at in itertools.count(lane, LANES):
        (tmp_path / str(at)).mkdir()
        desk = Desk(tmp_path / str(at))
        if not killed(desk, f"coordinator:{at}"):
            assert at > 100, "this run makes more writes"
            return
        goes_on(desk)
        if wiring.ledger(Place(desk.folder / "home", "app-1")).run("app-1"):
            assert ended(desk) == undisturbed, f"dead at step {at}"


@pytest.mark.parametrize("faults", ["", "server:9"])
def test_an_app_that_leaves_while_devices_train_comes_to_the_same_bytes(
    faults: str, undisturbed: bytes, tmp_path: Path
) -> None:
    desk = Desk(tmp_path)
    assert not killed(desk, faults, "--suspend")
    assert ended(desk) == undisturbed
    assert desk.trained() == once()
    log = (desk.folder / "home/runs/app-1/server.log").read_text()
    assert log.count("Going on with FedAdam") >= 2 * ROUNDS


@pytest.mark.parametrize("at", [60])
def test_who_waits_for_the_devices_of_such_an_app_is_killed(
    at: int, undisturbed: bytes, tmp_path: Path
) -> None:
    desk = Desk(tmp_path)
    assert killed(desk, f"coordinator:{at}", "--suspend")
    goes_on(desk)
    assert ended(desk) == undisturbed


@pytest.mark.fleet
@pytest.mark.parametrize("lane", range(1, 5))
def test_a_turn_of_the_apps_is_killed_at_each_step(lane: int, undisturbed: bytes, tmp_path: Path) -> None:
    """The first turn: it opens the run's first exchange."""
    for at in range(lane, 40, 4):
        (tmp_path / str(at)).mkdir()
        desk = Desk(tmp_path / str(at))
        assert not killed(desk, f"server:{at}", "--suspend")
        assert ended(desk) == undisturbed, f"dead at step {at}"
        assert desk.trained() == once()


def test_a_process_that_is_kept_is_answered_from_the_record(undisturbed: bytes, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert killed(desk, "coordinator:90", "--keep-process")
    there, before = delivered(desk), desk.trained()
    _, errors, code = desk.run("flower", "run", "--resume", "latest", "--json")
    assert code == 0, errors
    assert not (desk.trained() - before).keys() & there
    assert not (desk.folder / "home/runs/app-1/models").exists()


def test_who_waits_for_devices_has_no_flower_in_memory() -> None:
    ask = (
        "import sys, fleetfold.cli.flower, fleetfold.flower.turns; print(sorted({'flwr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
