"""A small Step Functions: executes the state machine from its definition, as far as ours goes.

It knows Pass, Choice, Task, Map, Succeed and Fail, JSONPath, retries and task tokens with a timeout. It does
not know quotas, real pauses, or anything that ours does not use: at that it fails.
"""

import hashlib
import json
import re
from collections.abc import Callable
from itertools import count
from typing import Any

Data = Any
TOKEN = ".waitForTaskToken"


class Failed(Exception):
    """A task ended with that error. `name`: as a state would match it."""

    def __init__(self, name: str, cause: str = "") -> None:
        super().__init__(f"{name}: {cause}")
        self.name, self.cause = name, cause


class Execution:
    """`call(function, payload)` → its result, or raises Failed. `clock`: seconds."""

    def __init__(
        self, definition: Data, input: Data, call: Callable[[str, Data], Data], clock: Callable[[], float],
        start: Callable[[str, Data], None], name: str = "e",
    ) -> None:  # fmt: skip
        self._states, self._call, self._clock, self._start = definition["States"], call, clock, start
        self.state, self.data = definition["StartAt"], input
        self.name, self.token, self.until, self.answer = name, "", float("inf"), None
        self.visited: list[str] = []
        self.ended, self._serial, self._tries = "", count(1), dict[int, int]()

    def tell(self, token: str, said: Data) -> bool:
        """Whether anything waited by that token."""
        if not token or token != self.token or self.answer is not None:
            return False
        self.answer = said
        return True

    def advance(self) -> bool:
        """Go on as far as possible. → whether anything happened."""
        happened = False
        while not self.ended:
            if self.token:
                if self.answer is not None:
                    said, self.token, self.answer = self.answer, "", None
                    self._leave(self._states[self.state], said)
                elif self._clock() >= self.until:
                    self.token = ""
                    self._caught(self._states[self.state], Failed("States.Timeout"))
                else:
                    return happened
            else:
                self._enter()
            happened = True
        return happened

    def _enter(self) -> None:
        state = self._states[self.state]
        self.visited.append(self.state)
        match state["Type"]:
            case "Pass":
                self._leave(state, state["Result"] if "Result" in state else self._input(state))
            case "Choice":
                chosen = (c["Next"] for c in state["Choices"] if self._is(c))
                self._to(next(chosen, state["Default"]))
            case "Succeed":
                self.ended = "SUCCEEDED"
            case "Fail":
                self.ended = "FAILED"
            case "Map":
                items = _path(self.data, state["ItemsPath"])
                results = []
                for item in items:
                    wanted = _made(state["ItemSelector"], self.data, {"Map": {"Item": {"Value": item}}})
                    inner = state["ItemProcessor"]
                    child = Execution(inner, wanted, self._call, self._clock, self._start, self.name)
                    child.advance()
                    if child.ended != "SUCCEEDED":
                        self.ended = child.ended
                        return
                    results.append(child.data)
                self._leave(state, results)
            case "Task":
                self._task(state)

    def _task(self, state: Data) -> None:
        resource = state["Resource"]
        try:
            if resource.endswith("startExecution"):
                wanted = self._input(state)
                self._start(wanted["Name"], wanted["Input"])
                result: Data = {}
            elif resource.endswith(TOKEN):
                self.token = f"{self.name}-{next(self._serial)}"
                self.until = self._clock() + _path(self.data, state["TimeoutSecondsPath"])
                self.answer = None
                wanted = self._input(state)
                self._call(wanted["FunctionName"], wanted["Payload"])
                return
            else:
                result = self._call(resource, self._input(state))
        except Failed as error:
            if self.token and self.answer is not None:
                return  # it was told before the function died
            self.token = ""
            self._caught(state, error)
        else:
            self._leave(state, result)

    def _caught(self, state: Data, error: Failed) -> None:
        for number, retrier in enumerate(state.get("Retry", [])):
            if _matches(error, retrier["ErrorEquals"]):
                self._tries[number] = self._tries.get(number, 0) + 1
                if self._tries[number] <= retrier["MaxAttempts"]:
                    return  # the state is entered again
                break
        self._tries.clear()
        for catcher in state.get("Catch", []):
            if _matches(error, catcher["ErrorEquals"]):
                self.data = _put(
                    self.data, catcher["ResultPath"], {"Error": error.name, "Cause": error.cause}
                )
                self._to(catcher["Next"])
                return
        self.ended = f"FAILED in {self.state}: {error}"

    def _leave(self, state: Data, result: Data) -> None:
        self._tries.clear()
        self.data = _put(self.data, state.get("ResultPath", "$"), json.loads(json.dumps(result)))
        self.data = _path(self.data, state.get("OutputPath", "$"))
        assert len(json.dumps(self.data)) < 256 * 1024, "more than a state may hold"
        if state.get("End"):
            self.ended = "SUCCEEDED"
        else:
            self._to(state["Next"])

    def _to(self, state: str) -> None:
        self.state = state

    def _input(self, state: Data) -> Data:
        data = _path(self.data, state.get("InputPath", "$"))
        return _made(state["Parameters"], data, self._context()) if "Parameters" in state else data

    def _context(self) -> Data:
        return {
            "Task": {"Token": self.token}, "Execution": {"Id": f"arn:{self.name}", "Name": self.name},
            "StateMachine": {"Id": "arn:machine"},
        }  # fmt: skip

    def _is(self, rule: Data) -> bool:
        if "And" in rule:
            return all(self._is(part) for part in rule["And"])
        try:
            value = _path(self.data, rule["Variable"])
        except (KeyError, IndexError, TypeError):
            return "IsPresent" in rule and not rule["IsPresent"]
        checks = {
            "IsPresent": lambda wanted: wanted,
            "StringEquals": lambda wanted: value == wanted,
            "BooleanEquals": lambda wanted: value == wanted,
            "NumericLessThanEquals": lambda wanted: value <= wanted,
            "NumericGreaterThan": lambda wanted: value > wanted,
            "NumericGreaterThanEquals": lambda wanted: value >= wanted,
        }
        return all(checks[name](w) for name, w in rule.items() if name not in ("Variable", "Next"))


