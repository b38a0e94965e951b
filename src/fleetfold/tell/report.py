"""A run in one file of HTML that stands alone: what came of it, how long it took, who took part.

ledger ─▶ gathered ─▶ tiles · curves · the slowest round · who contributed · what was refused · settings
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

from fleetfold import settings
from fleetfold.round.run import Run
from fleetfold.round.state import ENDED
from fleetfold.settings import size
from fleetfold.tell import numbers
from fleetfold.tell.curves import Curve, chart, short
from fleetfold.tell.exports import step
from fleetfold.tell.facts import Facts, took
from fleetfold.tell.gantt import gantt
from fleetfold.tell.html import Html, e, page, table
from fleetfold.tell.timeline import Lane
from fleetfold.tell.words import dated, lasted, made_by, worded
from fleetfold.view import Row, last, named, title, trained

LANES, MEMBERS, REFUSALS, ROUNDS = 40, 100, 200, 500
"""What one page shows of each at most; it says how many more there are."""


def style() -> str:
    return (files("fleetfold.tell") / "style.css").read_text()


def report(facts: Facts, made: datetime) -> str:
    """The file. `made`: when."""
    run = facts.run
    return page(
        f"{run.name}, a run of fleetfold", style(),
        e("header", *_head(facts)),
        e("main", *_main(facts)),
        e("footer", f"{made_by(made)} This file asks for nothing: "
          "it can be kept, sent and printed."),
    )  # fmt: skip


def _head(facts: Facts) -> Iterator[Html]:
    run = facts.run
    yield e("h1", run.name, e("span", run.state.value, class_=f"state {run.state.value}"))
    yield e("p", f"{run.reason}." if run.reason else "")
    began = datetime.fromtimestamp(run.started_at, UTC)
    until = f" to {dated(datetime.fromtimestamp(run.ended_at, UTC))}" if run.ended_at else ""
    yield e("p", f"{dated(began)}{until} · ", e("code", run.app), class_="soft")
    yield e("dl", *tiles(facts.rows), class_="tiles")


def tiles(rows: Sequence[Row]) -> Iterator[Html]:
    """The numbers: the newest of those that are one, the sum of those that add up."""
    told = [numbers.of(row) for row in rows if row.phase in ENDED]
    done = sum(row.phase == "done" and row.kind != "evaluate" for row in rows)
    if any(row.kind == "message" for row in rows):
        yield _tile("rounds", str(trained(rows)), f"{len(told)} exchanges")
    else:
        yield _tile("rounds", str(done), f"of {sum(row.kind != 'evaluate' for row in rows)} with a model")
    scorer = last(list(rows), "scored_by")
    model = [number for number in numbers.MODEL if number.name == "epsilon" or scorer == "test"]
    for number in (*model, *numbers.SIX, *numbers.MORE):
        values = [each[number.name] for each in told if number.name in each]
        if values and (sum(values) or number.name not in ("late", "refused")):
            by = "by the test set" if number.name in ("accuracy", "loss") else ""
            yield _tile(number.title, worded(number, sum(values) if number.adds else values[-1]), by)


def _tile(name: str, value: str, more: str = "") -> Html:
    return e(
        "div", e("dt", name), e("dd", value, e("br") if more else None, e("small", more) if more else None)
    )


def _main(facts: Facts) -> Iterator[Html]:
    yield e("h2", "Curves")
    found = [drawn for drawn in curves(facts.rows) if drawn is not None]
    nothing = e("p", "No round has ended with a number yet.", class_="soft")
    yield e("div", *found, class_="charts") if found else nothing
    yield from _slowest(facts)
    yield from _contributors(facts)
    yield from _refused(facts)
    yield e("h2", "Rounds")
    yield _rounds(facts.rows)
    yield e("h2", "Settings and versions")
    yield _settings(facts.run)
    yield _versions(facts)


def curves(rows: Sequence[Row]) -> list[Html | None]:
    """What changed from round to round; what nobody reported is not drawn."""
    ended = [row for row in rows if row.phase in ENDED]
    training = [row for row in ended if row.kind != "evaluate"]
    failed = [float(row.round) for row in ended if row.phase == "failed"]

    def of(name: str, value: Callable[[Row], float | None], style: int) -> Curve:
        return Curve(name, [(float(row.round), value(row)) for row in training], style)

    def scored(metric: str) -> list[Curve]:
        found = list[Curve]()
        for who, label in SCORERS:
            points = [(float(step(row)), named(row.metrics.get(who, {}), metric)) for row in ended]
            if known := [(at, value) for at, value in points if value is not None]:
                found.append(Curve(label, known, len(found)))
        return found

    who = [
        of("used", lambda row: row.arrived + row.credited, 0), of("invited", lambda row: row.cohort, 2),
        of("refused", lambda row: row.refused, 6), of("late", lambda row: row.late, 1),
    ]  # fmt: skip
    took = [
        of("the round", lambda row: row.seconds, 0),
        of("of it the fold", lambda row: row.fold_seconds, 1),
    ]
    moved = [of("up", lambda row: row.bytes_up, 0), of("down", lambda row: row.bytes_down, 1)]
    return [
        chart("loss", scored("loss"), marks=failed),
        chart("accuracy", scored("accuracy"), marks=failed),
        chart("time", took, unit="seconds", zero=True, marks=failed),
        chart("devices", [each for each in who if any(y for _, y in each.known)], zero=True, marks=failed),
        chart("bytes", moved, zero=True),
        chart("privacy spent, ε", [of("ε", lambda row: row.epsilon, 3)], zero=True),
        chart("cost of a round", [of("cost", lambda row: row.cost, 4)], unit="USD", zero=True),
    ]


SCORERS = (
    ("test", "the test set"),
    ("devices", "devices, of the model they were given"),
    ("trained", "in training"),
)


def _slowest(facts: Facts) -> Iterator[Html]:
    round = facts.slowest
    if round is None:
        return
    yield e("h2", f"The slowest round: {round.number}")
    told = f"{lasted(took(round))}; {round.reason}."
    most = facts.lanes[:LANES]
    if len(facts.lanes) > LANES:
        told += f" The {LANES} slowest of {len(facts.lanes)} devices are shown, who was not heard of first."
    yield e("p", told)
    yield gantt(most, round.opened_at, round.closed_at, round.ended_at, round.deadline_at)
    cells = [
        (each.device, state(each.state), *(_step(each, name) for name in TAKEN),
         "–" if each.took is None else f"{each.took:.3f}", size(each.bytes), each.reason)
        for each in most
    ]  # fmt: skip
    told_of = (*(f"{name}, s#" for name in TAKEN), "whole, s#", "bytes#", "reason")
    also = table(("device", "state", *told_of), cells, caption="the slowest round")
    yield e("details", e("summary", "the same as a table"), also)


TAKEN = ("wait", "download", "compute", "upload")


def _step(lane: Lane, name: str) -> str:
    found = [step.end - step.begin for step in lane.steps if step.name == name]
    return f"{sum(found):.3f}" if found else "–"


def state(name: str) -> Html:
    return e("span", name, class_=name if name in STATES else None)


STATES = ("done", "failed", "admitted", "refused", "late", "credited", "silent", "open", "folding", "running")


def _contributors(facts: Facts) -> Iterator[Html]:
    yield e("h2", "Who contributed")
    members = facts.members
    used = sum(member.used > 0 for member in members)
    yield e("p", f"{used:,} of {len(members):,} devices that were invited have updates in the model.")
    cells = [
        (m.name, m.invited, m.used, m.refused, m.late, m.silent, f"{m.examples:,}",
         "–" if m.mean is None else short(m.mean), size(m.bytes))
        for m in members[:MEMBERS]
    ]  # fmt: skip
    columns = (
        "device",
        "invited#",
        "used#",
        "refused#",
        "late#",
        "silent#",
        "examples#",
        "mean, s#",
        "bytes up#",
    )
    if cells:
        yield table(columns, cells, caption="devices, by how often they were used")
    if len(members) > MEMBERS:
        yield e("p", f"… and {len(members) - MEMBERS:,} more.", class_="soft")


def _refused(facts: Facts) -> Iterator[Html]:
    yield e("h2", "What was refused")
    if not facts.refusals:
        yield e("p", "Nothing.", class_="soft")
        return
    reasons = Counter(refusal.reason for refusal in facts.refusals)
    devices = len({refusal.device for refusal in facts.refusals})
    yield e("p", f"{len(facts.refusals):,} updates of {devices:,} devices, for {len(reasons):,} reasons.")
    yield table(("times#", "reason"), ((n, why) for why, n in reasons.most_common(20)), caption="reasons")
    each = [(r.round, r.device, r.reason) for r in facts.refusals[:REFUSALS]]
    more = len(facts.refusals) - len(each)
    yield e(
        "details", e("summary", "each of them, the newest first"),
        table(("round#", "device", "reason"), each, caption="refused updates"),
        e("p", f"… and {more:,} more.", class_="soft") if more else None,
    )  # fmt: skip


def _rounds(rows: Sequence[Row]) -> Html:
    cells = [
        (title(row), state(row.phase),
         f"{row.arrived}{f'+{row.credited}' if row.credited else ''}/{row.cohort}", row.refused,
         *(("–" if v is None else f"{v:.4g}") for v in (row.loss, row.accuracy)), f"{row.seconds:.2f}",
         size(row.bytes_up), size(row.bytes_down), row.reason)
        for row in rows[-ROUNDS:]
    ]  # fmt: skip
    columns = (
        "round#",
        "phase",
        "arrived#",
        "refused#",
        "loss#",
        "accuracy#",
        "seconds#",
        "up#",
        "down#",
        "why",
    )
    if not cells:
        return e("p", "None yet.", class_="soft")
    told = table(
        columns, cells, caption=f"the {len(cells)} newest rounds" if len(rows) > ROUNDS else "rounds"
    )
    return told if len(cells) <= 30 else e("details", e("summary", f"all {len(cells)} rounds"), told)


def _settings(run: Run) -> Html:
    def row(name: str) -> Html:
        value = settings.show(name, getattr(run.settings, name))
        usual = settings.show(name, settings.default(name))
        changed = value != usual
        cells = (e("td", name), e("td", e("code", value)), e("td", usual if changed else "", class_="soft"))
        return e("tr", *cells, class_="changed" if changed else None)

    head = e(
        "tr", *(e("th", name, scope="col") for name in ("setting", "value", "default, where it differs"))
    )
    body = e("tbody", *map(row, settings.NAMES))
    return e("details", e("summary", "all settings; those that differ from the default are bold"),
             e("div", e("table", e("thead", head), body), class_="wide"), open=True)  # fmt: skip


def _versions(facts: Facts) -> Html:
    said = [
        ("Python", platform.python_version()),
        ("system", platform.platform()),
    ]
    for name in ("fleetfold", "numpy", "torch"):
        try:
            said.append((name, version(name)))
        except PackageNotFoundError:
            continue
    said += [("model", f"{facts.run.version:06}, sha256 {facts.run.digest}")]
    said += [("devices", each) for each in facts.agents]
    return table(("of what", "version, where this file was made"), said, caption="versions")
