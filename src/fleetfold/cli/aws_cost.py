"""fleetfold aws cost: what rounds on AWS would cost, in dollars and in seconds, before any is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fleetfold.cli.board import dollars, plain_table, terminal
from fleetfold.errors import BadConfig
from fleetfold.settings import seconds, share, size

if TYPE_CHECKING:
    from fleetfold.aws.cost import Bill, Prices
    from fleetfold.fold.tensors import Header

CODECS = ("full", "bf16", "int8")
"""What is tried where no codec is named, the first that does."""


def cost(
    app: str | None = None,
    /,
    *,
    model_mb: Annotated[float | None, Parameter(help="a model of so many MB of fp32, instead of APP")] = None,
    devices: Annotated[int, Parameter(help="devices that a round invites, all of which answer")] = 20,
    fleet: Annotated[int, Parameter(help="devices that stay connected; default: those")] = 0,
    every: Annotated[str, Parameter(help="time from one round to the next")] = "10m",
    rounds: Annotated[int, Parameter(help="of the whole run")] = 1,
    shards: Annotated[int | None, Parameter(help="functions that fold at once; default: chosen")] = None,
    memory: Annotated[int | None, Parameter(help="MB of each; default: chosen")] = None,
    arm: Annotated[bool, Parameter(help="functions on arm64", negative="")] = False,
    codec: Annotated[str | None, Parameter(help="how updates travel; default: full, if that does")] = None,
    topk: Annotated[str, Parameter(help="values that topk sends: a count or a share")] = "1%",
    budget: Annotated[str | None, Parameter(help="of the whole run: 5USD")] = None,
    deadline: Annotated[
        str | None, Parameter(help="from the last update of a round to its model: 3s")
    ] = None,
    prices: Annotated[Path | None, Parameter(help="a price file; default: us-east-1, in the package")] = None,
    check: Annotated[
        bool, Parameter(help="published times and bills beside what the model says of them", negative="")
    ] = False,
    json: Annotated[bool, Parameter(help="print one JSON object", negative="")] = False,
) -> None:
    """Say what rounds on AWS would cost, in dollars and in seconds; nothing is asked of AWS.

    APP is an app, or any .safetensors file. With a deadline the cheapest way that keeps it is chosen, with a
    budget alone the quickest; what is chosen is how many functions fold, how large they are, and how updates
    travel. It is a model: others' measurements of Lambda and S3, and public prices.

    **Examples**

    - `fleetfold aws cost my-app --devices 100 --rounds 50`
    - `fleetfold aws cost --model-mb 42.7 --devices 20 --deadline 5s`
    - `fleetfold aws cost model.safetensors --rounds 100 --budget 20USD`
    - `fleetfold aws cost --check`
    """
    from fleetfold.aws import cost as model_of
    from fleetfold.aws.cost import choose, plain, work

    asked = _prices(prices)
    if check:
        _check(asked, json)
        return
    if (app is None) == (model_mb is None):
        raise BadConfig("one of APP and --model-mb", next="fleetfold aws cost --model-mb 42.7")
    if model_mb is not None and model_mb <= 0:
        raise BadConfig(f"--model-mb {model_mb:g} must be above 0")
    for name, value in (("devices", devices), ("rounds", rounds), ("shards", shards), ("memory", memory)):
        if value is not None and value < 1:
            raise BadConfig(f"--{name} {value} must be at least 1")
    header = plain(int(model_mb * 1e6)) if model_mb is not None else _header(str(app))
    try:
        part, minutes = share(topk), seconds(every) / 60
        within = None if deadline is None else seconds(deadline)
    except ValueError as error:
        raise BadConfig(f"{error} is not a time such as 3s, or a share such as 1%") from None
    works = [
        work(header, codec=each, topk=part, devices=devices, fleet=fleet, minutes=minutes)
        for each in ((codec,) if codec else CODECS)
    ]
    total = None if budget is None else _usd(budget) / rounds
    chosen = choose(
        header, works, asked, budget=total, deadline=within, shards=shards, memory=memory, arm=arm
    )
    if json:
        told = {
            "bill": chosen.bill, "usd": chosen.bill.usd, "run_usd": rounds * chosen.bill.usd,
            "seconds": chosen.bill.seconds, "reason": chosen.reason,
            "prices": {"region": asked.region, "date": asked.date},
        }  # fmt: skip
        print(msgspec.json.encode(told).decode())
    else:
        terminal().print(_shown(chosen.bill, chosen.reason, asked, rounds, model_of.PARTS))


def _prices(path: Path | None) -> "Prices":
    from fleetfold.aws.cost import prices

    try:
        return prices(None if path is None else path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _header(app: str) -> "Header":
    """Of the model of an app, which is made, or of a file, of which nothing else is read."""
    if app.endswith(".safetensors"):
        from fleetfold.cli.plan import header_of

        return header_of(Path(app))
    from fleetfold.agent.app import find_app
    from fleetfold.cli.settings import Flags, settings_of
    from fleetfold.fold.tensors import header_in
    from fleetfold.local.run import prepare

    found = find_app(app)
    settings, _ = settings_of(found, Flags())
    return header_in(prepare(found, settings).model)


def _usd(text: str) -> float:
    number = text.strip().upper().removesuffix("USD").removeprefix("$").strip()
    try:
        value = float(number)
    except ValueError:
        raise BadConfig(f"--budget {text!r} is not an amount such as 5USD") from None
    if value <= 0:
        raise BadConfig(f"--budget {text!r} must be above 0")
    return value


def _shown(
    bill: "Bill", reason: str, prices: "Prices", rounds: int, parts: Sequence[tuple[str, str]]
) -> Group:
    about = Table(box=None, show_header=False, pad_edge=False)
    about.add_column(style="bold", no_wrap=True)
    about.add_column(overflow="fold")
    work = bill.work
    about.add_row("model", f"{size(work.model)}; {work.arrived} updates of {size(work.update)}, {work.codec}")
    about.add_row("shape", reason)
    about.add_row("a round", f"{dollars(bill.usd)}: " + ", ".join(
        f"{dollars(bill.of(part))} {what}" for part, what in parts
    ))  # fmt: skip
    if rounds > 1:
        about.add_row(f"{rounds} rounds", dollars(rounds * bill.usd))
    about.add_row("a month", f"{dollars(sum(item.usd for item in bill.month))} while nothing is trained")
    about.add_row("seconds", f"{bill.seconds:.3g} from the last update to the model: " + ", ".join(
        f"{step.what} {step.seconds:.2g}" for step in bill.steps
    ))  # fmt: skip
    about.add_row("prices", f"{prices.region}, {prices.date}, without free tiers; a model, not a bill")
    items = plain_table("what", "count", "each", "USD a round")
    items.columns[0].justify = "left"
    for part, what in parts:
        items.add_row(f"[bold]{what}[/]", "", "", f"[bold]{dollars(bill.of(part))}[/]")
        for item in bill.items:
            if item.part == part:
                items.add_row(
                    f"  {item.what}", _count(item.count), f"{item.usd / item.count:.3g}", dollars(item.usd)
                )
    items.add_row("[bold]a month in which nothing is trained[/]", "", "", "")
    for item in bill.month:
        items.add_row(f"  {item.what}", _count(item.count), f"{item.usd / item.count:.3g}", dollars(item.usd))
    return Group(about, Text(), items)


def _check(prices: "Prices", json: bool) -> None:
    from fleetfold.aws.cost import published, sequential

    table = plain_table("model", "MiB", "functions", "MB", "s", "model's", "", "USD/1,000", "model's", "")
    for row in published():
        if row.topology != "shards":
            continue
        said = sequential(row, prices)
        if json:
            print(msgspec.json.encode({"published": row, "model": said}).decode())
            continue
        table.add_row(
            row.model, f"{row.update_mb:g}", str(row.functions), str(row.memory_mb),
            f"{row.wall_s:.4g}", f"{said.wall:.4g}", _off(said.wall, row.wall_s),
            f"{row.usd_1000:.4g}", f"{1000 * said.usd:.4g}", _off(1000 * said.usd, row.usd_1000),
        )  # fmt: skip
    if not json:
        console = terminal()
        console.print(table)
        console.print(
            "20 updates, read one after another by functions of that memory on real Lambda: A. Barrak, "
            "arXiv 2604.22072, replication package", style="dim"
        )  # fmt: skip


def _off(said: float, real: float) -> str:
    return f"{said / real - 1:+.0%}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
