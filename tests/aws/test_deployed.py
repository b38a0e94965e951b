"""Deployments on the emulated AWS, by the command: broken off, failed, tried out, taken away.

LocalStack knows no DeletionPolicy, leaves behind what a rollback would take back, and refuses less than
CloudFormation does; nothing here ran on AWS itself.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws.stack.fleet import OWN, PROGRAM
from tests.aws.stack.stack import Stack

pytestmark = pytest.mark.aws


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        with Stack(tmp_path_factory.mktemp("aws")) as stack:
            yield stack


class Person:
    """Somebody at a terminal, with a home of their own and the rights to do everything."""

    def __init__(self, emulated: Stack, folder: Path) -> None:
        self.folder, self.emulated = folder, emulated
        self.begun: list[subprocess.Popen[bytes]] = []
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("FLEETFOLD_", "AWS_"))}
        self.environment = plain | emulated.environment | {"FLEETFOLD_HOME": str(folder / "home")}

    def types(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*PROGRAM, "aws", *words], env=self.environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def begins(self, *words: str, **more: str) -> "subprocess.Popen[bytes]":
        with (self.folder / "said").open("wb") as said:
            process = subprocess.Popen(
                [*PROGRAM, "aws", *words], env=self.environment | more, stdin=subprocess.DEVNULL,
                stdout=said, stderr=subprocess.STDOUT, cwd=self.folder,
            )  # fmt: skip
        self.begun.append(process)
        return process

    def said(self) -> str:
        return (self.folder / "said").read_text()


@pytest.fixture
def person(emulated: Stack, tmp_path: Path) -> Iterator[Person]:
    found = Person(emulated, tmp_path)
    yield found
    for process in found.begun:
        kill(process)


def deploy(stack: str, *more: str) -> list[str]:
    return ["deploy", "--stack", stack, "--fleet", stack, "--python", OWN, "--yes", *more]


def until(what: str, person: Person, process: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + 300
    while what not in person.said():
        assert process.poll() is None, person.said()
        assert time.monotonic() < give_up, person.said()
        time.sleep(0.1)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_deployment_that_is_killed_is_watched_to_its_end_by_the_next_and_tried_and_taken_away(
    person: Person,
) -> None:
    process = person.begins(*deploy("farm"))
    until("CREATE_COMPLETE", person, process)
    kill(process)
    again = person.types(*deploy("farm"))
    assert "a deployment of farm is under way" in again
    assert "nothing changes in farm" in again
    assert "fleetfold enroll DEVICE --aws" in again

    planned = person.types("deploy", "--stack", "farm", "--python", OWN, "--set", "LogDays=7", "--plan")
    assert "7 to modify" in planned
    assert "fleet farm" in person.types("status", "--stack", "farm")
    assert "is of fleet farm" in person.types(*deploy("farm")[:3], "--fleet", "x", "--python", OWN, code=2)

    core = person.emulated.core
    authority = person.folder / "authority.pem"
    authority.write_text(core.authority.pem)
    emulated = ["--broker", core.address, "--authority", str(authority)]
    plain = {"FLEETFOLD_AGENT_PLAIN": "1"}  # the emulated store has no TLS
    process = person.begins("smoke", "--devices", "2", *emulated, **plain)
    until("it works", person, process)
    assert process.wait(60) == 0
    assert "tidied: 3 things" in person.said()
    process = person.begins("smoke", "--devices", "2", *emulated, **plain)
    until("2 devices are enrolled", person, process)
    kill(process)
    removed = person.types("smoke", "--tidy")
    assert removed.count("removed device smoke-") == 2
    assert person.types("smoke", "--tidy") == ""
    assert person.emulated.client("iot").list_things()["things"] == []

    assert "nobody to ask" in person.types("destroy", "--stack", "farm", code=2)
    process = person.begins("destroy", "--stack", "farm", "--delete-models", "--yes")
    until("DELETE_IN_PROGRESS", person, process)
    kill(process)
    assert "farm is gone" in person.types("destroy", "--stack", "farm", "--delete-models", "--yes")
    assert "nothing left" in person.types("destroy", "--stack", "farm")


def test_a_deployment_that_fails_says_what_failed_first_and_how_to_go_on(person: Person) -> None:
    broken = ["--set", "ScheduleExpression=nonsense", "--set", "ScheduledRun=r"]
    said = person.types(*deploy("bad", *broken), code=1)
    assert "Schedule (AWS::Scheduler::Schedule)" in said
    assert "nothing was made" in said
    assert "next: fleetfold aws destroy --stack bad" in said.replace(str(PROGRAM[0]), "fleetfold")
    assert "left it ROLLBACK_COMPLETE" in person.types(*deploy("bad"), code=2)
    assert "bad is gone" in person.types("destroy", "--stack", "bad", "--yes")
