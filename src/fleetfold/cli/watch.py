"""fleetfold watch: a run on one screen, in any terminal of 80 columns and 24 lines up.

ledger ─▶ Seen: the run, its rounds, who is at it now ─▶ lines of text ─▶ the screen, twice a second

It only reads: who watches, and when they leave, is nothing to the run.
"""

import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated

import msgspec
from cyclopts import Parameter
from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fleetfold.aws.pricing import priced
from fleetfold.cli.board import COLOURS, dollars, number, rounds_table
from fleetfold.cli.places import existing
from fleetfold.dashboard.steps import Steps
from fleetfold.errors import BadConfig, shown
from fleetfold.ledger import Ledger, place
from fleetfold.ports import Objects, fetch
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.settings import size
from fleetfold.tell.timeline import Lane, lanes
from fleetfold.tell.words import lasted
from fleetfold.view import Following, Row, title
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

EVERY, SELDOM = 0.5, 2.0
"""Seconds between two looks: here, and at a table that is paid for by the look."""
HIGH, PIPE = 24, 100
"""Lines that every terminal has; columns in a pipe."""
LEAVE = "q leaves; the run goes on"
BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*%#"
BAR, REST = "━", "─"


class Seen(Struct, frozen=True, kw_only=True):
    """What one look has found. `lanes`: of the newest round, who is at work first, then the slowest;
    `fleet`: the registry's entries of its cohort."""

    run: Run
    rows: Sequence[Row]
    round: Round | None = None
    lanes: Sequence[Lane] = ()
    fleet: dict[str, Device] = {}
    steps: dict[str, str] = {}  # what those are at that have not answered, as far as it is known


class Looking:
    """Looks at one run, again and again. What does not change within a round is read once."""

    def __init__(self, at: Place) -> None:
        self._name = at.run
        self._ledger: Ledger = wiring.ledger(at)
        self._objects: Objects = wiring.objects(at)
        self._following = Following(self._ledger, self._objects, at.run, priced(at, self._ledger))
        self._steps = Steps(at)
        self._of, self._cohort, self._fleet = "", list[str](), dict[str, Device]()

    def look(self, now: float) -> Seen:
        """Raises BadConfig if the run was never opened."""
        found = self._ledger.run(self._name)
        if found is None:
            raise BadConfig(f"run {self._name} was never opened", next="fleetfold runs")
        rows = self._following.look(now)
        if not rows:
            return Seen(run=found[0], rows=rows)
        trained = [row for row in rows if row.kind != "evaluate"]
        which = rows[-1] if rows[-1].phase not in ENDED or not trained else trained[-1]
        newest = self._ledger.round(self._name, which.round, which.kind)
        assert newest is not None
        round = newest[0]
        if self._of != round.cohort:
            with suppress(KeyError):
                self._cohort = msgspec.json.decode(fetch(self._objects, round.cohort), type=list[str])
                self._fleet = {device.name: device for device in self._ledger.devices(self._cohort)}
                self._of = round.cohort
        told = lanes(round, self._cohort, self._ledger.arrivals(place(round)))
        silent = [lane.device for lane in told if lane.took is None]
        steps = self._steps.of(round, silent) if round.phase is Phase.OPEN else {}
        return Seen(run=found[0], rows=rows, round=round, lanes=told, fleet=self._fleet, steps=steps)


