"""fleetfold dashboard: a run in a browser; and pause, stop, resume: what its buttons do, for a terminal."""

import os
import secrets
import webbrowser
from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter

from fleetfold.cli.places import existing
from fleetfold.dashboard import control
from fleetfold.errors import BadConfig, typed
from fleetfold.wiring import local as wiring

TOKEN = "FLEETFOLD_DASHBOARD_TOKEN"
SHORTEST = 16
"""Characters of a token of one's own."""
NICE = 5
"""Who trains goes before who watches."""


def dashboard(
    *,
    port: Annotated[int, Parameter(help="0: any that is free")] = 8340,
    listen: Annotated[str, Parameter(help="address; beyond this machine only with --control")] = "127.0.0.1",
    name: Annotated[tuple[str, ...], Parameter(help="a host name under which browsers reach it")] = (),
    control: Annotated[
        bool, Parameter(help="let who has the token start, pause, stop and resume runs", negative="")
    ] = False,
    open: Annotated[bool, Parameter(help="open a browser", negative="")] = False,
) -> None:
    """Show runs in a browser: those below FLEETFOLD_HOME, also a hub's and those on AWS.

    It reads the ledger, and slows no run down. With `--control` a token is made and told with the address, or
    taken from FLEETFOLD_DASHBOARD_TOKEN; without one nobody changes anything from there.

    **Examples**

    - `fleetfold dashboard`
    - `fleetfold dashboard --control --open`
    - `ssh -L 8340:127.0.0.1:8340 hub.example` and there `fleetfold dashboard`
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise BadConfig(
            "the dashboard needs starlette and uvicorn", next="pip install 'fleetfold[dashboard]'"
        )
    from fleetfold.dashboard import serve
    from fleetfold.dashboard.guard import is_loopback

    here = is_loopback(listen)
    token = _token(control)
    if not here and not token:
        raise BadConfig(
            f"beyond this machine, at {listen}, only with a token",
            next=f"fleetfold dashboard --listen {listen} --control",
        )
    socket = serve.listening(listen, port)
    host = f"[{listen}]" if ":" in listen else listen
    address = f"http://{host}:{socket.getsockname()[1]}/" + (f"#token={token}" if token else "")
    may = "whoever has this address may start, pause, stop and resume runs" if token else "it only reads"
    print(f"{address}\n{may}; Ctrl-C ends it, and no run with it", flush=True)
    os.nice(NICE)
    if open:
        webbrowser.open(address)
    serve.server(serve.application(wiring.home(), token, name, here=here)).run(sockets=[socket])


def _token(control: bool) -> str:
    own = os.environ.get(TOKEN, "")
    if own and len(own) < SHORTEST:
        raise BadConfig(f"{TOKEN} has {len(own)} characters, and should have {SHORTEST} at least")
    return own or (secrets.token_urlsafe(24) if control else "")


def pause(run: str = "latest", /) -> None:
    """Pause a run when its open round has ended; nothing is lost.

    Whoever drives it does so: a process on this machine, the hub, or functions on AWS.

    **Examples**

    - `fleetfold pause digits-1`
    """
    place = existing(run)
    print(f"{control.ask(place, 'pause')}\n  next: {typed(f'fleetfold resume {place.run}')}")


def stop(run: str = "latest", /) -> None:
    """Stop a run now: its open round is given up, and what its models have learnt so far stands.

    **Examples**

    - `fleetfold stop digits-1`
    """
    place = existing(run)
    print(f"{control.ask(place, 'stop')}\n  next: {typed(f'fleetfold resume {place.run}')}")


def resume(run: str = "latest", /) -> int:
    """Go on with a run that was paused or stopped, or take that back; the same as `fleetfold run --resume`
    where nobody drives it.

    **Examples**

    - `fleetfold resume digits-1`
    """
    from fleetfold.cli.run import resumed

    place = existing(run)
    if control.take_back(place):
        print(f"run {place.run} goes on")
        return 0
    return resumed(place.run)
