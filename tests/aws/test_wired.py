"""The handlers as they are wired, on the emulated S3, DynamoDB, Scheduler and IoT Core (of Step Functions
only that an execution is started): one run from a person's command line to its model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
import pytest

from fleetfold import layout
from fleetfold.adapters.memory import MemoryRecords
from fleetfold.adapters.transfer import ObjectTransfer
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.agent.trainer import Device
from fleetfold.aws import handlers, telling, workflow
from fleetfold.aws.stack import Stack, save
from fleetfold.cli.main import main
from fleetfold.fold.tensors import read
from fleetfold.ledger import Ledger
from fleetfold.messages import Report, Task, encode
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.tell.numbers import MORE, SIX
from fleetfold.wiring import aws as wiring
from fleetfold.wiring import local
from fleetfold.wiring.local import Place
from tests.aws import emf
from tests.aws.conftest import Aws
from tests.aws.iot_double import Iot, serving
from tests.world import Walk

NAMES = ("d0", "d1", "d2")
APP = """
from tests.world import Walk

trainer = Walk()
"""
ROLE = "arn:aws:iam::123456789012:role/r"


class Context:
    function_name, memory_limit_in_mb, aws_request_id = "f", 512, "1"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:f"


class Deployed(NamedTuple):
    home: Path
    stack: Stack
    iot: Iot
    app: Path


@pytest.fixture
def deployed(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    region = "eu-central-1"
    machine = aws.client("stepfunctions").create_state_machine(
        name=f"m-{tmp_path.name[:40]}", roleArn=ROLE,
        definition='{"StartAt": "A", "States": {"A": {"Type": "Succeed"}}}',
    )["stateMachineArn"]  # fmt: skip
    group = f"g-{tmp_path.name[:40]}"
    aws.client("scheduler").create_schedule_group(Name=group)
    stack = Stack(
        name="farm", region=region, bucket=aws.bucket(), table=aws.table(), machine=machine, fleet="f"
    )
    home = tmp_path / "home"
    save(home, stack)
    app = tmp_path / "walk.py"
    app.write_text(APP)
    told = {
        "FLEET": "f", "BUCKET": stack.bucket, "TABLE": stack.table, "SCHEDULES": group,
        "TICK": "arn:aws:lambda:eu-central-1:123456789012:function:tick", "SCHEDULER_ROLE": ROLE,
        "HOME": str(home),
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(f"FLEETFOLD_{name}", value)
    Ledger(wiring.records(stack.table, region), alone=False).enlist(NAMES)
    with serving() as iot:
        monkeypatch.setenv("AWS_ENDPOINT_URL_IOT_DATA_PLANE", iot.url)
        for made in (wiring.cloud, wiring._client, wiring.objects, wiring.records):
            made.cache_clear()
        yield Deployed(home, stack, iot, app)
        for made in (wiring.cloud, wiring._client, wiring.objects, wiring.records):
            made.cache_clear()


def fleetfold(*arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code, arguments


def tasks(iot: Iot) -> list[Task]:
    found = [
        msgspec.json.decode(m.payload, type=Task)
        for m in iot.published
        if m.topic.endswith("/task") and m.payload
    ]
    iot.clear()
    return found


class Nobody:
    def tasks(self) -> list[Task]:
        return []

    def report(self, report: Report) -> None:
        pass


def trained(deployed: Deployed, task: Task) -> str:
    """What its device does, to objects whose addresses it was given. → the update's key."""
    objects = wiring.objects(deployed.stack.bucket, deployed.stack.region).objects
    key = lambda address: unquote(urlsplit(address).path).partition(f"/{deployed.stack.bucket}/")[2]  # noqa: E731
    assert "Signature=" in task.model
    assert key(task.update) == layout.update(layout.round(task.run, task.round, task.kind), task.device)
    plain = msgspec.structs.replace(task, model=key(task.model), update=key(task.update))
    number = NAMES.index(task.device)
    device = Device(name=task.device, index=number, count=len(NAMES))
    journal = Journal(MemoryRecords(), device.name, "life")
    Agent(device, Walk(), journal, ObjectTransfer(objects), Nobody(), lambda: 0.0).handle(plain)
    return plain.update


def queued(*bodies: Any) -> dict[str, Any]:
    def record(number: int, body: Any) -> dict[str, Any]:
        text = body if isinstance(body, str) else json.dumps(body)
        return {"messageId": str(number), "body": text, "attributes": {"SentTimestamp": "1700000000000"}}

    return {"Records": [record(number, body) for number, body in enumerate(bodies)]}


def stored(key: str) -> dict[str, Any]:
    return {"Records": [{"eventName": "ObjectCreated:Put", "s3": {"object": {"key": key}}}]}


