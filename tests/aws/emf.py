"""Metrics within log lines, by the specification of CloudWatch's embedded metric format: no emulator takes
them out, so that a line which CloudWatch would pass over silently has to be found here.

log lines ─▶ metrics(lines): (namespace, name, value, unit, dimensions) of each        Raises Wrong
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

UNITS = frozenset(
    [
        "Seconds",
        "Microseconds",
        "Milliseconds",
        "Bytes",
        "Kilobytes",
        "Megabytes",
        "Gigabytes",
        "Terabytes",
        "Bits",
        "Kilobits",
        "Megabits",
        "Gigabits",
        "Terabits",
        "Percent",
        "Count",
        "Bytes/Second",
        "Kilobytes/Second",
        "Megabytes/Second",
        "Gigabytes/Second",
        "Terabytes/Second",
        "Bits/Second",
        "Kilobits/Second",
        "Megabits/Second",
        "Gigabits/Second",
        "Terabits/Second",
        "Count/Second",
        "None",
    ]
)
METRICS, DIMENSIONS, VALUES = 100, 30, 100
"""Of one line, of one set, of one metric, at most."""
_NAMESPACE = re.compile(r"[A-Za-z0-9._\-/#:]{1,255}")


class Wrong(Exception):
    """What CloudWatch would not take, or take for something else."""


class Metric(NamedTuple):
    namespace: str
    name: str
    value: float
    unit: str
    dimensions: tuple[tuple[str, str], ...]


def metrics(lines: Iterable[str]) -> list[Metric]:
    """Of all lines that have any; others are passed over, but for those that name `_aws` and are no JSON."""
    found: list[Metric] = []
    for line in lines:
        if '"_aws"' not in line:
            continue
        try:
            said = json.loads(line)
        except ValueError:
            raise Wrong(f"no JSON: {line[:200]}") from None
        if not isinstance(said, dict) or not isinstance(said.get("_aws"), dict):
            raise Wrong(f"_aws is not at the top: {line[:200]}")
        found += _of(said, said["_aws"])
    return found


def _of(said: dict[str, Any], about: dict[str, Any]) -> Iterator[Metric]:
    if not isinstance(about.get("Timestamp"), int) or about["Timestamp"] < 10**12:
        raise Wrong(f"Timestamp {about.get('Timestamp')!r}: milliseconds since the epoch")
    directives = about.get("CloudWatchMetrics")
    if not isinstance(directives, list) or not directives:
        raise Wrong("CloudWatchMetrics is no list")
    for directive in directives:
        namespace = directive.get("Namespace", "")
        if not _NAMESPACE.fullmatch(namespace) or namespace.startswith("AWS/"):
            raise Wrong(f"namespace {namespace!r}")
        if not 0 < len(directive["Metrics"]) <= METRICS:
            raise Wrong(f"{len(directive['Metrics'])} metrics")
        for dimensions in directive.get("Dimensions", [[]]):
            named = tuple((name, _dimension(said, name)) for name in dimensions)
            if len(named) > DIMENSIONS:
                raise Wrong(f"{len(named)} dimensions")
            for metric in directive["Metrics"]:
                for value in _values(said, metric):
                    yield Metric(namespace, metric["Name"], value, metric.get("Unit", "None"), named)


def _dimension(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 1024 or not value.isascii() or value.isspace():
        raise Wrong(f"dimension {name} is {value!r}")
    return value


def _values(said: dict[str, Any], metric: dict[str, Any]) -> list[float]:
    name, unit = metric.get("Name", ""), metric.get("Unit", "None")
    if not 0 < len(name) <= 1024 or unit not in UNITS or metric.get("StorageResolution", 60) not in (1, 60):
        raise Wrong(f"metric {metric}")
    values = said.get(name)
    listed = values if isinstance(values, list) else [values]
    if not 0 < len(listed) <= VALUES:
        raise Wrong(f"{name} has {len(listed)} values")
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Wrong(f"{name} is {value!r}")
    return [float(value) for value in listed]
