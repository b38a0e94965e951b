"""What an AWS IoT policy lets a connection do, by the rules of its documentation; and the same for Mosquitto.

    policy document + what the broker knows ─▶ allows(action, resource)
      of the connection, by variables          rights: Mosquitto's lists, or a refusal to say it inexactly

`*` and `?` are wildcards of the policy; MQTT's `+` and `#` mean nothing to it but themselves. A variable that
is not defined matches nothing. Deny wins. Conditions that are not known here are refused loudly. It shows
what documents say, not what the real broker does with them.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

_VARIABLE = re.compile(r"(\$\{[^}]*\})")
THING = "iot:Connection.Thing.ThingName"
_KINDS = {"iot:Publish": "publishClientSend", "iot:Receive": "publishClientReceive"}
_RESOURCES = {"iot:Publish": "topic/", "iot:Receive": "topic/", "iot:Subscribe": "topicfilter/"}


class OutsideSubset(Exception):
    """A policy that this emulator does not understand: it neither allows nor denies."""


def connection(client: str, things: Sequence[str]) -> dict[str, str]:
    """The variables of whoever connects by that client id, with a certificate that is attached to those
    things: a thing's are defined for a connection under its name alone."""
    attached = client in things
    known = {"iot:ClientId": client, "iot:Connection.Thing.IsAttached": str(attached).lower()}
    return known | ({THING: client} if attached else {})


def allows(document: dict[str, Any], action: str, resource: str, connection: dict[str, str]) -> bool:
    """`resource`: what is behind the account in its ARN, `topic/…`."""
    effects = {
        effect
        for effect, parts in _about(document, action, connection)
        if _pattern(parts).fullmatch(resource)
    }
    return effects == {"Allow"}


def rights(document: dict[str, Any], connection: dict[str, str]) -> list[dict[str, Any]]:
    """The lists of Mosquitto's dynamic-security plugin that say the same of publishing, receiving and
    subscribing. Raises OutsideSubset where they cannot."""
    lists = []
    for action, prefix in _RESOURCES.items():
        for effect, parts in _about(document, action, connection):
            text = "".join(parts)
            if text != "*" and not text.startswith(prefix):
                raise OutsideSubset(f"{action} on {text!r}")
            topic = text.removeprefix(prefix)
            pattern = re.sub(r"(^|/)\*$", r"\1#", topic)
            if "*" in pattern or "?" in pattern:
                raise OutsideSubset(f"{topic!r}: the broker's patterns have no wildcard there")
            literal = "subscribeLiteral" if pattern == topic else "subscribePattern"
            told = {"acltype": _KINDS.get(action, literal), "topic": pattern}
            lists.append(told | {"priority": 10 * (effect == "Deny"), "allow": effect == "Allow"})
    return lists


def _about(
    document: dict[str, Any], action: str, connection: dict[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """(effect, resource in parts, every second of them a variable's value) of every statement that is about
    the action and holds."""
    for statement in _listed(document["Statement"]):
        if rest := set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition"}:
            raise OutsideSubset(f"{sorted(rest)} in a statement")
        if statement["Effect"] not in ("Allow", "Deny"):
            raise OutsideSubset(f"effect {statement['Effect']!r}")
        if not any(_wild(one.lower()).fullmatch(action.lower()) for one in _listed(statement["Action"])):
            continue
        if not _holds(statement.get("Condition", {}), connection):
            continue
        for resource in _listed(statement["Resource"]):
            if (parts := _resolved(resource, connection)) is not None:
                yield statement["Effect"], parts


def _resolved(resource: str, connection: dict[str, str]) -> list[str] | None:
    """What is behind the account, with values of variables; None where one is not defined."""
    text = resource.split(":", 5)[5] if resource.startswith("arn:") else resource
    parts = _VARIABLE.split(text)
    for index in range(1, len(parts), 2):
        if parts[index][2:-1] not in connection:
            return None
        parts[index] = connection[parts[index][2:-1]]
    return parts


def _pattern(parts: list[str]) -> re.Pattern[str]:
    """What a variable stands for is no pattern itself."""
    return re.compile(
        "".join(re.escape(part) if index % 2 else _wild(part).pattern for index, part in enumerate(parts)),
        re.DOTALL,
    )


def _holds(condition: dict[str, Any], connection: dict[str, str]) -> bool:
    for operator, tests in condition.items():
        if operator not in ("Bool", "StringEquals"):
            raise OutsideSubset(f"condition {operator}")
        for name, wanted in tests.items():
            if not name.startswith("iot:"):
                raise OutsideSubset(f"condition on {name}")
            values = [
                str(value).lower() if isinstance(value, bool) else str(value) for value in _listed(wanted)
            ]
            if connection.get(name, "false" if operator == "Bool" else None) not in values:
                return False
    return True


def _wild(text: str) -> re.Pattern[str]:
    return re.compile(
        "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in text), re.DOTALL
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