def test_a_run_goes_from_the_command_line_through_the_handlers_to_its_model(
    deployed: Deployed, aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    fleetfold("run", str(deployed.app), "--aws", "--detach", "--rounds", "2", "--evaluate", "off")
    assert "walk-1 is on AWS" in capsys.readouterr().out
    started = aws.client("stepfunctions").list_executions(stateMachineArn=deployed.stack.machine)[
        "executions"
    ]
    assert [each["name"] for each in started] == ["walk-1"]
    for number in (1, 2):
        handlers.initiate({"run": "walk-1", "token": f"token-{number}", "rounds": 1_000_000}, Context())
        invited = tasks(deployed.iot)
        assert sorted((t.device, t.round) for t in invited) == [(name, number) for name in NAMES]
        events = [stored(trained(deployed, task)) for task in invited]
        assert handlers.collect(queued(*events, "{"), Context()) == {"batchItemFailures": []}
        records = wiring.records(deployed.stack.table, deployed.stack.region)
        assert workflow.waiting(records, "walk-1") is None, "the token was told, though nobody waited by it"
        told = {
            "run": "walk-1", "phase": "folding", "round": number, "kind": "train", "fold": "", "shards": [],
            "patience": 60, "folded": [],
        }  # fmt: skip
        after = handlers.publish(told, Context())
        assert after["phase"] == ("next" if number == 1 else "ended")
    found = emf.metrics(capsys.readouterr().out.splitlines())
    assert {(m.name, m.value) for m in found} >= {("devices_used", 3.0), ("responses_failed", 0.0)}
    assert {number.name for number in (*SIX, *MORE)} - {m.name for m in found} == {"reported_accuracy"}
    assert all(0 < m.value < 0.01 for m in found if m.name == "cost")
    assert {m.dimensions for m in found} == {(("fleet", telling.FLEET), ("run", "walk-1"))}

    place = Place(deployed.home, "walk-1")
    run, _ = local.ledger(place).run("walk-1") or (None, 0)
    assert run is not None
    assert (run.state, run.version, run.settings.devices) == (RunState.DONE, 2, 3)
    assert set(read(fetch(local.objects(place), layout.model("walk-1", 2)))[0]) == {"w", "steps", "none"}
    for arguments, word in (
        (["show", "walk-1"], "done"),
        (["runs"], "2 of 2"),
        (["devices", "--recent", "2"], "d"),
        (["devices"], "d2"),
        (["show", "walk-1", "--round", "1"], "admitted"),
        (["export", "walk-1", "--out", str(deployed.home / "m.safetensors")], "model 2 of walk-1"),
    ):
        fleetfold(*arguments)
        assert word in capsys.readouterr().out


def test_a_run_that_has_ended_is_given_more_to_do_by_another_execution(
    deployed: Deployed, aws: Aws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fleetfold.cli import run as cli

    monkeypatch.setattr(cli, "watched", lambda place, json, then: 0)
    fleetfold("run", str(deployed.app), "--aws", "--rounds", "1")
    fleetfold("run", "--resume", "walk-1", "--rounds", "3")
    executions = aws.client("stepfunctions").list_executions(stateMachineArn=deployed.stack.machine)[
        "executions"
    ]
    assert len(executions) == 2
    run, _ = local.ledger(Place(deployed.home, "walk-1")).run("walk-1") or (None, 0)
    assert run is not None
    assert run.settings.rounds == 3


def test_a_name_that_somebody_else_has_taken_is_passed_over(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    records = wiring.records(deployed.stack.table, deployed.stack.region)
    assert records.swap(workflow.key("walk-1"), encode(workflow.Wait()), 0)
    fleetfold("run", str(deployed.app), "--aws", "--detach", "--rounds", "1")
    assert "walk-2 is on AWS" in capsys.readouterr().out
    assert [path.name for path in (deployed.home / "runs").iterdir()] == ["walk-2"]


def test_what_a_device_says_comes_into_the_registry_and_an_answer_to_whoever_asked(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"clientId": "d1", "timestamp": 1_700_000_000_000, "eventType": "connected", "versionNumber": 0}
    assert handlers.status(queued({"lifecycle": event}), Context()) == {"batchItemFailures": []}
    fleetfold("devices", "--recent", "1", "--json")
    newest = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (newest["name"], newest["says"].get("online", True), newest["life"]) == ("d1", True, 0)
    with pytest.raises(SystemExit) as left:
        main(["ask", "d1", "cancel", "--aws", "--wait", "200ms"])
    assert left.value.code == 1, "it has not answered"
    (command,) = [m for m in deployed.iot.published if m.topic == "fleetfold/f/d1/command"]
    assert command.response == "fleetfold/f/d1/answer"
