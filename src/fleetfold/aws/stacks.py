"""CloudFormation as a deployment sees it: what stands, what would change, and what happens event by event.

    propose ─▶ Plan ─▶ execute ─▶ Happening … ─▶ Standing

One change set for each digest of template and parameters: who died after proposing finds it again. Failures
are told with the reason of the resource that failed first, for the others only follow it.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from fleetfold.adapters.boto import Declined, Service
from fleetfold.errors import BadConfig, Unavailable

_NO_PLAN = ("ValidationError", "ChangeSetNotFound", "ChangeSetNotFoundException")
_NOT_NOW = ("InvalidChangeSetStatus", "InvalidChangeSetStatusException")
Action = Literal["add", "modify", "remove", "replace", "perhaps replace"]
DATA = ("AWS::S3::Bucket", "AWS::DynamoDB::Table")
"""Types of resources in which there is what nobody can make again."""
CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
"""Roles are made (with names of CloudFormation's), and the SAM transform is one."""
LOOK = 1.5
"""Seconds between two looks at what happens."""
PLANNING = 300.0
"""Seconds that a plan may take, of which the transform takes a few."""


class Change(Struct, frozen=True):
    """What would become of one resource: `why`, the properties that differ."""

    action: Action
    resource: str
    type: str
    why: str = ""

    @property
    def loses(self) -> bool:
        """Whether what is in it would be out of the stack's reach."""
        return self.type in DATA and self.action not in ("add", "modify")


class Plan(Struct, frozen=True):
    """A change set that waits to be executed. No changes: nothing differs, and there is none."""

    stack: str
    name: str
    changes: tuple[Change, ...]


class Happening(Struct, frozen=True):
    """One event of a stack: `at` in seconds since the epoch; `reason` where there is one."""

    id: str
    at: float
    resource: str
    type: str
    status: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.status.endswith("_FAILED") and "cancelled" not in self.reason


class Standing(Struct, frozen=True):
    """A stack as it stands: its status in CloudFormation's words, its outputs and its parameters. `id` is
    what a stack that is gone can still be asked for by."""

    name: str
    status: str
    reason: str = ""
    outputs: dict[str, str] = {}
    parameters: dict[str, str] = {}
    id: str = ""

    @property
    def busy(self) -> bool:
        return self.status.endswith("_IN_PROGRESS") and self.status != "REVIEW_IN_PROGRESS"

    @property
    def made(self) -> bool:
        """Whether it was ever there as a whole: else only a plan of it is, or what is left of a failure."""
        return self.status not in (
            "REVIEW_IN_PROGRESS",
            "ROLLBACK_COMPLETE",
            "ROLLBACK_FAILED",
            "CREATE_FAILED",
        )


class Stacks(Protocol):
    """CloudFormation, or what stands in for it."""

    def look(self, stack: str, after: str = "") -> tuple[Standing | None, list[Happening]]:
        """How it stands (None: there is no such stack), and what happened before that and since the event
        `after` ("": since the newest thing that was begun), in order."""

    def propose(self, stack: str, template: str, parameters: Mapping[str, str | None], new: bool) -> Plan:
        """`template`: its URL; a parameter that is None stays as it is. The same twice is one plan."""

    def execute(self, plan: Plan) -> None:
        """Begin to do it; not heard if it has begun."""

    def withdraw(self, plan: Plan) -> None:
        """The plan will not be executed."""

    def delete(self, stack: str) -> None:
        """Begin to; not heard if there is none."""


class CloudFormation:
    """`Stacks` by boto3's client of that name. `sleep`: between looks at a plan in the making."""

    def __init__(self, client: Any, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._service = Service(client, "CloudFormation", sleep=sleep)
        self._sleep = sleep

    def look(self, stack: str, after: str = "") -> tuple[Standing | None, list[Happening]]:
        standing = self._standing(stack)  # before the events: what ended it is among them then
        return standing, self._happenings(stack, after)

    def _standing(self, stack: str) -> Standing | None:
        try:
            answer = self._service.ask("describe_stacks", expected=["ValidationError"], StackName=stack)
        except Declined:
            return None
        found = answer["Stacks"][0]
        if found["StackStatus"] == "DELETE_COMPLETE":
            return None
        return Standing(
            found["StackName"], found["StackStatus"], found.get("StackStatusReason", ""),
            {o["OutputKey"]: o["OutputValue"] for o in found.get("Outputs", [])},
            {p["ParameterKey"]: p.get("ParameterValue", "") for p in found.get("Parameters", [])},
            found.get("StackId", ""),
        )  # fmt: skip

    def propose(self, stack: str, template: str, parameters: Mapping[str, str | None], new: bool) -> Plan:
        digest = hashlib.sha256(repr((template, sorted(parameters.items()), new)).encode()).hexdigest()
        name = f"fleetfold-{digest[:32]}"
        told = [
            {"ParameterKey": key, "UsePreviousValue": True}
            if value is None
            else {"ParameterKey": key, "ParameterValue": value}
            for key, value in sorted(parameters.items())
        ]
        # One of the same name may have been made before something else was deployed: it is made anew.
        self.withdraw(Plan(stack, name, ()))
        self._service.ask(
            "create_change_set", StackName=stack, ChangeSetName=name, TemplateURL=template, Parameters=told,
            Capabilities=CAPABILITIES, ChangeSetType="CREATE" if new else "UPDATE",
            Tags=[{"Key": "fleetfold", "Value": stack}],
        )  # fmt: skip
        return self._planned(stack, name)

    def execute(self, plan: Plan) -> None:
        try:
            self._service.ask(
                "execute_change_set", expected=[*_NO_PLAN, *_NOT_NOW],
                StackName=plan.stack, ChangeSetName=plan.name,
            )  # fmt: skip
        except Declined as declined:
            found = self._standing(plan.stack)
            if found is None or not found.busy:
                raise Unavailable(
                    f"the plan for {plan.stack} is out of date: {_said(declined)}",
                    next=f"fleetfold aws deploy --stack {plan.stack}",
                ) from None

    def withdraw(self, plan: Plan) -> None:
        for _ in range(int(PLANNING / LOOK)):
            try:
                self._service.ask(
                    "delete_change_set", expected=[*_NO_PLAN, *_NOT_NOW],
                    StackName=plan.stack, ChangeSetName=plan.name,
                )  # fmt: skip
            except Declined as declined:
                if declined.code in _NOT_NOW:  # in the making
                    self._sleep(LOOK)
                    continue
            return

    def _happenings(self, stack: str, after: str) -> list[Happening]:
        found: list[Happening] = []
        token: dict[str, str] = {}
        while True:
            try:
                page = self._service.ask(
                    "describe_stack_events", expected=["ValidationError"], StackName=stack, **token
                )
            except Declined:
                return found[::-1]
            for event in page["StackEvents"]:
                if event["EventId"] == after:
                    return found[::-1]
                one = Happening(
                    event["EventId"], event["Timestamp"].timestamp(), event["LogicalResourceId"],
                    event.get("ResourceType", ""), event.get("ResourceStatus", ""),
                    event.get("ResourceStatusReason", ""),
                )  # fmt: skip
                found.append(one)
                if not after and is_begun(one):
                    return found[::-1]
            if not page.get("NextToken"):
                return found[::-1]
            token = {"NextToken": page["NextToken"]}

    def delete(self, stack: str) -> None:
        self._service.ask("delete_stack", StackName=stack)

    def _planned(self, stack: str, name: str) -> Plan:
        for _ in range(int(PLANNING / LOOK)):
            about = self._service.ask("describe_change_set", StackName=stack, ChangeSetName=name)
            if about["Status"] == "CREATE_COMPLETE":
                return Plan(stack, name, self._changes(about))
            if about["Status"] == "FAILED":
                why = about.get("StatusReason", "")
                self.withdraw(Plan(stack, name, ()))
                if re.search("didn't contain changes|No updates are to be performed|no changes", why, re.I):
                    return Plan(stack, name, ())
                raise BadConfig(f"CloudFormation does not take the stack {stack}: {why}")
            self._sleep(LOOK)
        raise Unavailable(f"CloudFormation is still planning {stack}", next="fleetfold aws deploy")

    def _changes(self, about: dict[str, Any]) -> tuple[Change, ...]:
        found: list[dict[str, Any]] = list(about.get("Changes", []))
        while about.get("NextToken"):
            about = self._service.ask(
                "describe_change_set", StackName=about["StackName"], ChangeSetName=about["ChangeSetName"],
                NextToken=about["NextToken"],
            )  # fmt: skip
            found += about.get("Changes", [])
        return tuple(change(one["ResourceChange"]) for one in found)


def change(about: Mapping[str, Any]) -> Change:
    """A change of CloudFormation's, in our words."""
    actions: Mapping[str, Action] = {"Add": "add", "Remove": "remove", "Modify": "modify", "Import": "add"}
    action = actions.get(about["Action"], "modify")
    if action == "modify" and about.get("Replacement") == "True":
        action = "replace"
    if action == "modify" and about.get("Replacement") == "Conditional":
        action = "perhaps replace"
    names = [
        detail.get("Target", {}).get("Name") or detail.get("Target", {}).get("Attribute", "")
        for detail in about.get("Details", [])
    ]
    why = ", ".join(dict.fromkeys(name for name in names if name))
    return Change(action, about["LogicalResourceId"], about["ResourceType"], why)


def is_begun(happening: Happening) -> bool:
    """Whether somebody began to create, update or delete the whole stack."""
    begun = ("CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS")
    return happening.status in begun and happening.type == STACK


STACK = "AWS::CloudFormation::Stack"


def followed(
    stacks: Stacks, stack: str, after: str, show: Callable[[Sequence[Happening]], None],
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Standing | None, Happening | None]:  # fmt: skip
    """Watch until nothing is under way, and show what happens. → how the stack stands (None: it is gone),
    and what failed first."""
    first: Happening | None = None
    while True:
        found, news = stacks.look(stack, after)
        if news:
            after = news[-1].id
            show(news)
            first = first or next((h for h in news if h.failed and h.type != STACK), None)
        if found is None or not found.busy:
            return found, first
        sleep(LOOK)


def _said(declined: Declined) -> str:
    return str(declined.answer.get("Error", {}).get("Message", declined.code))
