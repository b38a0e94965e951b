"""The component for Greengrass V2: what the nucleus is told, and what is asked of AWS, by the shapes that
botocore knows. No emulator has Greengrass V2, and there is no nucleus here."""

import json
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from fleetfold import layout
from fleetfold.adapters.memory import MemoryRecords
from fleetfold.aws.enrol import Account, Place
from fleetfold.aws.greengrass import artifact, recipe
from fleetfold.aws.greengrass.publish import deploy, publish
from fleetfold.errors import BadConfig
from fleetfold.ledger import Ledger

URI = "s3://bucket/greengrass/x/fleetfold.zip"
ARN = f"arn:aws:greengrass:eu-central-1:123456789012:components:{recipe.COMPONENT}"
GROUP = "arn:aws:iot:eu-central-1:123456789012:thinggroup/{}"
LITE = {"{work:path}", "{artifacts:decompressedPath}", "{iot:thingName}"}
"""Variables of a recipe that both nuclei know."""


@pytest.fixture
def greengrass(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Stubber]]:
    client = stubbed("greengrassv2", monkeypatch)
    with Stubber(client) as stubber:
        yield client, stubber
        stubber.assert_no_pending_responses()
    client.close()


@pytest.fixture
def iot(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Stubber]]:
    client = stubbed("iot", monkeypatch)
    with Stubber(client) as stubber:
        yield client, stubber
        stubber.assert_no_pending_responses()
    client.close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Stubber]]:
    client = stubbed("s3", monkeypatch)
    with Stubber(client) as stubber:
        yield client, stubber
        stubber.assert_no_pending_responses()
    client.close()


