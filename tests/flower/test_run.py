"""`fleetfold flower run`, as a person has it: real processes, killed, interrupted, and gone on with."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.flower import small


class Desk:
    """A folder with an app and a home. `run`: what the command said, and its exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.app, self.seen = folder, small.write(folder), folder / "seen"
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("FLEETFOLD_")} | {
            "FLEETFOLD_HOME": str(folder / "home"), "NO_COLOR": "1", "COLUMNS": "200",
        }  # fmt: skip

    def begun(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "fleetfold", *words], cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self._environment | environment,
        )  # fmt: skip

    def run(self, *words: str, **environment: str) -> tuple[str, str, int]:
        process = self.begun(*words, **environment)
        said, errors = process.communicate(timeout=120)
        return said, errors, process.returncode

    @property
    def config(self) -> str:
        return f'seen="{self.seen}"'

    def trained(self) -> Counter[str]:
        """How often each round was trained by each device."""
        return Counter(self.seen.read_text().splitlines() if self.seen.exists() else [])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def ends(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("ends with"))


def test_an_app_runs_as_it_is_and_says_what_came_of_it(desk: Desk) -> None:
    said, errors, code = desk.run("flower", "run", "app", "--run-config", desk.config)
    assert (code, errors) == (0, "")
    assert desk.trained() == {f"{round} {device}": 1 for round in (1, 2, 3) for device in range(4)}
    lines = said.splitlines()
    assert lines[-1].startswith("accuracy 0.500 · rounds 3 · seconds")
    assert [line for line in lines if line.startswith("round 3/3 evaluate done")]
    assert [line for line in lines if line.startswith("round 3/3") and "accuracy 0.300" in line]
    assert ends(said)
    assert "Starting FedAdam" in (desk.folder / "home/runs/app-1/server.log").read_text()
    assert (desk.folder / "home/runs/app-1/models/000003.safetensors").exists()
    said, _, code = desk.run("runs")
    assert (code, "3 of 3" in said) == (0, True)


def test_what_a_program_reads_is_json_alone(desk: Desk) -> None:
    said, errors, code = desk.run("flower", "run", "app", "--json", "--run-config", "num-server-rounds=1")
    rows = [json.loads(line) for line in said.splitlines()]
    assert code == 0
    newest = {(row["turn"], row["label"]): (row["phase"], row["accuracy"]) for row in rows}
    assert newest == {(1, "train"): ("done", 0.1), (1, "evaluate"): ("done", 0.5)}
    assert "ends with" in errors


@pytest.mark.parametrize("step", range(3, 240, 24))
def test_a_run_that_was_killed_comes_to_the_same_and_trains_nothing_twice(
    desk: Desk, undisturbed: str, step: int
) -> None:
    said, _, code = desk.run(*WORDS, desk.config, FLEETFOLD_FAULTS=f"coordinator:{step}")
    assert code == -signal.SIGKILL
    delivered = {
        f"{int(path.parts[-3].partition('-')[0]) // 2 + 1} {int(path.stem.partition('-')[2])}"
        for path in desk.folder.glob("home/runs/*/rounds/*[13579]-message/updates/*.safetensors")
    }
    before = desk.trained()
    said, errors, code = desk.run("flower", "run", "--resume", "latest")
    if "never opened" in errors:
        said, errors, code = desk.run(*WORDS, desk.config)
    assert (code, errors) == (0, "")
    assert ends(said) == undisturbed
    assert not (desk.trained() - before).keys() & delivered


WORDS = ("flower", "run", "app", "--devices", "3", "--workers", "2", "--run-config")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the app ends with where nobody disturbs it."""
    desk = Desk(tmp_path_factory.mktemp("undisturbed"))
    return ends(desk.run(*WORDS, desk.config)[0])


def test_an_interrupted_run_goes_on(desk: Desk) -> None:
    process = desk.begun("flower", "run", "app", "--run-config", "num-server-rounds=500")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round 2/500"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "next: fleetfold flower run --resume app-1" in errors
    process = desk.begun("flower", "run", "--resume", "latest")
    assert process.stdout is not None
    assert any(line.startswith("round 5/500") for line in process.stdout)
    process.kill()
    process.communicate()


def test_devices_that_cannot_load_the_app_leave_no_run_behind(desk: Desk) -> None:
    with (desk.app / "small/client.py").open("a") as file:
        file.write("import nowhere\n")
    _, errors, code = desk.run("flower", "run", "app")
    assert code == 2
    assert errors.splitlines() == [
        "error: clientapp = 'small.client:app': No module named 'nowhere'",
        "  next: pip install nowhere",
    ]
    assert not list((desk.folder / "home/runs").iterdir())


def test_what_all_devices_say_ends_the_run_and_is_said(desk: Desk) -> None:
    client = desk.app / "small/client.py"
    client.write_text(client.read_text().replace("    arrays =", "    1 / 0\n    arrays ="))
    _, errors, code = desk.run("flower", "run", "app", "--patience", "2")
    assert code == 1
    assert "2 train exchanges in a row failed" in errors
    assert "client.py line 16, ZeroDivisionError" in errors
    client.write_text(client.read_text().replace("    1 / 0\n", ""))
    said, _, code = desk.run("flower", "run", "--resume", "latest")
    assert code == 0
    assert ends(said)


def test_what_the_server_app_raises_is_told_with_its_line(desk: Desk) -> None:
    server = desk.app / "small/server.py"
    server.write_text(server.read_text().replace("round / 10", "round / 0"))
    _, errors, code = desk.run("flower", "run", "app")
    assert code == 2
    assert "server.py line 13, ZeroDivisionError" in errors
    assert "next: fleetfold flower run --resume app-1" in errors


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("flower", "run"), "which app?"),
        (("flower", "run", "nowhere"), "no such folder"),
        (("run", "app"), "fleetfold flower run app"),
        (("flower", "run", "app", "--rounds", "7"), "--run-config 'num-server-rounds=7'"),
        (("flower", "run", "app", "--fold", "median"), "here the app's strategy says it"),
        (("flower", "run", "app", "--deadlin", "3"), "Did you mean --deadline?"),
        (("flower", "run", "--resume", "latest"), "there are no runs"),
        (("flower", "run", "app", "--hub", "--aws"), "on a hub or on AWS"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_with_what_to_do(
    desk: Desk, words: tuple[str, ...], says: str
) -> None:
    _, errors, code = desk.run(*words)
    assert code == 2
    assert says in errors
    assert len(errors.splitlines()) <= 3
