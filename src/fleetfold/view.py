"""What people are shown of a run: one row a round, one line a device, from the ledger alone.

The table of the terminal, `--json`, `show` and whatever draws curves read the same rows.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, get_args

from msgspec import Struct

from fleetfold import layout
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.messages import Kind
from fleetfold.ports import Objects
from fleetfold.round.state import ENDED, Round


class Row(Struct, frozen=True, kw_only=True):
    """One round. Seconds and bytes; `loss` and `accuracy` as scored by `scored_by`: the test set, the
    devices (the model that they were given, one round old), or in training. `epsilon`: of the run so far."""

    round: int
    kind: Kind
    label: str = ""  # of an exchange of messages: what its app calls it
    turn: int = 0  # and the app's own number of the round that it belongs to
    phase: str
    reason: str
    cohort: int
    arrived: int
    refused: int
    late: int
    credited: int
    loss: float | None
    accuracy: float | None
    scored_by: str
    epsilon: float | None
    metrics: Mapping[str, Mapping[str, float | None]]
    seconds: float
    fold_seconds: float
    bytes_up: int
    bytes_down: int
    cost: float | None = None  # USD, where it is paid for by the round
    opened_at: float = 0.0  # seconds since the epoch
    ended_at: float = 0.0  # 0: it has not


Priced = Callable[[Round, Mapping[str, Arrival], int], float]
"""USD of a round that has ended: the round, its arrivals, the bytes of the model that was sent."""


class Line(Struct, frozen=True, kw_only=True):
    """One device in one round: seconds of its steps, from invitation to the end; None: not known."""

    device: str
    state: str
    reason: str
    examples: int
    download: float | None
    compute: float | None
    upload: float | None
    total: float | None
    bytes: int


def called(row: Row) -> str:
    """What people call a round: its number, and what it is if it does not train; of an app that sends
    messages, what the app calls it."""
    if row.kind == "message":
        turn = f" of round {row.turn}" if row.turn else ""
        return f"{row.round}: {row.label or 'messages'}{turn}"
    return str(row.round) if row.kind == "train" else f"{row.round} {row.kind}"


SCORERS = ("test", "devices", "trained")
"""Whose numbers are shown, best first."""


def row(ledger: Ledger, objects: Objects, round: Round, now: float, priced: Priced | None = None) -> Row:
    """The row of a round, ended or not."""
    found = ledger.arrivals(place(round))
    arrivals = found.values()
    ended = round.ended_at if round.phase in ENDED else now
    loss, accuracy, by = headline(round)
    epsilon = round.metrics.get("privacy", {}).get("epsilon")
    fetched = sum(1 for a in arrivals if a.took.download is not None)
    base = round.sent if round.batch else objects.size(layout.model(round.run, round.base)) or 0
    return Row(
        round=round.number, kind=round.kind, label=round.label, turn=round.turn,
        phase=round.phase.value, reason=round.reason,
        cohort=round.invited, arrived=len(round.arrived), refused=len(round.refused),
        late=sum(a.state in ("late", "credited") for a in arrivals), credited=len(round.credits),
        loss=loss, accuracy=accuracy, scored_by=by, epsilon=epsilon, metrics=round.metrics,
        seconds=ended - round.opened_at,
        fold_seconds=ended - round.closed_at if round.closed_at else 0.0,
        bytes_up=sum(a.size for a in arrivals), bytes_down=base * fetched,
        cost=priced(round, found, base) if priced and round.phase in ENDED else None,
        opened_at=round.opened_at, ended_at=round.ended_at,
    )  # fmt: skip


def rows(ledger: Ledger, objects: Objects, run: str, now: float, priced: Priced | None = None) -> list[Row]:
    return [row(ledger, objects, round, now, priced) for round in ledger.rounds(run)]


class Following:
    """The rows of a run as they come: what has ended is read once, however often it is asked."""

    def __init__(self, ledger: Ledger, objects: Objects, run: str, priced: Priced | None = None) -> None:
        self._ledger, self._objects, self._run, self._priced = ledger, objects, run, priced
        self._rows: dict[tuple[int, Kind], Row] = {}
        self._from = 0  # rounds before it have ended, and so have their evaluations

    def look(self, now: float) -> list[Row]:
        """All rows there are by now, in order; those of an open round change from look to look."""
        if not self._rows:
            for round in self._ledger.rounds(self._run):
                self._see(round, now)
        else:
            for number in count(self._from):
                found = [self._ledger.round(self._run, number, kind) for kind in self._due(number)]
                for entry in found:
                    if entry:
                        self._see(entry[0], now)
                if (number, "train") not in self._rows and not any(found):
                    break
        numbers = [number for number, _ in self._rows]
        still = [number for (number, _), row in self._rows.items() if row.phase not in ENDED]
        self._from = min(still, default=max(numbers, default=0))
        return list(self._rows.values())

    def _due(self, number: int) -> list[Kind]:
        """Kinds of that round that are not known to have ended."""
        known = {kind: self._rows.get((number, kind)) for kind in get_args(Kind)}
        return [kind for kind, row in known.items() if row is None or row.phase not in ENDED]

    def _see(self, round: Round, now: float) -> None:
        self._rows[round.number, round.kind] = row(self._ledger, self._objects, round, now, self._priced)


def headline(round: Round) -> tuple[float | None, float | None, str]:
    """(loss, accuracy, who scored them): the best that is known of the round."""
    for by in SCORERS:
        metrics = round.metrics.get(by, {})
        loss, accuracy = metrics.get("loss"), metrics.get("accuracy")
        if loss is not None or accuracy is not None:
            return loss, accuracy, by
    return None, None, ""


def lines(ledger: Ledger, objects: Objects, round: Round, cohort: list[str]) -> list[Line]:
    """The timeline of a round: a line for every invited device, the slowest first."""
    arrivals = ledger.arrivals(place(round))
    found = [_line(round, name, arrivals.get(name)) for name in cohort]
    return sorted(found, key=lambda line: (line.total is not None, -(line.total or 0), line.device))


def _line(round: Round, device: str, arrival: Arrival | None) -> Line:
    if arrival is None:
        return Line(
            device=device, state="silent", reason="", examples=0, download=None, compute=None,
            upload=None, total=None, bytes=0,
        )  # fmt: skip
    return Line(
        device=device, state=arrival.state, reason=arrival.reason, examples=arrival.examples,
        download=arrival.took.download, compute=arrival.took.compute, upload=arrival.took.upload,
        total=arrival.at - round.asked_at, bytes=arrival.size,
    )  # fmt: skip


def last(rows: list[Row], name: str) -> Any:
    """The newest known value of a column, None if there is none."""
    return next((getattr(r, name) for r in reversed(rows) if getattr(r, name) is not None), None)