def stubbed(service: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    return boto3.client(service, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")


def account(iot: Any) -> Account:
    place = Place(fleet="main", policy="main-device", group="main", endpoint="e")
    return Account(iot, None, MemoryRecords(), place)


# What the nucleus is told


def test_the_recipe_has_the_keys_that_both_nuclei_know_in_their_exact_case() -> None:
    made = recipe.recipe("1.2.3", URI, "main")
    assert list(made) == [
        "RecipeFormatVersion", "ComponentName", "ComponentVersion", "ComponentType", "ComponentDescription",
        "ComponentPublisher", "ComponentConfiguration", "Manifests",
    ]  # fmt: skip
    assert made["RecipeFormatVersion"] == "2020-01-25"
    assert made["ComponentType"] == "aws.greengrass.generic"
    (manifest,) = made["Manifests"]
    assert manifest["Platform"] == {"os": "linux", "runtime": "*"}
    assert set(manifest["Lifecycle"]) == {"install", "run"}
    assert manifest["Artifacts"][0]["Uri"].endswith("/fleetfold.zip")
    assert manifest["Artifacts"][0]["Unarchive"] == "ZIP"
    assert json.loads(recipe.text(made)) == made


def test_its_commands_use_no_variable_that_lite_does_not_fill_in() -> None:
    (manifest,) = recipe.recipe("1.2.3", URI, "main")["Manifests"]
    for step in manifest["Lifecycle"].values():
        script = step["Script"]
        for known in LITE:
            script = script.replace(known, "")
        assert "{" not in script


def test_the_component_may_say_and_hear_what_a_device_does_and_no_more() -> None:
    configuration = recipe.recipe("1.2.3", URI, "main")["ComponentConfiguration"]["DefaultConfiguration"]
    policies = configuration["accessControl"]["aws.greengrass.ipc.mqttproxy"]
    allowed = {policy["operations"][0]: policy["resources"] for policy in policies.values()}
    assert allowed == {
        "aws.greengrass#PublishToIoTCore": [f"fleetfold/main/*/{word}" for word in layout.FROM_DEVICE],
        "aws.greengrass#SubscribeToIoTCore": [f"fleetfold/main/*/{word}" for word in layout.TO_DEVICE],
    }


# The artifact


def test_the_same_app_and_wheels_make_the_same_artifact_whenever(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("app = 1\n")
    made = [artifact.own_wheel(tmp_path / str(n) / "wheels") for n in range(2)]
    digests = {artifact.archive(tmp_path / f"{n}.zip", wheel.parent, app) for n, wheel in enumerate(made)}
    assert len(digests) == 1
    with zipfile.ZipFile(tmp_path / "0.zip") as file:
        assert file.namelist() == [f"wheels/{made[0].name}", "app/app.py"]
    with pytest.raises(BadConfig, match="no wheels"):
        artifact.archive(tmp_path / "x.zip", tmp_path, None)


def test_our_wheel_has_what_a_device_runs_and_nothing_that_is_for_one_machine(tmp_path: Path) -> None:
    with zipfile.ZipFile(artifact.own_wheel(tmp_path)) as file:
        names = file.namelist()
        record = next(name for name in names if name.endswith("/RECORD"))
        assert len(file.read(record).decode().splitlines()) == len(names)
    assert "fleetfold/device/greengrass.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_for_a_machine_that_nobody_makes_wheels_for_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BadConfig, match=r"no wheels for Python 2\.1 on abacus") as told:
        artifact.wheels(tmp_path, "abacus", "2.1")
    assert str(tmp_path) in told.value.next


# In the account


def said_before(iot: Stubber) -> None:
    iot.add_response(
        "describe_thing_group", {"thingGroupArn": GROUP.format("main")}, {"thingGroupName": "main"}
    )


def test_an_artifact_is_published_as_the_first_version_and_again_changes_nothing(
    greengrass: tuple[Any, Stubber], iot: tuple[Any, Stubber], s3: tuple[Any, Stubber], tmp_path: Path
) -> None:
    archive = tmp_path / "fleetfold.zip"
    archive.write_bytes(b"zip")
    digest = sha256(b"zip").hexdigest()
    key = f"greengrass/{recipe.COMPONENT}/{digest}/fleetfold.zip"
    s3[1].add_client_error("head_object", "404", http_status_code=404)
    s3[1].add_response("put_object", {}, {"Bucket": "b", "Key": key, "Body": ANY})
    said_before(iot[1])
    greengrass[1].add_response("list_component_versions", {"componentVersions": []}, {"arn": ARN})
    made = recipe.text(recipe.recipe("1.0.0", f"s3://b/{key}", "main"))
    status = {"status": {"componentState": "REQUESTED"}, "componentName": recipe.COMPONENT,
              "componentVersion": "1.0.0", "creationTimestamp": 0}  # fmt: skip
    greengrass[1].add_response("create_component_version", status, {"inlineRecipe": made})
    where = greengrass[0], s3[0], account(iot[0]), "b", archive, digest
    assert publish(*where) == "1.0.0"
    s3[1].add_response("head_object", {}, {"Bucket": "b", "Key": key})
    said_before(iot[1])
    versions = {"componentVersions": [{"componentVersion": "1.0.0"}, {"componentVersion": "0.9.10"}]}
    greengrass[1].add_response("list_component_versions", versions, {"arn": ARN})
    stored = json.loads(made)
    stored["Manifests"][0]["Artifacts"][0] |= {"Digest": "x", "Algorithm": "SHA-256"}
    greengrass[1].add_response(
        "get_component", {"recipeOutputFormat": "JSON", "recipe": json.dumps(stored).encode()},
        {"arn": f"{ARN}:versions:1.0.0", "recipeOutputFormat": "JSON"},
    )  # fmt: skip
    assert publish(*where) == "1.0.0"


def test_another_artifact_becomes_the_next_version(
    greengrass: tuple[Any, Stubber], iot: tuple[Any, Stubber], s3: tuple[Any, Stubber], tmp_path: Path
) -> None:
    archive = tmp_path / "fleetfold.zip"
    archive.write_bytes(b"zip")
    s3[1].add_response("head_object", {})
    said_before(iot[1])
    versions = {"componentVersions": [{"componentVersion": "1.0.9"}, {"componentVersion": "1.0.10"}]}
    greengrass[1].add_response("list_component_versions", versions)
    old = recipe.text(recipe.recipe("1.0.10", URI, "main"))
    greengrass[1].add_response("get_component", {"recipeOutputFormat": "JSON", "recipe": old})
    greengrass[1].add_response("create_component_version", {
        "status": {"componentState": "REQUESTED"}, "componentName": recipe.COMPONENT,
        "componentVersion": "1.0.11", "creationTimestamp": 0,
    })  # fmt: skip
    assert publish(greengrass[0], s3[0], account(iot[0]), "b", archive, "d") == "1.0.11"


def group_of(iot: Stubber, *cores: str) -> None:
    arn = GROUP.format("presses")
    iot.add_response("describe_thing_group", {"thingGroupArn": arn}, {"thingGroupName": "presses"})
    iot.add_response("attach_policy", {}, {"policyName": "main-device", "target": arn})
    about = {"thingGroupName": "presses", "recursive": True}
    iot.add_response("list_things_in_thing_group", {"things": list(cores[:1]), "nextToken": "n"}, about)
    iot.add_response("list_things_in_thing_group", {"things": list(cores[1:])}, {**about, "nextToken": "n"})


def test_a_deployment_keeps_the_other_components_of_the_group(
    greengrass: tuple[Any, Stubber], iot: tuple[Any, Stubber]
) -> None:
    group_of(iot[1], "core-1", "a:b", "core-2")
    arn, known = GROUP.format("presses"), account(iot[0])
    other = {"aws.greengrass.Cli": {"componentVersion": "2.0.0"}}
    greengrass[1].add_response(
        "list_deployments", {"deployments": [{"deploymentId": "1"}]},
        {"targetArn": arn, "historyFilter": "LATEST_ONLY"},
    )  # fmt: skip
    greengrass[1].add_response("get_deployment", {"components": other}, {"deploymentId": "1"})
    ours = {
        "componentVersion": "1.0.0",
        "configurationUpdate": {"merge": '{"terms":{"data":"/data","require":"idle"}}'},
    }
    greengrass[1].add_response("create_deployment", {"deploymentId": "2"}, {
        "targetArn": arn, "deploymentName": "fleetfold in presses",
        "components": {**other, recipe.COMPONENT: ours},
    })  # fmt: skip
    terms = {"require": "idle", "data": "/data"}
    made = deploy(greengrass[0], known, "presses", "1.0.0", terms)
    assert (made.id, made.cores, made.passed_over) == ("2", ("core-1", "core-2"), ("a:b",))
    assert [device.name for device in Ledger(known.records).fleet()] == ["core-1", "core-2"]
    group_of(iot[1], "core-1")
    greengrass[1].add_response("list_deployments", {"deployments": [{"deploymentId": "2"}]})
    greengrass[1].add_response("get_deployment", {"components": {**other, recipe.COMPONENT: ours}})
    assert deploy(greengrass[0], known, "presses", "1.0.0", terms).id == "2", "again changes nothing"


def test_a_group_that_is_not_there_is_said_to_be_missing(
    greengrass: tuple[Any, Stubber], iot: tuple[Any, Stubber]
) -> None:
    iot[1].add_client_error("describe_thing_group", "ResourceNotFoundException")
    with pytest.raises(BadConfig, match="no thing group presses"):
        deploy(greengrass[0], account(iot[0]), "presses", "1.0.0", {})
