"""The log of every call that reached an emulated API: by whom, what, with which parameters, how it ended.

FOLDER/calls.jsonl, a line each, also written by LocalStack (localstack_main.py):
  {"kind": "environment", "key", "function", "role"}  a function's process, and the credentials lent to it
    {"kind": "call", "key" or "role", "service", "operation", "request", "status", "error", …}
    {"kind": "invocation", "function", "ok", "asked"}    what a test asked to happen to it
"""

import json
import threading
import time
from pathlib import Path
from typing import Any


class Calls:
    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / "calls.jsonl", threading.Lock()
        self._path.touch()

    def note(self, **said: Any) -> None:
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps({"at": time.time(), **said}, default=str) + "\n")

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def by_roles(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(role's ARN, function or what else had that role, call) of each call by some role that was let in:
        an address whose signature is wrong is nobody's."""
        lines = self.all()
        lent = {line["key"]: line for line in lines if line["kind"] == "environment"}
        found = []
        for line in lines:
            if line.get("status") == 403:
                continue
            if line["kind"] == "call" and (by := lent.get(line.get("key", ""))):
                found.append((by["role"], by["function"], line))
            elif line["kind"] == "call" and line.get("role"):
                found.append((line["role"], line.get("by", ""), line))
        return found

    def deaths(self, function: str) -> int:
        """Invocations that a fault which was asked for has ended."""
        return sum(
            line["kind"] == "invocation" and line["function"] == function and not line["ok"]
            and "environment" in line["asked"]
            for line in self.all()
        )  # fmt: skip
