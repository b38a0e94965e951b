"""The component in the account, and on the cores of a thing group.

publish   zip ─▶ bucket, under its digest ─▶ a component version, unless the newest has just this in it
deploy    policy to the group ─▶ registry ─▶ the group's deployment with the component in it; others stay

Both are right when they are run again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.adapters.boto import Declined, Service
from fleetfold.aws.enrol import Account
from fleetfold.aws.greengrass import recipe
from fleetfold.errors import BadConfig
from fleetfold.ledger import Ledger
from fleetfold.messages import Presence
from fleetfold.round.fleet import Device

FIRST = "1.0.0"
_ABSENT = "ResourceNotFoundException"


class Deployment(Struct, frozen=True):
    """`id`: AWS's. `cores`: names of those in the group that were put into the registry; `passed_over`: of
    those whose names no device of ours can have."""

    id: str
    cores: tuple[str, ...]
    passed_over: tuple[str, ...] = ()


def publish(greengrass: Any, s3: Any, account: Account, bucket: str, archive: Path, digest: str) -> str:
    """`greengrass`: boto3's client greengrassv2. `digest`: of the archive. → the component's version."""
    key = f"greengrass/{recipe.COMPONENT}/{digest}/{recipe.ARCHIVE}"
    store, components = Service(s3, f"bucket {bucket}"), Service(greengrass, "the component")
    try:
        store.ask("head_object", expected=["404", "NoSuchKey"], Bucket=bucket, Key=key)
    except Declined:
        with archive.open("rb") as body:
            store.ask("put_object", Bucket=bucket, Key=key, Body=body)
    arn = component_arn(account)
    version = newest(greengrass, arn)
    made = recipe.recipe(_next(version) if version else FIRST, f"s3://{bucket}/{key}", account.place.fleet)
    if version and _gist(_said(components, f"{arn}:versions:{version}")) == _gist(made):
        return version
    components.ask("create_component_version", inlineRecipe=recipe.text(made))
    return str(made["ComponentVersion"])


def component_arn(account: Account) -> str:
    """Of the component in this account, without a version."""
    group = Service(account.iot, f"thing group {account.place.group}")
    found = group.ask("describe_thing_group", thingGroupName=account.place.group)["thingGroupArn"]
    _, partition, _, region, number, _ = found.split(":", 5)
    return f"arn:{partition}:greengrass:{region}:{number}:components:{recipe.COMPONENT}"


def newest(greengrass: Any, arn: str) -> str:
    """The newest version of the component; "": there is none."""
    try:
        found = Service(greengrass, "the component").ask(
            "list_component_versions", expected=[_ABSENT], arn=arn
        )
    except Declined:
        return ""
    versions = [each["componentVersion"] for each in found.get("componentVersions", [])]
    return max(versions, key=_numbers, default="")


def deploy(
    greengrass: Any, account: Account, group: str, version: str, terms: Mapping[str, Any]
) -> Deployment:
    """Have the component on all cores of the thing group, now and later. `terms`: other than the recipe's.
    Raises BadConfig."""
    things, deployments = Service(account.iot, f"thing group {group}"), Service(greengrass, "the deployment")
    try:
        target = things.ask("describe_thing_group", expected=[_ABSENT], thingGroupName=group)["thingGroupArn"]
    except Declined:
        raise BadConfig(
            f"there is no thing group {group}", next=f"aws iot create-thing-group --thing-group-name {group}"
        ) from None
    things.ask("attach_policy", policyName=account.place.policy, target=target)
    cores, passed_over = _enlist(things, account, group)
    wanted: dict[str, Any] = {"componentVersion": version}
    if terms:
        merge = msgspec.json.encode({"terms": terms}, order="deterministic").decode()
        wanted["configurationUpdate"] = {"merge": merge}
    found = deployments.ask("list_deployments", targetArn=target, historyFilter="LATEST_ONLY")
    latest = found.get("deployments", [])
    kept: dict[str, Any] = {}
    if latest:
        before = deployments.ask("get_deployment", deploymentId=latest[0]["deploymentId"])
        kept = before.get("components", {})
        if kept.get(recipe.COMPONENT) == wanted and latest[0].get("deploymentStatus") != "CANCELED":
            return Deployment(latest[0]["deploymentId"], cores, passed_over)
    made = deployments.ask(
        "create_deployment", targetArn=target, deploymentName=f"fleetfold in {group}",
        components={**kept, recipe.COMPONENT: wanted},
    )  # fmt: skip
    return Deployment(made["deploymentId"], cores, passed_over)


def _said(components: Service, arn: str) -> dict[str, Any]:
    found = components.ask("get_component", arn=arn, recipeOutputFormat="JSON")
    said: dict[str, Any] = msgspec.json.decode(found["recipe"])
    return said


def _gist(said: dict[str, Any]) -> Any:
    """What of a recipe is ours: AWS adds to what it was given."""
    manifest = said["Manifests"][0]
    return (
        said["ComponentConfiguration"]["DefaultConfiguration"], manifest["Lifecycle"],
        manifest["Artifacts"][0]["Uri"],
    )  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split("+")[0].split("."))


def _next(version: str) -> str:
    major, minor, patch = _numbers(version)
    return f"{major}.{minor}.{patch + 1}"


def _enlist(things: Service, account: Account, group: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put the cores that are in the group now into the registry."""
    ledger, cores, others = Ledger(account.records, alone=False), list[str](), list[str]()
    page = things.ask("list_things_in_thing_group", thingGroupName=group, recursive=True)
    while True:
        for name in page.get("things", []):
            (cores if layout.valid_name(name) else others).append(name)
        if not page.get("nextToken"):
            break
        page = things.ask(
            "list_things_in_thing_group", thingGroupName=group, recursive=True, nextToken=page["nextToken"]
        )
    for name in cores:
        ledger.register(Device(name=name, says=Presence(device=name, online=False)))
    return tuple(cores), tuple(others)
