"""/metrics: what Prometheus reads, in its text format.

A gauge is of the newest round that has ended, a counter (`_total`) of all of the run. There is no series for
each device: a fleet has thousands, and who is slow stands in the ledger.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from fleetfold.ledger import Ledger
from fleetfold.ports import Objects
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED, Phase
from fleetfold.tell import numbers
from fleetfold.view import Following, Priced, Row

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


MOST = 50
"""Runs of which a page tells: the newest."""


class Sample(Struct, frozen=True):
    """One line; `labels` by name."""

    labels: Mapping[str, str]
    value: float


class Family(Struct, frozen=True):
    name: str
    type: str
    help: str
    samples: Sequence[Sample]


def prometheus(runs: Iterable[tuple[Run, Sequence[Row]]], fleet: Iterable[Device] = ()) -> str:
    """The page: of these runs, each with its rows in order, and of the devices of a fleet elsewhere."""
    found = [(run, rows, [row for row in rows if row.phase in ENDED]) for run, rows in runs]
    families = [*_rounds(found), *_numbers(found), *_devices([d for d in fleet if d.says is not None])]
    return "".join(text(family) for family in families if family.samples)


class Exposed:
    """The page, asked for again and again: of each run what has ended is read once. `names`: of the runs,
    newest first; `opened`: a run's records, objects, prices; `fleet`: the registry of one elsewhere."""

    def __init__(
        self, names: Callable[[], Sequence[str]],
        opened: Callable[[str], tuple[Ledger, Objects, Priced | None]],
        fleet: Callable[[], Iterable[Device]] = tuple,
    ) -> None:  # fmt: skip
        self._names, self._opened, self._fleet = names, opened, fleet
        self._known: dict[str, tuple[Ledger, Following]] = {}
        self._lock = threading.Lock()

    def page(self, now: float) -> str:
        """From any thread. Raises Unavailable."""
        with self._lock:
            names = self._names()[:MOST]
            self._known = {name: self._known.get(name) or self._open(name) for name in names}
            told = [(ledger.run(name), following) for name, (ledger, following) in self._known.items()]
            return prometheus([(run[0], rows.look(now)) for run, rows in told if run], self._fleet())

    def _open(self, name: str) -> tuple[Ledger, Following]:
        ledger, objects, priced = self._opened(name)
        return ledger, Following(ledger, objects, name, priced)


Told = tuple[Run, Sequence[Row], Sequence[Row]]
"""A run, its rows, and those of rounds that have ended."""


def _rounds(runs: Sequence[Told]) -> Iterator[Family]:
    yield Family(
        "fleetfold_run_running", "gauge", "whether the run goes on",
        [Sample({"run": run.name}, float(run.state is RunState.RUNNING)) for run, _, _ in runs],
    )  # fmt: skip
    yield Family(
        "fleetfold_round", "gauge", "the round where the run stands",
        [Sample({"run": run.name}, run.round) for run, _, _ in runs],
    )  # fmt: skip
    ended = [(run, Counter(row.phase for row in done if row.kind != "evaluate")) for run, _, done in runs]
    yield Family(
        "fleetfold_rounds_total", "counter", "rounds that have ended, with a model or without",
        [
            Sample({"run": run.name, "phase": phase.value}, count[phase.value])
            for run, count in ended
            for phase in (Phase.DONE, Phase.FAILED)
        ],
    )  # fmt: skip
    now = [(run, rows[-1]) for run, rows, _ in runs if rows and rows[-1].phase not in ENDED]
    yield Family(
        "fleetfold_round_invited", "gauge", "devices invited to the round that is open",
        [Sample({"run": run.name}, row.cohort) for run, row in now],
    )  # fmt: skip
    yield Family(
        "fleetfold_round_arrived", "gauge", "updates that count in the round that is open",
        [Sample({"run": run.name}, row.arrived) for run, row in now],
    )  # fmt: skip


def _numbers(runs: Sequence[Told]) -> Iterator[Family]:
    told = [(run.name, [numbers.of(row) for row in done]) for run, _, done in runs]
    for number in numbers.NUMBERS:
        known = [
            (run, values)
            for run, rows in told
            if (values := [row[number.name] for row in rows if number.name in row])
        ]
        unit = f", {number.unit}" if number.unit not in ("", "count") else ""
        yield Family(
            f"fleetfold_{number.name}", "gauge", f"{number.title}{unit}, of the newest round that has ended",
            [Sample({"run": run}, values[-1]) for run, values in known],
        )  # fmt: skip
        if number.adds:
            yield Family(
                f"fleetfold_{number.name}_total", "counter",
                f"{number.title}{unit}, of all rounds that have ended",
                [Sample({"run": run}, sum(values)) for run, values in known],
            )  # fmt: skip


def _devices(fleet: Sequence[Device]) -> Iterator[Family]:
    says = [device.says for device in fleet if device.says is not None]
    online = [presence for presence in says if presence.online]
    for name, what, count in (
        ("known", "devices that have said something of themselves", len(says)),
        ("online", "devices that are connected", len(online)),
        ("available", "devices that would take a task now", sum(p.available for p in online)),
    ):
        yield Family(f"fleetfold_devices_{name}", "gauge", what, [Sample({}, count)] if says else [])


def text(family: Family) -> str:
    """A family as Prometheus reads it."""
    lines = [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.type}"]
    lines += [f"{family.name}{_labels(sample.labels)} {_value(sample.value)}" for sample in family.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = [f'{name}="{_escaped(value[:LONGEST], quote=True)}"' for name, value in labels.items()]
    return "{" + ",".join(pairs) + "}" if pairs else ""


LONGEST = 256
"""Characters of a label's value: names of ours have at most 64."""
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")


def _escaped(value: str, quote: bool = False) -> str:
    plain = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value).replace("\\", "\\\\").replace("\n", "\\n")
    return plain.replace('"', '\\"') if quote else plain


def _value(value: float) -> str:
    return repr(float(value)) if value != int(value) or abs(value) > 1e15 else str(int(value))
