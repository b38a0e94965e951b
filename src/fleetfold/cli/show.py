"""fleetfold runs, show and devices: what was run, how a run or a round went, what is known of the fleet."""

import time
from datetime import datetime
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.markup import escape

from fleetfold.aws.pricing import priced
from fleetfold.cli.board import COLOURS, dollars, number, plain_table, rounds_table, terminal
from fleetfold.cli.places import all_runs, existing
from fleetfold.errors import BadConfig, shown, typed
from fleetfold.ledger import Ledger
from fleetfold.messages import Kind, Presence
from fleetfold.ports import fetch
from fleetfold.round.fleet import Device
from fleetfold.round.state import Round
from fleetfold.settings import size
from fleetfold.view import last, lines, rows, trained
from fleetfold.wiring import local as wiring

_JSON = Annotated[bool, Parameter(help="print JSON, one object a line", negative="")]


def runs(*, json: _JSON = False) -> None:
    """List the runs, the newest first.

    **Examples**

    - `fleetfold runs`
    - `fleetfold runs --json`
    """
    table = plain_table("run", "state", "rounds", "devices", "loss", "accuracy", "started", "reason")
    for place in all_runs():
        ledger, objects = wiring.ledger(place), wiring.objects(place)
        found = ledger.run(place.run)
        if found is None:
            continue
        run, _ = found
        ended = rows(ledger, objects, run.name, time.time())
        loss, accuracy = last(ended, "loss"), last(ended, "accuracy")
        if json:
            print(msgspec.json.encode({"run": run, "loss": loss, "accuracy": accuracy}).decode())
        done = trained(ended)
        table.add_row(
            run.name, run.state.value, f"{done} of {run.settings.rounds}", str(run.settings.devices),
            number(loss), number(accuracy), _clock(run.started_at), escape(run.reason),
        )  # fmt: skip
    if not json:
        if table.row_count:
            terminal().print(table)
        else:
            print(f"no runs in {wiring.home()}\n  next: {typed('fleetfold run APP')}")


def show(
    run: str = "latest",
    /,
    *,
    round: Annotated[int | None, Parameter(name="--round", help="the timeline of this round")] = None,
    evaluation: Annotated[bool, Parameter(help="of the evaluation after that round", negative="")] = False,
    json: _JSON = False,
) -> None:
    """Show a run, a row a round; or with --round one round, a line for every device and step.

    **Examples**

    - `fleetfold show latest`
    - `fleetfold show digits-1 --round 3`
    - `fleetfold show digits-1 --json`
    """
    place = existing(run)
    ledger, objects = wiring.ledger(place), wiring.objects(place)
    found = ledger.run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold runs")
    if round is not None:
        _show_round(place, round, "evaluate" if evaluation else "train", json)
        return
    all_rows = rows(ledger, objects, place.run, time.time(), priced(place, ledger))
    if json:
        for each in all_rows:
            print(msgspec.json.encode(each).decode())
        return
    value, _ = found
    console = terminal()
    console.print(f"[bold]{value.name}[/] {value.state.value}: {escape(value.reason)}")
    console.print(f"app {value.app}\nstarted {_clock(value.started_at)}", markup=False)
    console.print(rounds_table(all_rows, console.width))
    private = [r.metrics["privacy"] for r in all_rows if r.epsilon is not None]
    if private:
        spent = f"{number(private[-1]['epsilon'])} at δ = {private[-1]['delta']:.3g}"
        console.print(f"ε: spent by the run so far, {spent}", style="dim")
    if paid := [r.cost for r in all_rows if r.cost is not None]:
        about = "by a model and public prices, fleetfold aws cost"
        console.print(f"cost: {dollars(sum(paid))} in {len(paid)} rounds, {about}", style="dim")
    scored = {r.scored_by for r in all_rows if r.scored_by}
    meaning = {"test": "the test set", "devices": "the devices, of the model they were given",
               "trained": "the devices, in training"}  # fmt: skip
    if scored:
        console.print("scored by " + "; ".join(meaning[s] for s in sorted(scored)), style="dim")


