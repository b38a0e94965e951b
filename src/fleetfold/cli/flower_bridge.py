"""fleetfold flower bridge: devices of ours as SuperNodes of a SuperLink that is there already."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fleetfold.agent.app import find_app
from fleetfold.cli.board import plain_table, terminal
from fleetfold.cli.places import shown
from fleetfold.errors import BadConfig
from fleetfold.layout import checked_name
from fleetfold.settings import Settings, seconds
from fleetfold.wiring.local import home

if TYPE_CHECKING:
    from fleetfold.flower.bridge import Row

EVERY = 0.5
"""Seconds between two looks of a person's."""


def bridge(
    *devices: Annotated[str, Parameter(help="of the hub's fleet; each is a SuperNode")],
    superlink: Annotated[str, Parameter(help="HOST:PORT of its Fleet API")],
    root_certificates: Annotated[
        Path | None,
        Parameter(help="the certificate authority that the SuperLink's certificate is from, as PEM"),
    ] = None,
    insecure: Annotated[
        bool, Parameter(help="the SuperLink speaks no TLS: for trials on one machine", negative="")
    ] = False,
    keys: Annotated[
        Path | None,
        Parameter(
            help="SuperNode authentication: a folder with the private key of each device, in a file of its "
            "name. Keys that are missing are made"
        ),
    ] = None,
    node_config: Annotated[
        list[str] | None,
        Parameter(help="more of a device's node config: 'DEVICE: key=value key=\"text\"'", negative=""),
    ] = None,
    patience: Annotated[
        str, Parameter(help="most that a device may take for a message, which its TTL bounds, too")
    ] = "1h",
    away: Annotated[str, Parameter(help="the same for a device that is not there")] = "60s",
    app: Annotated[
        str | None,
        Parameter(
            help="instead of a hub's, devices that are simulated here, with the Flower app in this folder"
        ),
    ] = None,
    count: Annotated[int, Parameter(help="with --app: how many")] = 2,
    idle: Annotated[str, Parameter(help="without a message for so long, the run here is over")] = "10m",
) -> None:
    """Put devices of the fleet behind a SuperLink that is there already: `flwr run` trains on them.

    To the SuperLink each device is a SuperNode of Flower's own. What that is sent is forwarded over the
    fleet to the device's ClientApp (`fleetfold join BUNDLE --app FOLDER`) and answered with its answer; who
    does not answer in time is an error reply. Flower's run N is run `flower-N` here. Kill it whenever you
    like: the next one goes on. Until Ctrl-C.

    **Examples**

    - `fleetfold flower bridge --superlink link.example:9092 --root-certificates ca.crt device-1 device-2`
    - `fleetfold flower bridge --superlink link.example:9092 --keys supernodes device-1 device-2`
    - `fleetfold flower bridge --superlink 127.0.0.1:9092 --insecure --app my-app --count 4`
    """
    _installed()
    from fleetfold.flower import bridge_hub, bridge_local
    from fleetfold.flower.bridge import Bridge, Post
    from fleetfold.flower.bridge_nodes import Link, keyed, plan, reach
    from fleetfold.flower.bridge_post import FleetPost
    from fleetfold.flower.bridge_run import Limits

    names = tuple(dict.fromkeys(checked_name(device, "device") for device in devices))
    limits = Limits(
        patience=_seconds("--patience", patience),
        away=_seconds("--away", away),
        idle=_seconds("--idle", idle),
    )
    if insecure and keys:
        raise BadConfig(
            "a SuperLink without TLS takes no keys of SuperNodes", next="leave out --insecure, or --keys"
        )
    root = str(root_certificates.expanduser().absolute()) if root_certificates else ""
    link = Link(address=superlink, root=root, insecure=insecure)
    if app is not None:
        settings = Settings(devices=count, deadline=limits.patience)
        names = bridge_local.names(settings, names)
        ours = bridge_local.fleet(home(), superlink, find_app(app), settings)
    elif not names:
        raise BadConfig("no device is named", next="fleetfold devices")
    else:
        ours = bridge_hub.fleet(home(), superlink, names, limits.patience)
    config = _configs(node_config or [], names)
    reach(link)
    keys = keys.expanduser().absolute() if keys else None
    for device in names if keys else ():
        path, fresh = keyed(keys, device) if keys else (Path(), False)
        if fresh:
            _say(f"{device} has a new key; the SuperLink has to know it: flwr supernode register {path}.pub")
    folder = home() / "bridges" / link.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def post() -> Post:
        return FleetPost(ours, superlink, limits)

    board = Board(terminal(), lambda: "" if app else bridge_hub.standing(home()))
    served = Bridge(folder, plan(folder, link, names, config, keys), post, board.say)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: served.stop())
    board.say(
        f"SuperNodes of {superlink} for {', '.join(names)}; their logs are in {shown(folder / 'nodes')}"
    )
    with board:
        served.serve(board)
    _say("the bridge has left, and its SuperNodes with it")


def _configs(given: Sequence[str], devices: Sequence[str]) -> dict[str, str]:
    configs: dict[str, str] = {}
    for text in given:
        device, colon, rest = text.partition(":")
        if not colon or device.strip() not in devices:
            raise BadConfig(
                f"--node-config {text!r}: not DEVICE: key=value, of a device that is named here",
                next="fleetfold flower bridge --help",
            )
        configs[device.strip()] = f"{configs.get(device.strip(), '')} {rest.strip()}".strip()
    return configs


def _seconds(option: str, text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise BadConfig(f"{option} {text}: {error}", next=f"{option} 90s") from None


def _installed() -> None:
    """Raises BadConfig without what a bridge needs, which is imported only where it is used."""
    if find_spec("flwr") is None:
        raise BadConfig(
            "a bridge needs Flower, which is not installed here", next="pip install 'fleetfold[flower]'"
        )
    if find_spec("cryptography") is None:
        raise BadConfig("a bridge needs cryptography", next="pip install 'fleetfold[hub]'")


def _say(sentence: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {sentence}", file=sys.stderr, flush=True)


class Board:
    """What a person sees of a bridge: a table where there is a terminal, sentences where there is none.
    `hub`: why nothing happens there."""

    def __init__(self, console: Console, hub: Callable[[], str]) -> None:
        self._console, self._hub, self._looked, self._why = console, hub, 0.0, ""
        self._live: Live | None = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *about: object) -> None:
        if self._live:
            self._live.__exit__(None, None, None)

    def say(self, sentence: str) -> None:
        if self._live and self._live.is_started:
            self._console.print(f"{datetime.now():%H:%M:%S} {escape(sentence)}", highlight=False)
        else:
            _say(sentence)

    def __call__(self, rows: Sequence["Row"]) -> None:
        if time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        why = self._hub()
        if why and why != self._why:
            self.say(why)
        self._why = why
        if self._live:
            self._live.update(Group(rows_table(rows, time.time()), Text(why, "yellow")), refresh=True)


def rows_table(rows: Sequence["Row"], now: float) -> Table:
    """One row for each device."""
    table = plain_table("device", "SuperNode", "now", "forwarded", "failed", "reason")
    table.columns[1].justify = table.columns[2].justify = "left"
    for row in rows:
        link = row.standing
        colour = {"connected": "green", "starting": "yellow"}.get(link.state if link else "", "red")
        doing = f"{row.doing}, {now - row.since:.0f} s" if row.doing else "idle"
        why = row.why or (link.why if link else "")
        table.add_row(
            row.device, f"[{colour}]{link.state if link else 'not started'}[/]", escape(doing),
            str(row.forwarded), f"[red]{row.failed}[/]" if row.failed else "0", escape(why),
        )  # fmt: skip
    return table
