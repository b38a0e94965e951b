"""What a run shows while it runs: a live table in a terminal, a line a round in a pipe, or JSON.

It reads the ledger as anybody could; the run does not know that it is watched.
"""

import sys
import time

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fleetfold import layout
from fleetfold.log import Log
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED
from fleetfold.settings import size
from fleetfold.tell.teller import announce
from fleetfold.view import Following, Row, title, trained
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

EVERY, SELDOM = 0.1, 0.3
"""Seconds between two looks at the ledger: what a person can follow, and what costs the run nothing; and
where only what has ended is told."""


class Board:
    """Called by the run with its state. `style`: "table", "lines" or "json"; or a log to tell of rounds and
    of devices that were refused."""

    def __init__(self, place: Place, console: Console, style: str | Log) -> None:
        self._place, self._console, self._style = place, console, style
        self._rows: dict[tuple[int, str], Row] = {}
        self._looked = 0.0
        self._live: Live | None = None
        self._opened, self._out = False, sys.stdout
        self._run: Run | None = None
        self._writing, self._began, self._whole = "", 0.0, 0

    def __enter__(self) -> "Board":
        if self._style == "table":
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.__enter__()
        return self

    def __exit__(self, *about: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    @property
    def rows(self) -> list[Row]:
        """Rounds that have ended, in order."""
        return [r for r in self._rows.values() if r.phase in ENDED]

    def __call__(self, run: Run, ready: int) -> None:
        now = time.monotonic()
        if now - self._looked < (EVERY if self._live else SELDOM) and run.state is RunState.RUNNING:
            return
        self._looked = now
        if not self._opened:
            self._ledger, self._objects = wiring.ledger(self._place), wiring.objects(self._place)
            self._following, self._opened = Following(self._ledger, self._objects, run.name), True
        self._run = run
        self._catch_up(run)
        if self._live is not None:
            self._live.update(self._table(run, ready), refresh=True)

    def wrote(self, key: str, done: int) -> None:
        """That a fold has written so many bytes of a model: told in a terminal, where it takes a while."""
        now = time.monotonic()
        if self._live is None or self._run is None or "/models/" not in key:
            return
        if key != self._writing:
            self._writing, self._began, self._looked = key, now, now
            self._whole = self._objects.size(layout.model(self._run.name, 0)) or done
        if now - self._looked < EVERY:
            return
        self._looked = now
        left = (now - self._began) * (self._whole - done) / max(1, done)
        share = min(1.0, done / max(1, self._whole))
        told = f"folding: {share:.0%} of {size(self._whole)} written, about {max(0.0, left):.0f} s left"
        self._live.update(Group(self._table(self._run, 0), Text(told, style="cyan")), refresh=True)

    def _catch_up(self, run: Run) -> None:
        """Read the rounds that may have changed since the last look, and say which have ended, or were scored
        since."""
        for new in self._following.look(time.time()):
            known = self._rows.get((new.round, new.kind))
            over = known is not None and known.phase in ENDED
            self._rows[new.round, new.kind] = new
            if new.phase in ENDED and not (over and new == known):
                self._say(new, run, again=over)

    def _say(self, row: Row, run: Run, *, again: bool) -> None:
        """`again`: it was said before, and is scored since."""
        if self._style == "json":
            print(msgspec.json.encode(row).decode(), flush=True, file=self._out)
        elif isinstance(self._style, Log):
            announce(self._style, self._ledger, run.name, row)
        elif self._style == "lines":
            self._console.print(
                f"{_called(row, run)} {row.scored_by if again else f'{row.phase}: {row.reason}'};"
                f" loss {number(row.loss)}, accuracy {number(row.accuracy)}"
                f"{'' if row.epsilon is None else f', ε {number(row.epsilon)}'}, {row.seconds:.2f} s",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _table(self, run: Run, ready: int) -> Group:
        room = max(3, self._console.size.height - 6)
        if not self._rows:
            return Group(Text(run.reason or f"starting workers: {ready} ready"))
        table = rounds_table(list(self._rows.values())[-room:], self._console.width)
        return Group(table, self._status(run))

    def _status(self, run: Run) -> Text:
        if run.state is not RunState.RUNNING:
            return Text.from_markup(f"[bold]{run.state.value}[/]: {escape(run.reason)}")
        done = trained(self._rows.values())
        share = min(1.0, done / run.settings.rounds)
        bar = "━" * round(share * 30)
        left = ""
        if done:
            each = sum(r.seconds for r in self._rows.values() if r.phase in ENDED) / done
            left = f" · about {each * (run.settings.rounds - done):.0f} s left"
        newest = list(self._rows.values())[-1]
        return Text.assemble(
            (bar, "green"), ("━" * (30 - len(bar)), "bright_black"),
            f" round {newest.turn or newest.round} of {run.settings.rounds}{left}\n",
            (newest.reason, "dim"),
        )  # fmt: skip


def _called(row: Row, run: Run) -> str:
    if row.kind == "message":
        number = f"round {row.turn}/{run.settings.rounds}" if row.turn else f"exchange {row.round}"
        return number if row.label == "train" else f"{number} {row.label}"
    return f"round {row.round}/{run.settings.rounds}{'' if row.kind == 'train' else ' ' + row.kind}"


def rounds_table(rows: list[Row], width: int) -> Table:
    """One row a round. Fits 80 columns; a wider terminal is given the reasons as well. Where privacy is kept
    there is a column for ε, in 80 columns in place of what was sent down."""
    private = any(r.epsilon is not None for r in rows)
    paid = any(r.cost is not None for r in rows)
    bytes_of = ("up",) if (private or paid) and width < 90 else ("up", "down")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("round", justify="right", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    shown = ("arrived", "refused", "loss", "accuracy", *(("ε",) if private else ()), "seconds", *bytes_of,
             *(("cost",) if paid else ()))  # fmt: skip
    for column in shown:
        table.add_column(
            column, justify="right", no_wrap=True, min_width=8 if column in ("up", "down") else None
        )
    if wide := width >= 110:
        table.add_column("reason", overflow="ellipsis", no_wrap=True, ratio=1, max_width=width - 80)
    for r in rows:
        refused = f"[red]{r.refused}[/]" if r.refused else "0"
        late = f"+{r.credited}" if r.credited else ""
        table.add_row(
            title(r), f"[{COLOURS.get(r.phase, 'yellow')}]{r.phase}[/]", f"{r.arrived}{late}/{r.cohort}",
            refused, number(r.loss), number(r.accuracy), *([number(r.epsilon)] if private else []),
            f"{r.seconds:.2f}", *(size({"up": r.bytes_up, "down": r.bytes_down}[b]) for b in bytes_of),
            *([dollars(r.cost)] if paid else []),
            *([escape(r.reason)] if wide else []),
        )  # fmt: skip
    return table


def terminal() -> Console:
    """Standard output: as wide as the terminal, or wide enough for any table where it is a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


COLOURS = {
    "done": "green", "failed": "red", "folding": "cyan",
    "admitted": "green", "refused": "red", "silent": "bright_black",
}  # fmt: skip
"""Of phases and of what became of a device; what waits is yellow."""


def plain_table(*columns: str) -> Table:
    """Words on the left, numbers on the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        words = column in ("run", "state", "device", "started", "last seen", "reason", "policy")
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "reason")
    return table


def dollars(usd: float | None) -> str:
    if usd is None:
        return "–"
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.3g}" if usd >= 1e-4 else f"${usd:.7f}".rstrip("0.")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
