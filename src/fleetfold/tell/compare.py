"""Several runs side by side: what came of each and what it took, and their curves in one frame."""

from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct

from fleetfold import settings
from fleetfold.round.run import Run
from fleetfold.round.state import ENDED
from fleetfold.tell import numbers
from fleetfold.tell.curves import Curve, chart
from fleetfold.tell.html import Html, e, page, table
from fleetfold.tell.report import state, style
from fleetfold.tell.words import made_by, worded
from fleetfold.view import Row

Best = Callable[[Sequence[float]], float]


class Column(Struct, frozen=True):
    """What is compared: `of` a run's rows, and which is best of several, if one is."""

    name: str
    of: Callable[[Sequence[Row]], float | None]
    number: numbers.Number
    best: Best | None = None


class Compared(Struct, frozen=True):
    """One run, with the rows of its rounds that have ended."""

    run: Run
    rows: Sequence[Row]

    @property
    def training(self) -> list[Row]:
        return [row for row in self.rows if row.kind != "evaluate"]


def compared(run: Run, rows: Sequence[Row]) -> Compared:
    return Compared(run, [row for row in rows if row.phase in ENDED])


def _all(name: str) -> Callable[[Sequence[Row]], list[float]]:
    return lambda rows: [value for row in rows if (value := numbers.of(row).get(name)) is not None]


def _newest(name: str) -> Callable[[Sequence[Row]], float | None]:
    return lambda rows: next(reversed(_all(name)(rows)), None)


def _most(name: str) -> Callable[[Sequence[Row]], float | None]:
    return lambda rows: max(_all(name)(rows), default=None)


def _sum(name: str) -> Callable[[Sequence[Row]], float | None]:
    return lambda rows: sum(found) if (found := _all(name)(rows)) else None


_N = numbers.BY_NAME
COLUMNS = (
    Column("accuracy", _newest("accuracy"), _N["accuracy"], max),
    Column("its best", _most("accuracy"), _N["accuracy"], max),
    Column("loss", _newest("loss"), _N["loss"], min),
    Column("run time", _sum("run_seconds"), _N["run_seconds"], min),
    Column("up", _sum("bytes_up"), _N["bytes_up"], min),
    Column("down", _sum("bytes_down"), _N["bytes_down"], min),
    Column("ok", _sum("responses_ok"), _N["responses_ok"]),
    Column("failed", _sum("responses_failed"), _N["responses_failed"], min),
    Column("ε", _newest("epsilon"), _N["epsilon"], min),
    Column("cost", _sum("cost"), _N["cost"], min),
)


class Cell(Struct, frozen=True):
    text: str
    best: bool = False


def cells(runs: Sequence[Compared]) -> list[tuple[Column, list[Cell]]]:
    """Each column that anybody has a value in, with a cell for each run; of several runs the best is told."""
    found = []
    for column in COLUMNS:
        values = [column.of(each.rows) for each in runs]
        known = [value for value in values if value is not None]
        if not known:
            continue
        best = column.best(known) if column.best and len(set(known)) > 1 else None
        told = [worded(column.number, value) for value in values]
        top = worded(column.number, best) if best is not None and len(set(told)) > 1 else None
        found.append((column, [Cell(text, text == top) for text in told]))
    return found


def different(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs are not all the same: (name, a value for each)."""
    said = [
        (name, [settings.show(name, getattr(each.run.settings, name)) for each in runs])
        for name in settings.NAMES
    ]
    return [(name, values) for name, values in said if len(set(values)) > 1]


def curves(runs: Sequence[Compared]) -> list[Html]:
    """By round, and accuracy by what it took."""

    def by_round(of: Callable[[Row], float | None]) -> list[Curve]:
        """Of a round that was evaluated besides, what the evaluation says."""
        found = []
        for k, each in enumerate(runs):
            newest = {float(row.round): value for row in each.rows if (value := of(row)) is not None}
            found.append(Curve(each.run.name, list(newest.items()), k))
        return found

    def over(cost: Callable[[Row], float], of: Callable[[Row], float | None]) -> list[Curve]:
        found = []
        for k, each in enumerate(runs):
            spent, points = 0.0, list[tuple[float, float | None]]()
            for row in each.rows:
                spent += cost(row)
                if of(row) is not None:
                    points.append((spent, of(row)))
            found.append(Curve(each.run.name, points, k))
        return found

    drawn = [
        chart("loss", by_round(lambda row: row.loss)),
        chart("accuracy", by_round(lambda row: row.accuracy)),
        chart("accuracy over seconds of run time", over(lambda row: row.seconds, lambda row: row.accuracy),
              x="second"),
        chart("accuracy over megabytes up", over(lambda row: row.bytes_up / 1e6, lambda row: row.accuracy),
              x="MB"),
        chart("time of a round", by_round(lambda row: None if row.kind == "evaluate" else row.seconds),
              unit="seconds", zero=True),
    ]  # fmt: skip
    return [each for each in drawn if each is not None]


def compare(runs: Sequence[Compared], made: datetime) -> str:
    """The file. `made`: when."""
    names = ", ".join(each.run.name for each in runs)
    columns = cells(runs)
    lines = [
        (e("b", each.run.name), state(each.run.state.value), len(each.training),
         *(e("span", told[k].text, class_="best") if told[k].best else told[k].text for _, told in columns))
        for k, each in enumerate(runs)
    ]  # fmt: skip
    heads = ("run", "state", "rounds#", *(f"{column.name}#" for column, _ in columns))
    apart = different(runs)
    return page(
        f"{names}: runs of fleetfold", style(),
        e("header", e("h1", "Runs side by side"), e("p", names, class_="soft")),
        e(
            "main",
            e("h2", "What came of them, and what it took"),
            table(heads, lines, caption="runs; the best of each column is bold"),
            e("h2", "Curves"),
            e("div", *curves(runs), class_="charts"),
            e("h2", "In which settings they differ"),
            table(("setting", *(each.run.name for each in runs)), ((name, *values) for name, values in apart),
                  caption="settings that are not the same") if apart else e("p", "In none.", class_="soft"),
        ),
        e("footer", made_by(made)),
    )  # fmt: skip
