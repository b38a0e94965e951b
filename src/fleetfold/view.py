"""What people are shown of a run: one row a round, one line a device, from the ledger alone.

The table of the terminal, `--json`, `show` and whatever draws curves read the same rows.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from math import isfinite
from typing import Any, get_args

from msgspec import Struct

from fleetfold import layout
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.messages import Kind, Metrics
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


SCORERS = ("test", "devices", "trained")
"""Whose numbers are shown, best first."""


def row(ledger: Ledger, objects: Objects, round: Round, now: float, priced: Priced | None = None) -> Row:
    """The row of a round, ended or not."""
    return row_of(round, ledger.arrivals(place(round)), sent(objects, round), now, priced)


def sent(objects: Objects, round: Round) -> int:
    """Bytes of what each device of the round was sent."""
    return round.sent if round.batch else objects.size(layout.model(round.run, round.base)) or 0


def row_of(
    round: Round, found: Mapping[str, Arrival], base: int, now: float, priced: Priced | None = None
) -> Row:
    """The same, by who has read the arrivals and knows how many bytes each device was sent."""
    arrivals = found.values()
    ended = round.ended_at if round.phase in ENDED else now
    loss, accuracy, by = headline(round)
    epsilon = round.metrics.get("privacy", {}).get("epsilon")
    fetched = sum(1 for a in arrivals if a.took.download is not None)
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


SCORED = 2
"""Exchanges after which the model of one may still be scored, by an app of another framework."""


class Following:
    """The rows of a run as they come: what cannot change any more is read once, however often it is asked."""

    def __init__(self, ledger: Ledger, objects: Objects, run: str, priced: Priced | None = None) -> None:
        self._ledger, self._objects, self._run, self._priced = ledger, objects, run, priced
        self._rows: dict[tuple[int, Kind], Row] = {}
        self._newest = 0
        self._from = 0  # rounds before it will not change any more

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
                if number > self._newest and not any(found):
                    break
        self._newest = max((number for number, _ in self._rows), default=0)
        still = (number for number, kind in self._rows if self._open(number, kind))
        self._from = min(still, default=self._newest)
        return list(self._rows.values())

    def _due(self, number: int) -> list[Kind]:
        """Kinds of that round that may be there anew, or have changed."""
        return [kind for kind in get_args(Kind) if self._open(number, kind)]

    def _open(self, number: int, kind: Kind) -> bool:
        """Whether it is not known to have ended; or is a message's, which is scored later. What follows the
        newest round is unknown too."""
        row = self._rows.get((number, kind))
        if row is None:
            return number >= self._newest
        return row.phase not in ENDED or (kind == "message" and number > self._newest - SCORED)

    def _see(self, round: Round, now: float) -> None:
        self._rows[round.number, round.kind] = row(self._ledger, self._objects, round, now, self._priced)


def headline(round: Round) -> tuple[float | None, float | None, str]:
    """(loss, accuracy, who scored them): the best that is known of the round."""
    for by in SCORERS:
        metrics = round.metrics.get(by, {})
        loss, accuracy = named(metrics, "loss"), named(metrics, "accuracy")
        if loss is not None or accuracy is not None:
            return loss, accuracy, by
    return None, None, ""


class Spread(Struct, frozen=True, array_like=True):
    """How far a round's devices lie apart: quartiles of what they told, between the least and the most."""

    least: float
    low: float
    middle: float
    high: float
    most: float
    devices: int


def spread(arrivals: Iterable[Arrival], name: str) -> Spread | None:
    """Of the metric of that name over the updates that counted: of the model that each device was given where
    they evaluate it, else in training. None where nobody told it."""
    counted = [a for a in arrivals if a.state in ("admitted", "credited")]
    evaluated = [a.evaluation.metrics for a in counted if a.evaluation]
    values = _numbers(evaluated, name) or _numbers((a.metrics for a in counted), name)
    if not values:
        return None
    last = len(values) - 1
    least, low, middle, high, most = (values[(last * quarter + 2) // 4] for quarter in range(5))
    return Spread(least, low, middle, high, most, len(values))


def _numbers(told: Iterable[Metrics], name: str) -> list[float]:
    values = (named(metrics, name) for metrics in told)
    return sorted(value for value in values if value is not None and isfinite(value))


def named(metrics: Mapping[str, float | None], name: str) -> float | None:
    """The metric of that name; or the first whose name has the word in it, as `eval_acc` has."""
    words = (name, "acc") if name == "accuracy" else (name,)
    for word in words:
        if metrics.get(word) is not None:
            return metrics[word]
    found = (v for name, v in metrics.items() if v is not None and any(w in name.lower() for w in words))
    return next(found, None)


def title(row: Row) -> str:
    """What a round is called beside others: "3", "3 eval"; an exchange by its app's round, if it says one."""
    if row.kind != "message":
        return str(row.round) if row.kind == "train" else f"{row.round} eval"
    kind = row.label.partition(".")[0]
    words = {"train": "", "evaluate": " eval"}.get(kind, f" {kind}")
    return f"{row.turn or f'#{row.round}'}{words}"


def trained(rows: Iterable[Row]) -> int:
    """How many rounds of training have ended."""
    return len({r.turn or r.round for r in rows if r.phase in ENDED and "train" in (r.kind, r.label)})


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
