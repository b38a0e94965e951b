"""What an AWS IoT policy lets a connection do, by the rules of its documentation; and the same for Mosquitto.

    policy documents + who connects ─▶ allows(action, resource)      ─▶ rights: Mosquitto's lists, which
                                                                       refuse what they cannot say exactly

`*` and `?` are wildcards of the policy; MQTT's `+` and `#` mean nothing to it but themselves. A variable that
is not defined matches nothing. Deny wins. Conditions other than those in _CONDITIONS are refused loudly.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_RESOURCES = {
    "iot:Connect": "client",
    "iot:Publish": "topic",
    "iot:RetainPublish": "topic",
    "iot:Receive": "topic",
    "iot:Subscribe": "topicfilter",
}


class OutsideSubset(Exception):
    """A policy that this emulator does not understand: it neither allows nor denies."""


@dataclass(frozen=True)
class Principal:
    """Who connects: the client's id, and the things that its certificate is attached to."""

    client: str
    things: tuple[str, ...] = ()
    region: str = "us-east-1"
    account: str = "000000000000"

    @property
    def variables(self) -> dict[str, str]:
        """A thing's are defined for whoever connects by the name of a thing that the certificate is of."""
        thing = self.client in self.things
        known = {"iot:ClientId": self.client, "iot:Connection.Thing.IsAttached": str(thing).lower()}
        return known | ({"iot:Connection.Thing.ThingName": self.client} if thing else {})


def allows(documents: Sequence[dict[str, Any]], action: str, name: str, who: Principal) -> bool:
    """Whether `who` may do it to the client, topic or filter of that name."""
    arn = f"arn:aws:iot:{who.region}:{who.account}:{_RESOURCES[action]}/{name}"
    found = [effect for effect, resource in _about(documents, action, who) if resource.fullmatch(arn)]
    return "Allow" in found and "Deny" not in found


def rights(documents: Sequence[dict[str, Any]], who: Principal) -> list[dict[str, Any]]:
    """The lists of Mosquitto's dynamic-security plugin that say the same of publishing, receiving and
    subscribing. Raises OutsideSubset where they cannot."""
    kinds = {"iot:Publish": "publishClientSend", "iot:Receive": "publishClientReceive"}
    lists = []
    for action in ("iot:Publish", "iot:Receive", "iot:Subscribe"):
        prefix = f"arn:aws:iot:{who.region}:{who.account}:{_RESOURCES[action]}/"
        for effect, text in _texts(documents, action, who):
            if not text.startswith(prefix) and text != "*":
                raise OutsideSubset(f"{text!r} for {action}: neither one region and account nor all")
            topic = "*" if text == "*" else text.removeprefix(prefix)
            pattern = re.sub(r"(^|/)\*$", r"\1#", topic)
            if "*" in pattern or "?" in pattern:
                raise OutsideSubset(f"{topic!r}: the broker's patterns have no wildcard there")
            kind = kinds.get(action) or ("subscribePattern" if pattern != topic else "subscribeLiteral")
            lists.append(
                {
                    "acltype": kind,
                    "topic": pattern,
                    "priority": 10 * (effect == "Deny"),
                    "allow": effect == "Allow",
                }
            )
    return lists


def _about(
    documents: Sequence[dict[str, Any]], action: str, who: Principal
) -> Iterator[tuple[str, re.Pattern[str]]]:
    for effect, text in _texts(documents, action, who):
        yield effect, re.compile(re.escape(text).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def _texts(documents: Sequence[dict[str, Any]], action: str, who: Principal) -> Iterator[tuple[str, str]]:
    """(effect, resource) of every statement about the action that holds for `who`."""
    for document in documents:
        for statement in _listed(document["Statement"]):
            if rest := set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition"}:
                raise OutsideSubset(f"{sorted(rest)} in a statement")
            if statement["Effect"] not in ("Allow", "Deny"):
                raise OutsideSubset(f"effect {statement['Effect']!r}")
            if not any(_matches(pattern, action) for pattern in _listed(statement["Action"])):
                continue
            if not _holds(statement.get("Condition", {}), who):
                continue
            for resource in _listed(statement["Resource"]):
                if (text := _resolved(resource, who)) is not None:
                    yield statement["Effect"], text


def _resolved(text: str, who: Principal) -> str | None:
    """With its variables' values; None where one is not defined."""
    values = who.variables
    names = _VARIABLE.findall(text)
    if unknown := [name for name in names if not name.startswith("iot:")]:
        raise OutsideSubset(f"variables {unknown}")
    if any(name not in values or set(values[name]) & set("*?") for name in names):
        return None
    return _VARIABLE.sub(lambda found: values[found[1]], text)


def _holds(condition: dict[str, Any], who: Principal) -> bool:
    for operator, tests in condition.items():
        if operator not in ("Bool", "StringEquals"):
            raise OutsideSubset(f"condition {operator}")
        for key, wanted in tests.items():
            if key not in (
                "iot:Connection.Thing.IsAttached",
                "iot:Connection.Thing.ThingName",
                "iot:ClientId",
            ):
                raise OutsideSubset(f"condition on {key}")
            values = [
                str(value).lower() if isinstance(value, bool) else str(value) for value in _listed(wanted)
            ]
            if who.variables.get(key) not in [_resolved(value, who) for value in values]:
                return False
    return True


def _matches(pattern: str, action: str) -> bool:
    return (
        re.fullmatch(re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", "."), action.lower())
        is not None
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