def _matches(error: Failed, names: list[str]) -> bool:
    if error.name in names or "States.ALL" in names:
        return True
    return "States.TaskFailed" in names and error.name != "States.Timeout"


def _path(data: Data, path: str) -> Data:
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        data = data[name] if name else data[int(index)]
    return data


def _put(data: Data, path: str | None, result: Data) -> Data:
    if path is None:
        return data
    if path == "$":
        return result
    (name,) = re.fullmatch(r"\$\.(\w+)", path).groups()  # type: ignore[union-attr]
    return {**data, name: result}


def _made(template: Data, data: Data, context: Data) -> Data:
    if isinstance(template, list):
        return [_made(each, data, context) for each in template]
    if not isinstance(template, dict):
        return template
    return {
        name.removesuffix(".$"): _value(value, data, context)
        if name.endswith(".$")
        else _made(value, data, context)
        for name, value in template.items()
    }


def _value(text: str, data: Data, context: Data) -> Data:
    if text.startswith("$$"):
        return _path(context, text[1:])
    if text.startswith("$"):
        return _path(data, text)
    name, inside = re.fullmatch(r"States\.(\w+)\((.*)\)", text).groups()  # type: ignore[union-attr]
    values = [_argument(part.strip(), data, context) for part in inside.split(",")]
    match name:
        case "MathAdd":
            return values[0] + values[1]
        case "JsonMerge":
            return {**values[0], **values[1]}
        case "Hash":
            return hashlib.sha256(values[0].encode()).hexdigest()
    raise AssertionError(f"States.{name} is not known here")


def _argument(text: str, data: Data, context: Data) -> Data:
    if text.startswith("$"):
        return _value(text, data, context)
    return text[1:-1] if text.startswith("'") else json.loads(text)
