"""What a process tells whoever keeps it, as it goes: one line each, for people or for machines.

    14:03:21 update refused (w is not finite) run=digits-1 round=3 device=camera-7                  text
    {"at":1795289231.185,"what":"update refused","run":"digits-1","round":3,"device":"camera-7",…}  json

Facts have the same names everywhere: run, round, kind, device, reason. What others said is made fit to be
shown.
"""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any, Literal

import msgspec

from fleetfold.errors import shown

Shape = Literal["text", "json"]
SHAPES: tuple[Shape, ...] = ("text", "json")
MOST = 2000
"""Characters of one fact."""


class Log:
    """`shape`: one of SHAPES. `out`: standard output if it is not given. `dated`: text begins with the day
    too. `about`: what each line says as JSON; people know it."""

    def __init__(
        self, shape: str = "text", out: IO[str] | None = None, *, dated: bool = False,
        clock: Callable[[], float] = time.time, **about: Any,
    ) -> None:  # fmt: skip
        self._json, self._out, self._clock, self._about = shape == "json", out or sys.stdout, clock, about
        self._time = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"

    def __call__(self, what: str, **facts: Any) -> None:
        now, said = self._clock(), _fit({"what": what, **self._about, **facts})
        if self._json:
            text = msgspec.json.encode({"at": round(now, 3), **said}).decode()
        else:
            words = _said({name: said[name] for name in facts if name in said})
            text = " ".join([time.strftime(self._time, time.localtime(now)), str(said["what"]), *words])
        with suppress(OSError, ValueError):  # nobody reads it any more: the work goes on
            print(text, file=self._out, flush=True)


def _fit(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say, without what a terminal would obey."""
    given = {name: value for name, value in facts.items() if value not in ("", None)}
    return {name: shown(value, MOST) if isinstance(value, str) else value for name, value in given.items()}


def _said(facts: Mapping[str, Any]) -> list[str]:
    reason = [f"({facts['reason']})"] if "reason" in facts else []
    return reason + [f"{name}={_short(value)}" for name, value in facts.items() if name != "reason"]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