def watch(
    run: str = "latest",
    /,
    *,
    once: Annotated[bool, Parameter(help="print what there is to see, and leave", negative="")] = False,
) -> int:
    """Watch a run on one screen: its round, its curves, its slow devices. It leaves with the run's end, with
    q or with Ctrl-C; leaving changes nothing. In a pipe it prints once what there is to see.

    **Examples**

    - `fleetfold watch`
    - `fleetfold watch digits-1`
    - `ssh hub.clinic.example -t fleetfold watch latest`
    """
    at = existing(run)
    looking, console = Looking(at), Console(width=None if sys.stdout.isatty() else PIPE, highlight=False)
    if once or not console.is_terminal:
        seen = looking.look(time.time())
        console.print(picture(seen, time.time(), console.width, HIGH, _plain(console), stays=False))
        return 0
    every = SELDOM if wiring.where(at) == "cloud" else EVERY
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        seen = looking.look(time.time())
        while True:
            width, height = console.size
            live.update(picture(seen, time.time(), width, height, _plain(console)), refresh=True)
            if seen.run.state is not RunState.RUNNING or pressed(every):
                break
            seen = looking.look(time.time())
    console.print(picture(seen, time.time(), console.width, HIGH, _plain(console), stays=False))
    return 1 if seen.run.state is RunState.FAILED else 0


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Whether within so many seconds q was pressed. The terminal is as it was, afterwards."""
    if not sys.stdin.isatty():
        yield _slept
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _pressed
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _pressed(seconds: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.read(1) in ("q", "Q", "\x1b", "\x04", "")


def _plain(console: Console) -> bool:
    return not (console.encoding or "").lower().startswith("utf")


# What is seen


def picture(
    seen: Seen, now: float, width: int, height: int, plain: bool = False, *, stays: bool = True
) -> Group:
    """So many lines, of so many columns. `plain`: a terminal that has ASCII alone; `stays`: there is
    something to leave."""
    top = [*_head(seen, now), *_bar(seen, now, width, plain), Text(), *_curves(seen, width, plain), Text()]
    room = height - len(top) - 2
    table = max(0, min(len(seen.rows) + 1, room - 12)) if room > 16 else 0
    lines = [*top, *_slow(seen, now, room - table)]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop" if plain else "ellipsis")
    parts: list[RenderableType] = [*lines]
    if table > 2:
        parts += [Text(), rounds_table(list(seen.rows)[1 - table :], width)]
    hint = Text(LEAVE if stays and _runs(seen) else "", style="dim")
    hint.truncate(width)
    return Group(*parts[: max(1, height - 1)], *([hint] if height > 1 else []))


def _runs(seen: Seen) -> bool:
    return seen.run.state is RunState.RUNNING


def _head(seen: Seen, now: float) -> Iterator[Text]:
    run = seen.run
    done = [row for row in seen.rows if row.phase in ENDED and row.kind != "evaluate"]
    words = [f"round {run.round} of {run.settings.rounds}"]
    if run.messages:
        words = [f"round {title(seen.rows[-1])}" if seen.rows else "no round yet"]
    if _runs(seen):
        words.append(f"{lasted(max(0.0, now - run.started_at))} so far")
        ahead = 0 if run.messages else run.settings.rounds - len(done)
        each = sum(row.seconds for row in seen.rows if row.phase in ENDED) / max(1, len(done))
        if done and ahead > 0:
            words.append(f"about {lasted(each * ahead)} left")
    elif run.ended_at:
        words.append(f"in {lasted(run.ended_at - run.started_at)}")
    colour = {"done": "green", "failed": "red"}.get(run.state.value, "yellow")
    yield Text.assemble((shown(run.name), "bold"), "  ", (run.state.value, colour), "  ", " · ".join(words))
    why = run.reason if run.reason or seen.round is None else seen.round.reason
    yield Text(shown(why or "nothing has begun yet"), style="dim")


def _bar(seen: Seen, now: float, width: int, plain: bool) -> Iterator[Text]:
    """Towards quorum and target, and how long the deadline is off."""
    round = seen.round
    if round is None:
        return
    target, quorum = max(1, round.policy.target), round.policy.quorum
    have = round.counted
    told = f" {have} of {target}, quorum {quorum}"
    if round.phase is Phase.OPEN:
        told += f", {lasted(max(0.0, round.deadline_at - now))} to the deadline"
    if round.refused:
        told += f", {len(round.refused)} refused"
    room = max(8, width - len(told) - 1)
    full = min(room, room * have // target)
    notch = min(room - 1, room * quorum // target)
    bar, rest = ("#", "-") if plain else (BAR, REST)
    cells = [bar if k < full else "|" if k == notch else rest for k in range(room)]
    yield Text.assemble(("".join(cells[:full]), "green"), ("".join(cells[full:]), "bright_black"), told)


def _curves(seen: Seen, width: int, plain: bool) -> Iterator[Text]:
    rows = [row for row in seen.rows if row.phase in ENDED]
    by = next((row.scored_by for row in reversed(rows) if row.scored_by), "")
    who = {"test": "by the test set", "devices": "by devices", "trained": "in training"}.get(by, "")
    # of a round that was evaluated besides, what the evaluation says
    accuracy = {row.round: row.accuracy for row in rows if row.accuracy is not None}
    loss = {row.round: row.loss for row in rows if row.loss is not None}
    lines: list[tuple[str, list[float | None], str]] = [
        ("accuracy", [*accuracy.values()], who),
        ("loss", [*loss.values()], who),
        ("seconds", [row.seconds for row in rows if row.kind != "evaluate"], ""),
    ]
    if any(row.epsilon is not None for row in rows):
        lines.append(("ε", [row.epsilon for row in rows], "spent"))
    for name, values, more in lines:
        known = [value for value in values if value is not None]
        line = sparkline(known, width - 36, plain)
        newest = number(known[-1]) if known else "-" if plain else "–"
        yield Text.assemble((f"{name:<9}", "bold"), f"{newest:>8}  ", (line, "cyan"), (f"  {more}", "dim"))
    up, down = sum(row.bytes_up for row in seen.rows), sum(row.bytes_down for row in seen.rows)
    cost = [row.cost for row in rows if row.cost is not None]
    paid = f" · cost {dollars(sum(cost))}" if cost else ""
    failed = sum(row.phase == "failed" for row in rows)
    lost = f" · {failed} rounds failed" if failed else ""
    yield Text(
        f"{size(up)} up, {size(down)} down{paid}{lost}".replace("·", "," if plain else "·"), style="dim"
    )


def sparkline(values: Sequence[float], width: int, plain: bool = False) -> str:
    """The newest that fit, a character each, from the lowest to the highest of them."""
    marks = PLAIN if plain else BLOCKS
    shown_ = [value for value in values if abs(value) < 1e300][-max(1, width) :]
    if not shown_:
        return ""
    low, high = min(shown_), max(shown_)
    if high <= low:
        return marks[len(marks) // 2] * len(shown_)
    return "".join(marks[min(len(marks) - 1, int((v - low) / (high - low) * len(marks)))] for v in shown_)


def _slow(seen: Seen, now: float, room: int) -> Iterator[Text]:
    """Who is still at work in the newest round, those first that usually take longest; then the slowest of
    those that have answered."""
    round = seen.round
    if round is None or room < 2:
        return
    at_work = [lane for lane in seen.lanes if lane.took is None]
    at_work.sort(key=lambda lane: (-_usual(seen, lane.device), lane.device))
    answered = [lane for lane in seen.lanes if lane.took is not None]
    is_open = round.phase is Phase.OPEN
    said = f"{len(at_work)} not yet, " if is_open else f"{len(at_work)} silent, " if at_work else ""
    title = f"the slow devices of round {round.number}"
    yield Text.assemble((f"{title:<42}", "bold"), (f"{said}{len(answered)} answered", "dim"))
    for lane in [*at_work, *answered][: room - 1]:
        until = now if is_open else round.ended_at or now
        took = until - round.asked_at if lane.took is None else lane.took
        waits = seen.steps.get(lane.device, "invited") if is_open else "silent"
        state = waits if lane.took is None else lane.state
        usual = _usual(seen, lane.device)
        often = f"   usually {lasted(usual):<10}" if usual else " " * 21
        yield Text.assemble(
            f"  {shown(lane.device, 24):<25}", (f"{state:<12}", COLOURS.get(state, "yellow")),
            f"{lasted(max(0.0, took)):>10}", (often, "dim"), (f" {shown(lane.reason, 80)}", "red"),
        )  # fmt: skip


def _usual(seen: Seen, device: str) -> float:
    """Seconds that it takes on average; 0: nobody knows."""
    known = seen.fleet.get(device)
    return (known.turnaround or 0.0) if known else 0.0
