"""`fleetfold enroll … --aws` against the emulator: things and records as the command leaves them. It has no
connections to end, and its certificates let nobody in."""

import json
import time
from pathlib import Path

import pytest

from fleetfold import bundle
from fleetfold.adapters.boto import client
from fleetfold.adapters.dynamo import DynamoRecords
from fleetfold.aws.enrol import newest
from fleetfold.aws.policies import device_policy
from fleetfold.aws.stack import Stack, save
from fleetfold.cli.main import main
from fleetfold.ledger import Ledger
from tests.aws.conftest import Aws


@pytest.fixture
def stack(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    iot, name = aws.client("iot"), f"fleet{time.monotonic_ns()}"
    iot.create_policy(policyName=f"{name}-device", policyDocument=json.dumps(device_policy("r", "1", "main")))
    iot.create_thing_group(thingGroupName=name)
    made = Stack(
        name=name, region="eu-central-1", bucket="b", table=aws.table(), machine="m", fleet="main",
        outputs={"DevicePolicy": f"{name}-device", "ThingGroup": name},
    )  # fmt: skip
    save(tmp_path / "home", made)
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return made


def fleetfold(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def test_devices_are_enrolled_by_one_command(
    stack: Stack, aws: Aws, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleetfold("enroll", "press-7", "press-8", "--aws") == 0
    assert "fleetfold join press-7.bundle" in capsys.readouterr().out
    given = bundle.load(tmp_path / "press-8.bundle")
    assert (given.fleet, given.device) == ("main", "press-8")
    assert [address.rpartition(":")[2] for address in given.brokers] == ["8883", "443"]
    assert (tmp_path / "press-8.bundle").stat().st_mode & 0o777 == 0o600
    records = DynamoRecords(client("dynamodb", endpoint_url=aws.url), stack.table)
    assert [device.name for device in Ledger(records).fleet()] == ["press-7", "press-8"]
    assert newest(records, "press-7")
    assert fleetfold("revoke", "press-7", "--aws") == 0
    assert "press-7: revoked, its connection, if it has one, ends within minutes" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["enroll", "x", "--aws"], ["revoke", "x", "--aws"]])
def test_without_a_stack_it_says_how_to_have_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert fleetfold(*command) == 2
    assert "fleetfold aws deploy" in capsys.readouterr().err


def test_who_was_never_enrolled_is_told_so(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    assert fleetfold("revoke", "press-9", "--aws") == 2
    assert "was never enrolled" in capsys.readouterr().err
