"""AWS IoT's topic rules, the part of their SQL that this project uses. Whatever else is refused loudly.

SELECT item [AS name], … FROM 'filter' [WHERE condition]

items: * · topic() topic(n) · encode(*, 'base64') · clientid() · timestamp() · 'text' · number · a.b of JSON ·
       {'name': item, …}
condition: = <> < <= > >= IN [ … ] AND OR NOT ( … )
It does not show: error actions, retries, other functions, what a real rule does with a wrong type.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<word>[A-Za-z_]\w*(?:\.\w+)*)"
    r"|(?P<sign><>|!=|<=|>=|[=<>(),*:{}\[\]]))"
)
_KEYWORDS = ("SELECT", "AS", "FROM", "WHERE", "AND", "OR", "NOT", "IN")


class OutsideSubset(Exception):
    """SQL that this emulator does not understand."""


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    client: str = ""
    at: float = 0.0


class Undefined:
    """What a field has that is not there: it is in no output, and no comparison with it holds."""


UNDEFINED = Undefined()
Value = Callable[[Message], Any]


@dataclass(frozen=True)
class Rule:
    filter: str
    items: tuple[tuple[str, Value], ...]
    where: Value

    def select(self, message: Message) -> dict[str, Any] | None:
        """What the rule's actions are given; None where it does not want the message."""
        if self.where(message) is not True:
            return None
        found: dict[str, Any] = {}
        for name, value in self.items:
            made = value(message)
            if name == "*":
                found |= made if isinstance(made, dict) else {}
            elif made is not UNDEFINED:
                found[name] = made
        return found


def parse(sql: str) -> Rule:
    """Raises OutsideSubset."""
    return _Parser(sql).rule()


class _Parser:
    def __init__(self, sql: str) -> None:
        self._sql, self._tokens, at = sql, [], 0
        while at < len(sql.rstrip()):
            found = _TOKEN.match(sql, at)
            if found is None:
                raise OutsideSubset(f"{sql[at : at + 30]!r} in {sql!r}")
            kind = found.lastgroup or ""
            text = found[kind]
            if kind == "word" and text.upper() in _KEYWORDS:
                kind, text = "keyword", text.upper()
            self._tokens.append((kind, text))
            at = found.end()
        self._tokens.append(("end", ""))

    def rule(self) -> Rule:
        self._need("keyword", "SELECT")
        items = [self._item()]
        while self._has("sign", ","):
            items.append(self._item())
        self._need("keyword", "FROM")
        filter = self._text()
        where: Value = lambda message: True  # noqa: E731
        if self._has("keyword", "WHERE"):
            where = self._or()
        self._need("end", "")
        return Rule(filter, tuple(items), where)

    def _item(self) -> tuple[str, Value]:
        if self._has("sign", "*"):
            return "*", _json
        kind, text = self._tokens[0]
        value = self._operand()
        name = text.rpartition(".")[2] if kind == "word" else ""
        if self._has("keyword", "AS"):
            name = self._need("word")
        if not name:
            raise OutsideSubset(f"an item without a name in {self._sql!r}")
        return name, value

    def _or(self) -> Value:
        left = self._and()
        while self._has("keyword", "OR"):
            left = _either(left, self._and())
        return left

    def _and(self) -> Value:
        left = self._not()
        while self._has("keyword", "AND"):
            left = _both(left, self._not())
        return left

    def _not(self) -> Value:
        if self._has("keyword", "NOT"):
            inner = self._not()
            return lambda message: inner(message) is False
        if self._has("sign", "("):
            inner = self._or()
            self._need("sign", ")")
            return inner
        return self._comparison()

    def _comparison(self) -> Value:
        left = self._operand()
        if self._has("keyword", "IN"):
            self._need("sign", "[")
            among = [self._operand()]
            while self._has("sign", ","):
                among.append(self._operand())
            self._need("sign", "]")
            return lambda message: left(message) in [value(message) for value in among]
        sign = self._need("sign")
        if sign not in _COMPARED:
            raise OutsideSubset(f"{sign!r} in {self._sql!r}")
        right, compare = self._operand(), _COMPARED[sign]
        return lambda message: compare(left(message), right(message))

    def _operand(self) -> Value:
        kind = self._tokens[0][0]
        if kind == "text":
            value: Any = self._text()
            return lambda message: value
        if kind == "number":
            number = json.loads(self._need("number"))
            return lambda message: number
        if self._has("sign", "{"):
            return self._object()
        name = self._need("word")
        if not self._has("sign", "("):
            return lambda message: _field(_json(message), name.split("."))
        arguments: list[Any] = []
        while not self._has("sign", ")"):
            arguments.append("*" if self._has("sign", "*") else self._operand())
            self._has("sign", ",")
        return self._called(name.lower(), arguments)

    def _object(self) -> Value:
        members: list[tuple[str, Value]] = []
        while not self._has("sign", "}"):
            name = self._text()
            self._need("sign", ":")
            members.append((name, self._operand()))
            self._has("sign", ",")

        def made(message: Message) -> dict[str, Any]:
            values = [(name, value(message)) for name, value in members]
            return {name: value for name, value in values if value is not UNDEFINED}

        return made

    def _called(self, name: str, arguments: list[Any]) -> Value:
        whole = arguments[:1] == ["*"]
        match name, len(arguments):
            case "topic", 0:
                return lambda message: message.topic
            case "topic", 1 if not whole:
                return lambda message: _word(message.topic, arguments[0](message))
            case "clientid", 0:
                return lambda message: message.client
            case "timestamp", 0:
                return lambda message: int(1000 * message.at)
            case "encode", 2 if whole:
                return lambda message: _encoded(message.payload, arguments[1](message))
        raise OutsideSubset(f"{name}() with {len(arguments)} arguments in {self._sql!r}")

    def _text(self) -> str:
        return self._need("text")[1:-1].replace("''", "'")

    def _has(self, kind: str, text: str) -> bool:
        if self._tokens[0] == (kind, text):
            self._tokens.pop(0)
            return True
        return False

    def _need(self, kind: str, text: str | None = None) -> str:
        found = self._tokens[0]
        if found[0] != kind or (text is not None and found[1] != text):
            raise OutsideSubset(f"{found[1]!r} where {text or kind} should be, in {self._sql!r}")
        self._tokens.pop(0)
        return found[1]


_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a is not UNDEFINED and a == b,
    "<>": lambda a, b: a != b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: _numbers(a, b) and a < b,
    "<=": lambda a, b: _numbers(a, b) and a <= b,
    ">": lambda a, b: _numbers(a, b) and a > b,
    ">=": lambda a, b: _numbers(a, b) and a >= b,
}


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _either(left: Value, right: Value) -> Value:
    return lambda message: left(message) is True or right(message) is True


def _both(left: Value, right: Value) -> Value:
    return lambda message: left(message) is True and right(message) is True


def _json(message: Message) -> Any:
    try:
        return json.loads(message.payload)
    except ValueError:
        return UNDEFINED


def _field(value: Any, names: list[str]) -> Any:
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return UNDEFINED
        value = value[name]
    return value


def _word(topic: str, number: int) -> Any:
    words = topic.split("/")
    return words[number - 1] if 0 < number <= len(words) else UNDEFINED


def _encoded(payload: bytes, scheme: str) -> str:
    if scheme != "base64":
        raise OutsideSubset(f"encode(*, {scheme!r})")
    return base64.b64encode(payload).decode()
