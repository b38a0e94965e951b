"""Whether an IoT policy allows something: a matcher of the tests, from AWS's documentation. Policies are
enforced by no emulator here; it shows what the documents say, not what the real broker does with them."""

import re
from typing import Any


def allows(document: dict[str, Any], action: str, resource: str, connection: dict[str, str]) -> bool:
    """`resource`: behind the account in its ARN, `topic/…`. `connection`: the variables that the broker knows
    of the connection; a statement with any other matches nothing."""
    return any(_matches(statement, action, resource, connection) for statement in document["Statement"])


def _matches(statement: dict[str, Any], action: str, resource: str, connection: dict[str, str]) -> bool:
    assert statement["Effect"] == "Allow"
    for operator, conditions in statement.get("Condition", {}).items():
        assert operator == "Bool"
        if any(connection.get(name, "false") not in values for name, values in conditions.items()):
            return False
    return statement["Action"] == action and any(
        _same(pattern, resource, connection) for pattern in statement["Resource"]
    )


def _same(pattern: str, resource: str, connection: dict[str, str]) -> bool:
    pattern = pattern.split(":", 5)[5]
    for name in re.findall(r"\$\{([^}]*)\}", pattern):
        if name not in connection:
            return False
    # What a variable stands for is no pattern itself.
    text = "".join(
        re.escape(connection[part[2:-1]]) if part.startswith("${") else _wild(part)
        for part in re.split(r"(\$\{[^}]*\})", pattern)
    )
    return re.fullmatch(text, resource) is not None


def _wild(text: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in text)
