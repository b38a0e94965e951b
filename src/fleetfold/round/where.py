"""Which devices may be invited: those who are there, and of whom the run's own condition is true.

    where = 'battery > 0.3 and link != "metered" and examples >= 100'

A condition is compared, never run: names of FACTS, numbers, words, comparisons, and, or, not, parentheses.
What is not known of a device makes its comparison false.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleetfold.errors import BadConfig
from fleetfold.round.fleet import Device

Condition = Callable[[Device, float], bool]
"""(device, now) → whether it may be invited."""

FACTS: Mapping[str, Callable[[Device, float], Any]] = {
    "name": lambda d, now: d.name,
    "examples": lambda d, now: d.says.examples if d.says and d.says.examples is not None else d.examples,
    "battery": lambda d, now: d.says and d.says.battery,
    "charging": lambda d, now: d.says and d.says.charging,
    "link": lambda d, now: d.says and (d.says.link or None),
    "memory": lambda d, now: d.says and d.says.memory,
    "online": lambda d, now: d.says and d.says.online,
    "seen": lambda d, now: now - d.last_seen if d.last_seen else None,
    "turnaround": lambda d, now: d.turnaround,
    "chosen": lambda d, now: d.chosen,
    "arrived": lambda d, now: d.arrived,
    "failures": lambda d, now: d.failures,
}
"""What a condition may speak of. `seen`: seconds since the device was last heard of."""
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
LONGEST = 1000
"""Characters of a condition."""


def eligible(
    fleet: Sequence[Device], condition: Condition | None, now: float, *, offline: bool
) -> list[Device]:
    """Who may be invited; `offline`: those who are off too. Who says that it is not free is not asked."""
    there = [d for d in fleet if d.says is None or (d.says.available and (offline or d.says.online))]
    return there if condition is None else [d for d in there if condition(d, now)]


def parse(text: str) -> Condition:
    """Raises BadConfig that says what cannot be understood."""
    try:
        if len(text) > LONGEST:
            raise _bad(text, f"it has more than {LONGEST} characters")
        found = _truth(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _bad(text, str(error).partition(" (")[0]) from None
    return found


def _truth(node: ast.expr, text: str) -> Condition:
    match node:
        case ast.BoolOp(op, values):
            parts = [_truth(value, text) for value in values]
            join = all if isinstance(op, ast.And) else any
            return lambda device, now: join(part(device, now) for part in parts)
        case ast.UnaryOp(ast.Not(), operand):
            part = _truth(operand, text)
            return lambda device, now: not part(device, now)
        case ast.Compare(left, ops, comparators):
            facts = [_value(value, text) for value in (left, *comparators)]
            if any(type(each) not in _COMPARE for each in ops):
                raise _bad(text, "compare with <, <=, >, >=, == or !=")
            return lambda device, now: _compared([fact(device, now) for fact in facts], ops)
        case ast.Name():
            value = _value(node, text)
            return lambda device, now: bool(value(device, now))
    raise _bad(text, f"{ast.unparse(node)[:40]!r} is no comparison")


def _value(node: ast.expr, text: str) -> Callable[[Device, float], Any]:
    match node:
        case ast.Constant(bool() | int() | float() | str() as value):
            return lambda device, now: value
        case ast.Name("true" | "false" as word):
            return lambda device, now: word == "true"
        case ast.Name(name) if name in FACTS:
            return FACTS[name]
        case ast.Name(name):
            raise _bad(text, f"{name!r} is not known: {', '.join(FACTS)}")
    raise _bad(text, f"{ast.unparse(node)[:40]!r} is neither a fact nor a number nor a word in quotes")


def _compared(values: Sequence[Any], ops: Sequence[ast.cmpop]) -> bool:
    for left, op, right in zip(values, ops, values[1:], strict=False):
        try:
            if left is None or right is None or not _COMPARE[type(op)](left, right):
                return False
        except TypeError:  # a word with a number
            return False
    return True


def _bad(text: str, why: str) -> BadConfig:
    return BadConfig(f"where = {text[:80]!r}: {why}", next="where = 'battery > 0.3 and charging == true'")
