"""fleetfold aws: the fleet's stack in an account of AWS, from `deploy` to `destroy`."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from fleetfold.agent.app import find_app
from fleetfold.cli.aws_cost import cost
from fleetfold.cli.board import Board, plain_table, terminal
from fleetfold.cli.fleet import claim, installed
from fleetfold.cli.greengrass import greengrass
from fleetfold.cli.init import APP
from fleetfold.cli.places import shown
from fleetfold.cli.progress import bar, progress
from fleetfold.cli.run import LOOK
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.local import run as local_run
from fleetfold.round.run import RunState
from fleetfold.settings import Settings, size
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place, home

if TYPE_CHECKING:
    from fleetfold.aws.destroy import Remains
    from fleetfold.aws.logs import Line
    from fleetfold.aws.smoke import Emulator
    from fleetfold.aws.stack import Stack
    from fleetfold.aws.stacks import Happening, Plan, Stacks, Standing

aws = App(
    name="aws",
    help="Keep a fleet on AWS: deployed by one command, with nothing running between rounds.",
    help_format="markdown",
)

for command in (claim, cost, greengrass):
    aws.command(command)

_STACK = Annotated[str, Parameter(help="the stack's name")]
_REGION = Annotated[str, Parameter(help="default: AWS_DEFAULT_REGION, or that of ~/.aws")]
_KNOWN = Annotated[str, Parameter(help="the stack's name; default: the only one that is known here")]
_YES = Annotated[bool, Parameter(help="do not ask", negative="")]
COLOURS = {"add": "green", "modify": "yellow", "remove": "red", "replace": "red", "perhaps replace": "red"}


@aws.command
def deploy(
    *,
    stack: _STACK = "fleetfold",
    region: _REGION = "",
    fleet: Annotated[str, Parameter(help="the fleet's name; default: main, or as it is")] = "",
    yes: _YES = False,
    plan: Annotated[bool, Parameter(help="only show what would change", negative="")] = False,
    with_: Annotated[
        list[Path] | None,
        Parameter(name="--with", help="a module of yours that the functions need, as a policy", negative=""),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", help="a parameter of the template, NAME=VALUE; stays until it is set anew",
                  negative=""),
    ] = None,
    python: Annotated[str, Parameter(help="of the functions; default: this one, if Lambda has it")] = "",
) -> int:  # fmt: skip
    """Bring the stack to what this version of fleetfold says it is: made, changed, or nothing to do.

    It builds the functions' zip, shows what would change, asks, and shows what happens. Nothing runs in the
    account afterwards until a run is begun. Interrupt it whenever you like: the next one goes on from there.

    **Examples**

    - `fleetfold aws deploy`
    - `fleetfold aws deploy --plan`
    - `fleetfold aws deploy --stack farm --fleet farm --region eu-central-1 --yes`
    - `fleetfold aws deploy --with my_policy.py --set Folders=8 --set FoldMemory=1769`
    - `fleetfold aws deploy --set "ScheduleExpression=cron(0 3 * * ? *)" --set ScheduledRun=digits-1`
    """
    installed()
    from fleetfold.aws import deploy as deployment
    from fleetfold.aws.package import package
    from fleetfold.aws.stack import save

    deployment.checked_stack(stack)
    given = _given(set_ or [], fleet)
    console = terminal()
    account = deployment.account(region)
    stacks = deployment.stacks(account)
    _finish(stacks, stack)
    with progress("fetching the functions' libraries and packing them"):
        made = package(home() / "aws" / "package", python=python, modules=with_ or [])
    slow = f"; its fold is numpy's, which is slower: {made.why_slow}" if made.why_slow else ""
    console.print(f"functions: Python {made.python}, {size(made.zipped)} zipped{slow}", markup=False)
    given |= {
        "CodeBucket": deployment.code_bucket(account, stack),
        "CodeKey": made.key,
        "Runtime": f"python{made.python}",
    }
    given.setdefault("IotEndpoint", deployment.iot_endpoint(account))
    with progress("uploading the functions", unit="bytes") as told:
        url = deployment.uploaded(account, stack, made, told)
    with progress("planning what changes"):
        proposed = deployment.proposed(stacks, stack, url, given)
    _show_plan(console, proposed)
    if proposed.changes and not (plan or yes or _agreed(f"Deploy {stack} to {account.region}?")):
        plan = True
    if plan:
        if proposed.changes:
            stacks.withdraw(proposed)
            shell, _ = stacks.look(stack)
            if shell is not None and shell.status == "REVIEW_IN_PROGRESS":
                stacks.delete(stack)
        return 0
    standing, before = stacks.look(stack)
    first = None
    if proposed.changes:
        stacks.execute(proposed)
        last = before[-1].id if before else ""
        standing, first = _watched(stacks, stack, last, len(proposed.changes))
    found = deployment.deployed(stack, account.region, standing, first)
    where = save(home(), found)
    console.print(
        f"{stack} in {account.region}: fleet {found.fleet}, bucket {found.bucket}; {shown(where)}\n"
        f"  next: fleetfold enroll DEVICE --aws\n"
        f"        fleetfold run APP --aws\n"
        f"        fleetfold aws status",
        markup=False,
    )
    return 0


@aws.command
def status(*, stack: _KNOWN = "") -> None:
    """Tell how a stack fares: itself, its queues, its workflow, and its runs.

    **Examples**

    - `fleetfold aws status`
    - `fleetfold aws status --stack farm`
    """
    installed()
    from fleetfold.aws import deploy as deployment
    from fleetfold.aws import report
    from fleetfold.aws.stack import load

    known = load(home(), stack)
    account = deployment.account(known.region)
    console = terminal()
    for line in report.status(account, deployment.stacks(account), known):
        console.print(f"{line.what:12} {line.text}", markup=False, style="red" if line.bad else None)
        if line.next:
            console.print(f"{'':12} next: {line.next}", markup=False)


@aws.command
def logs(
    run: str,
    /,
    *,
    follow: Annotated[bool, Parameter(help="and go on, until Ctrl-C", negative="")] = False,
    hours: Annotated[float, Parameter(help="how far back")] = 24,
    stack: _KNOWN = "",
) -> None:
    """Show what the functions and the workflow wrote of RUN.

    **Examples**

    - `fleetfold aws logs digits-1`
    - `fleetfold aws logs digits-1 --follow`
    - `fleetfold aws logs digits-1 --hours 1`
    """
    installed()
    from fleetfold.aws import deploy as deployment
    from fleetfold.aws import logs as written
    from fleetfold.aws.stack import load

    known = load(home(), stack)
    service = deployment.account(known.region).service("logs", "CloudWatch's logs")
    since = time.time() - hours * 3600
    if follow:
        written.followed(service, known, run, since, _show_line)
    found = written.lines(service, known, run, since)
    for line in found:
        _show_line(line)
    if not found:
        print(f"nothing was written of {run} in {hours:g} hours\n  next: fleetfold aws status")


@aws.command
def smoke(
    *,
    devices: Annotated[int, Parameter(help="made up for it, 1 to 10")] = 3,
    stack: _KNOWN = "",
    tidy: Annotated[
        bool, Parameter(help="only remove what an interrupted one has left", negative="")
    ] = False,
    broker: Annotated[str, Parameter(help="an emulator's", show=False)] = "",
    authority: Annotated[Path | None, Parameter(help="an emulator's", show=False)] = None,
) -> int:
    """Train one round in the account, with devices made up for it, and remove them and it afterwards.

    Its devices are processes on this machine that join as any device does, without keys of AWS; no other
    device of the fleet is asked.

    **Examples**

    - `fleetfold aws smoke`
    - `fleetfold aws smoke --devices 10 --stack farm`
    - `fleetfold aws smoke --tidy`
    """
    installed()
    from fleetfold.aws import deploy as deployment
    from fleetfold.aws import smoke as smoking
    from fleetfold.aws.stack import load

    known = load(home(), stack)
    if not 1 <= devices <= 10:
        raise BadConfig(f"--devices {devices}: 1 to 10 are made up", next="fleetfold aws smoke")
    account = deployment.account(known.region)
    if tidy:
        for what in smoking.tidied(account, known):
            print(f"removed {what}")
        return 0
    name = smoking.name()
    emulator = smoking.Emulator(broker, authority.read_text()) if broker and authority else None
    try:
        return _smoke(known, name, devices, emulator)
    finally:
        removed = smoking.tidied(account, known, name)
        print(f"tidied: {len(removed)} things that it made are removed")


def _smoke(stack: "Stack", name: str, devices: int, emulator: "Emulator | None") -> int:
    from fleetfold.aws import opening
    from fleetfold.aws import smoke as smoking
    from fleetfold.aws.stack import save

    with TemporaryDirectory(prefix=f"{name}-") as folder:
        place = Place(Path(folder, "home"), name)
        place.folder.mkdir(parents=True)
        save(place.home, stack)
        path = Path(folder, "app")
        path.mkdir()
        (path / "app.py").write_text(APP.format(name=name, folder=path))
        app = find_app(str(path))
        settings = Settings(
            rounds=1, devices=devices, select="all", available=devices, quorum=1.0, deadline=120.0,
            where=smoking.where(name), evaluate="cohort",
        )  # fmt: skip
        prepared = local_run.prepare(app, settings)
        with smoking.devices(stack, name, devices, path, Path(folder), print, emulator):
            if opening.is_taken(stack, name):
                raise BadConfig(f"there is a run {name}", next="fleetfold aws smoke")
            opening.submit(stack, app, settings, prepared.model, place)
            with Board(place, console := terminal(), "table" if console.is_terminal else "lines") as board:
                return _seen_to_end(place, board)


def _seen_to_end(place: Place, board: Board) -> int:
    ledger = wiring.ledger(place)
    while (found := ledger.run(place.run)) is not None:
        board(found[0], 0)
        if found[0].state is RunState.FAILED:
            raise Unavailable(f"the round failed: {found[0].reason}", next="fleetfold aws status")
        if found[0].state is not RunState.RUNNING:
            break
        time.sleep(LOOK)
    seconds = sum(row.seconds for row in board.rows)
    print(f"it works: a round was trained and evaluated in {seconds:.1f} s")
    return 0


@aws.command
def destroy(
    *,
    stack: _STACK = "fleetfold",
    region: _REGION = "",
    delete_models: Annotated[bool, Parameter(help="the models too", negative="")] = False,
    yes: _YES = False,
) -> int:
    """Take a stack away, with its devices' certificates, its records and its updates. It says what there is,
    and asks. Models stay in the bucket, unless --delete-models.

    Interrupt it whenever you like: the next one goes on from there.

    **Examples**

    - `fleetfold aws destroy`
    - `fleetfold aws destroy --stack farm --delete-models --yes`
    """
    installed()
    from fleetfold.aws import deploy as deployment
    from fleetfold.aws import destroy as destruction
    from fleetfold.aws.stack import forget

    deployment.checked_stack(stack)
    account = deployment.account(region)
    stacks = deployment.stacks(account)
    found = destruction.remains(account, stacks, stack)
    if found.none:
        forget(home(), stack)
        print(f"there is no stack {stack} in {account.region}, and nothing left of one")
        return 0
    for line in _going(found, delete_models):
        print(line)
    if not (yes or _agreed(f"Destroy {stack} in {account.region}?")):
        return 1
    with _display() as show:
        destruction.destroy(account, stacks, stack, print, show, models=delete_models)
    forget(home(), stack)
    print(f"{stack} is gone")
    return 0


def _given(words: Sequence[str], fleet: str) -> dict[str, str]:
    """Parameters as they were given. Raises BadConfig for one that the template has not."""
    from fleetfold.aws.template import template

    known = template()["Parameters"]
    given = {"Fleet": fleet} if fleet else {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or name not in known or name in ("CodeBucket", "CodeKey", "Runtime"):
            free = ", ".join(sorted(set(known) - {"CodeBucket", "CodeKey", "Runtime"}))
            raise BadConfig(f"--set {word}: it takes NAME=VALUE, where NAME is one of {free}")
        given[name] = value
    return given


def _finish(stacks: "Stacks", stack: str) -> None:
    """Watch what is under way, which may be what an interrupted deployment began."""
    found, _ = stacks.look(stack)
    if found is not None and found.busy:
        print(f"a deployment of {stack} is under way: {found.status}")
        _watched(stacks, stack, "")


def _watched(
    stacks: "Stacks", stack: str, after: str, changes: int = 0
) -> "tuple[Standing | None, Happening | None]":
    from fleetfold.aws.stacks import followed

    with _display(changes) as show:
        return followed(stacks, stack, after, show)


@contextmanager
def _display(changes: int = 0) -> "Iterator[Callable[[Sequence[Happening]], None]]":
    """Shows what happens: in a terminal, what is under way below what is done, and how far it is of so many
    changes (0: nobody knows); else a line each."""
    console = terminal()
    if not sys.stdout.isatty():

        def lines(news: "Sequence[Happening]") -> None:
            for each in news:
                _show_event(console, each)

        yield lines
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    under_way: dict[str, str] = {}
    done = set[str]()
    bars = bar("resources")
    task = bars.add_task("", total=changes or None)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(news: "Sequence[Happening]") -> None:
            for each in news:
                if each.status.endswith("_IN_PROGRESS"):
                    under_way[each.resource] = each.status
                else:
                    under_way.pop(each.resource, None)
                    done.add(each.resource)
                    _show_event(live.console, each)
            names = ", ".join(list(under_way)[:6])
            bars.update(task, completed=min(len(done), changes) if changes else len(done))
            line = Text(f"{len(under_way)} under way: {names}", style="dim")
            live.update(Group(line, bars.get_renderable()), refresh=True)

        yield show


def _show_event(console: Any, each: "Happening") -> None:
    colour = "red" if each.failed else "green" if each.status.endswith("_COMPLETE") else "dim"
    reason = f": {each.reason}" if each.reason and "FAILED" in each.status else ""
    console.print(
        f"{datetime.fromtimestamp(each.at):%H:%M:%S} {each.status:28} {each.resource}{reason}",
        style=colour, markup=False, soft_wrap=True,
    )  # fmt: skip


def _show_plan(console: Any, plan: "Plan") -> None:
    if not plan.changes:
        console.print(f"nothing changes in {plan.stack}", markup=False)
        return
    table = plain_table("state", "device", "reason")
    for column, name in zip(table.columns, ("change", "resource", "type, and what differs"), strict=True):
        column.header = name
    for change in plan.changes:
        colour = COLOURS[change.action]
        more = f": {change.why}" if change.why and change.action != "add" else ""
        table.add_row(f"[{colour}]{change.action}[/]", change.resource, f"{change.type}{more}")
    console.print(table)
    counts = [f"{_count(plan, action)} to {action}" for action in COLOURS if _count(plan, action)]
    console.print(", ".join(counts), markup=False)
    for change in plan.changes:
        if change.loses:
            console.print(
                f"warning: {change.resource} would be left behind with the data that is in it, and be empty",
                style="bold red", markup=False,
            )  # fmt: skip


def _count(plan: "Plan", action: str) -> int:
    return sum(change.action == action for change in plan.changes)


def _going(found: "Remains", models: bool) -> Iterator[str]:
    if found.standing is not None:
        yield f"stack    {found.standing.name}, {found.standing.status}"
    if found.executions:
        yield f"runs     {found.executions} under way would be stopped"
    if found.devices:
        yield f"devices  {found.devices} would be cut off, and have to be enrolled anew"
    for name, items in found.tables:
        yield f"table    {name}: the registry and the ledger of all runs, some {items} records"
    for bucket in found.buckets:
        what = "would go too" if models else "would stay"
        yield (
            f"bucket   {bucket.name}: {bucket.others} objects, {size(bucket.others_bytes)}; "
            f"{bucket.models} of models, {size(bucket.models_bytes)}, {what}"
        )
    if found.code:
        yield f"code     {found.code}"


def _agreed(question: str) -> bool:
    """Whether a person says yes. Raises BadConfig where there is none to ask."""
    if not sys.stdin.isatty():
        raise BadConfig(f"{question} There is nobody to ask", next="the same command with --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _show_line(line: "Line") -> None:
    more = " ".join(f"{name}={value}" for name, value in line.more.items() if name != "run")
    print(
        f"{datetime.fromtimestamp(line.at):%Y-%m-%d %H:%M:%S} {line.function:10} {line.level:7} "
        f"{line.text} {more}".rstrip(),
        flush=True,
    )
