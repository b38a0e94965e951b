"""What a device's agent tells its owner as it goes: one line each, for people or for machines."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

import msgspec


class Log:
    """shape: text or json. On standard output; what the app prints goes to standard error."""

    def __init__(self, shape: str, out: IO[str] | None = None) -> None:
        self._json, self._out = shape == "json", out or sys.stdout

    def __call__(self, what: str, **facts: Any) -> None:
        now = time.time()
        if self._json:
            text = msgspec.json.encode({"at": round(now, 3), "what": what, **facts}).decode()
        else:
            text = " ".join([time.strftime("%H:%M:%S", time.localtime(now)), what, *_said(facts)])
        with suppress(OSError):  # nobody reads it any more: the work goes on
            print(text, file=self._out, flush=True)


def _said(facts: Mapping[str, Any]) -> list[str]:
    given = {name: value for name, value in facts.items() if value != ""}
    return [f"({value})" if name == "why" else f"{name}={value}" for name, value in given.items()]