def _exchange(ledger: Ledger, run: str, which: int, kind: Kind) -> tuple[Round, int] | None:
    """The newest exchange of that kind of the app's own round, or the one of that number."""
    turns = [r.number for r in ledger.rounds(run) if r.turn == which and r.label.startswith(kind)]
    return ledger.round(run, turns[-1] if turns else which, "message")


def _show_round(place: wiring.Place, which: int, kind: Kind, json: bool) -> None:
    ledger, objects = wiring.ledger(place), wiring.objects(place)
    found = ledger.round(place.run, which, kind) or _exchange(ledger, place.run, which, kind)
    if found is None:
        raise BadConfig(f"run {place.run} has no round {which} to {kind}", next=f"fleetfold show {place.run}")
    round, _ = found
    cohort = msgspec.json.decode(fetch(objects, round.cohort), type=list[str])
    timeline = lines(ledger, objects, round, cohort)
    if json:
        for each in timeline:
            print(msgspec.json.encode(each).decode())
        return
    console = terminal()
    console.print(f"[bold]{place.run}[/] round {round.number} {round.phase.value}: {escape(round.reason)}")
    steps = (("invited", round.opened_at), ("closed", round.closed_at), ("ended", round.ended_at))
    told = [f"{step} {at - round.opened_at:.3f} s" for step, at in steps if at]
    console.print(" · ".join(told))
    table = plain_table(
        "device", "state", "examples", "download", "compute", "upload", "total", "bytes", "reason"
    )
    for line in timeline:
        colour = COLOURS.get(line.state, "yellow")
        table.add_row(
            line.device, f"[{colour}]{line.state}[/]", str(line.examples), _seconds(line.download),
            _seconds(line.compute), _seconds(line.upload), _seconds(line.total), size(line.bytes),
            escape(line.reason),
        )  # fmt: skip
    console.print(table)


def devices(
    run: str = "",
    /,
    *,
    recent: Annotated[int | None, Parameter(help="only the N heard of last")] = None,
    json: _JSON = False,
) -> None:
    """List devices: of a run, of the hub here or of the stack on AWS, where there is one, by name or by when
    they were last seen.

    **Examples**

    - `fleetfold devices`
    - `fleetfold devices digits-1 --recent 10`
    """
    fleet = _fleet(run, recent)
    if json:
        for device in fleet:
            print(msgspec.json.encode(device).decode())
        return
    elsewhere = any(d.says for d in fleet)
    more = ("state", "battery", "link") if elsewhere else ()
    table = plain_table(
        "device", *more, "last seen", "examples", "turnaround", "chosen", "arrived", "failures",
        *(("reason",) if elsewhere else ()),
    )  # fmt: skip
    for d in fleet:
        says = d.says or Presence(device=d.name, online=False)
        state = ("free" if says.available else "waits") if says.online else "off"
        colour = {"free": "green", "waits": "yellow"}.get(state, "bright_black")
        battery = "–" if says.battery is None else f"{says.battery:.0%}{'+' if says.charging else ''}"
        table.add_row(
            escape(d.name), *((f"[{colour}]{state}[/]", battery, says.link or "–") if elsewhere else ()),
            _clock(d.last_seen) if d.last_seen else "never", str(d.examples),
            "–" if d.turnaround is None else f"{d.turnaround:.3f} s", str(d.chosen), str(d.arrived),
            str(d.failures), *([escape(shown(says.reason, 80))] if elsewhere else ()),
        )  # fmt: skip
    terminal().print(table)


def _fleet(run: str, recent: int | None) -> list[Device]:
    """By name: of the run, of the hub here, of the stack that is known here, or of the newest run. `recent`:
    so many, by when they were last seen."""
    home = wiring.home()
    if not run and (home / "hub" / "hub.db").exists():
        ledger = Ledger(wiring.hub_records(home))
    elif not run and len(stacks := list((home / "aws").glob("*.json"))) == 1:
        ledger = wiring.ledger_of_stack(stacks[0])
    else:
        ledger = wiring.ledger(existing(run or "latest"))
    return ledger.fleet() if recent is None else ledger.recent(recent)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
