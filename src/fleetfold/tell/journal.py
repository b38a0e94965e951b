"""metrics.jsonl in a run's folder: a line for each round that has ended, as it ends.

    ledger ─▶ rows that have ended ─▶ those that have no line yet ─▶ appended, synced

The truth is the ledger's. Who dies in between leaves a round without its line, or half a line: the next one
cuts that off and goes on, so that no round is lost or told twice.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from fleetfold.round.state import ENDED
from fleetfold.tell import numbers
from fleetfold.view import Row

NAME = "metrics.jsonl"


def entry(run: str, row: Row) -> dict[str, Any]:
    """What a line says: which round, how it ended, its numbers, and whatever else was reported."""
    about = {
        "run": run, "round": row.round, "kind": row.kind, "phase": row.phase, "reason": row.reason,
        "opened_at": row.opened_at, "ended_at": row.ended_at,
    }  # fmt: skip
    if row.kind == "message":
        about |= {"label": row.label, "turn": row.turn}
    return {**about, **numbers.of(row), "metrics": row.metrics}


def line(run: str, row: Row) -> bytes:
    return msgspec.json.encode(entry(run, row)) + b"\n"


class Journal:
    """Of one run, in its folder; one process at a time keeps it."""

    def __init__(self, folder: Path, run: str) -> None:
        self._path, self._run = folder / NAME, run
        self._told: set[tuple[int, str]] | None = None

    def add(self, rows: Iterable[Row]) -> list[Row]:
        """Have a line for every round that has ended. → those that had none. A disk that is full is tried
        again with the next."""
        fresh = list[Row]()
        try:
            if self._told is None:
                self._told = _mended(self._path)
            for row in rows:
                if row.phase in ENDED and (row.round, row.kind) not in self._told:
                    _append(self._path, line(self._run, row))
                    self._told.add((row.round, row.kind))
                    fresh.append(row)
        except OSError:
            self._told = None  # half a line may be there
        return fresh


class _Told(msgspec.Struct):
    round: int
    kind: str


_TOLD = msgspec.json.Decoder(_Told)


def _mended(path: Path) -> set[tuple[int, str]]:
    """The rounds that have their line; what is no line, or one told twice, is taken out of the file."""
    before = path.read_bytes() if path.exists() else b""
    told = dict[tuple[int, str], bytes]()
    for each in before.splitlines(keepends=True):
        try:
            found = _TOLD.decode(each)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if each.endswith(b"\n"):
            told.setdefault((found.round, found.kind), each)
    after = b"".join(told.values())
    if after != before:
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        _append(fresh, after)
        fresh.replace(path)
    return set(told)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)  # not synced: what a power cut takes is made again from the ledger
