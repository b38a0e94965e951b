"""`fleetfold join` and `fleetfold agent`: what a person types on a device.

Only what waits is imported here: no numpy, no terminal library. An error is a sentence and what to do next,
with exit code 2 (the user's) or 1 (the wire's); `--debug` shows the traceback.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from fleetfold import bundle
from fleetfold.adapters.lock import held
from fleetfold.bundle import Bundle, Claim
from fleetfold.device import keys, status, terms, unit
from fleetfold.device.conditions import root
from fleetfold.device.supervisor import Supervisor
from fleetfold.device.terms import Home, Terms
from fleetfold.errors import BadConfig, told
from fleetfold.log import Log
from fleetfold.wiring import device as wiring


class Parser(argparse.ArgumentParser):
    """Says what is wrong as all of fleetfold does."""

    def error(self, message: str) -> NoReturn:
        raise BadConfig(message, next=f"{self.prog} --help")


def main(arguments: Sequence[str]) -> None:
    """Run the command and leave with its exit code."""
    debug = "--debug" in arguments
    try:
        given, unknown = _parser().parse_known_args([word for word in arguments if word != "--debug"])
        if unknown:
            raise BadConfig(f"{given.called} does not know {unknown[0]!r}", next=f"{given.called} --help")
        sys.exit(given.command(given))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        sentence, next, code = told(error)
        print(f"error: {sentence}" + (f"\n  next: {next}" if next else ""), file=sys.stderr)
        sys.exit(code)


def join(given: argparse.Namespace) -> int:
    """Take part in the fleet of the bundle, until stopped."""
    if given.systemd not in (None, "", "-") and given.bundle is None:
        given.bundle, given.systemd = given.systemd, ""  # --systemd stood before the bundle
    place = given.home
    if (
        given.systemd is not None
        and os.geteuid() == 0
        and not (place or os.environ.get(f"{terms.PREFIX}HOME"))
    ):
        place = str(unit.STATE)
    home = terms.home(place)
    flags = {name: value for name in terms.NAMES if (value := getattr(given, name)) is not None}
    for name in ("app", "data"):
        if name in flags and Path(flags[name]).expanduser().exists():
            flags[name] = str(Path(flags[name]).expanduser().absolute())
    layers = {str(home.settings): terms.kept(home), "environment": terms.from_environment(), "flags": flags}
    chosen = terms.resolve(layers)
    _check_app(chosen)
    home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if given.bundle is not None:
        _take_in(home, given)
    if not home.bundle.exists():
        raise BadConfig(f"{home.path} belongs to no fleet yet", next="fleetfold join BUNDLE --app FOLDER")
    if flags:
        terms.keep(home, flags)
    if given.systemd is not None:
        return _write_unit(home, chosen, given.systemd)
    with held(home.path, f"the agent of {home.path}"):
        return _run(
            home, bundle.load(home.bundle), chosen, given, trial=given.bundle is not None or "app" in flags
        )


def _take_in(home: Home, given: argparse.Namespace) -> None:
    """Make the home that of the device that the bundle, or the claim and a name, are for."""
    place, key = Path(given.bundle), Path(given.key) if given.key else None
    if not given.device:
        terms.take_in(home, keys.with_key(bundle.load(place), key))
        return
    found = bundle.opened(place)
    if not isinstance(found, Claim):
        raise BadConfig(f"--device is for a claim; {place} is the bundle of {found.device}")
    from fleetfold.device.claim import become, lets_in

    become(home, found, given.device, wiring.provisioning, lets_in(wiring.link))


def _run(home: Home, mine: Bundle, chosen: Terms, given: argparse.Namespace, *, trial: bool) -> int:
    log = Log(chosen.log_format, fleet=mine.fleet, device=mine.device)
    stop = threading.Event()
    link = wiring.link_by(given.link, mine, home.path)
    life = (root() / "proc/sys/kernel/random/boot_id").read_text().strip()
    supervisor = Supervisor(
        home, mine, chosen, link, wiring.records(home.path, "agent"), given.transfer, log, life=life
    )

    def leave(number: int, frame: object) -> None:
        stop.set()
        threading.Thread(target=link.wake).start()  # not here: the lock may be held by whom we interrupt

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    log("joins", device=mine.device, fleet=mine.fleet, home=str(home.path))
    supervisor.run(stop, trial=trial and bool(chosen.app))
    return 0


def _check_app(chosen: Terms) -> None:
    from fleetfold.agent.app import find_app

    if chosen.app:
        find_app(chosen.app)


def _write_unit(home: Home, chosen: Terms, where: str) -> int:
    made = unit.unit(home, chosen, root=os.geteuid() == 0)
    if where == "-":
        print(made.text, end="")
        return 0
    try:
        made.place.parent.mkdir(parents=True, exist_ok=True)
        made.place.write_text(made.text)
    except OSError as error:
        raise BadConfig(
            f"cannot write {made.place}: {error.strerror}", next="--systemd - prints it"
        ) from None
    print(made.place, *(f"note: {note}" for note in made.notes), "now run:", sep="\n")
    print(*(f"  {command}" for command in made.commands), sep="\n")
    return 0


def agent_status(given: argparse.Namespace) -> int:
    home = terms.home(given.home)
    if not home.bundle.exists():
        raise BadConfig(f"{home.path} belongs to no fleet yet", next="fleetfold join BUNDLE --app FOLDER")
    mine, state = bundle.load(home.bundle), status.load(home)
    if given.json:
        found = {"running": status.running(state), "device": mine.device, "fleet": mine.fleet, "state": state}
        print(msgspec.json.encode(found).decode())
        return 0
    chosen = terms.resolve({str(home.settings): terms.kept(home), "environment": terms.from_environment()})
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    print(status.screen(home, mine, chosen, state, time.monotonic(), width))
    return 0


def agent_csr(given: argparse.Namespace) -> int:
    out = Path(given.out)
    key = keys.request(given.device, out)
    print(f"request {out}: give it to the hub, `fleetfold enroll {given.device} --csr {out.name}`")
    print(f"key     {key}: keep it here, `fleetfold join BUNDLE --key {key}`")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="fleetfold", description="Commands of a device. --debug shows tracebacks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _join_parser(commands)
    agent = commands.add_parser("agent", help="look at the agent on this device").add_subparsers(
        required=True, metavar="COMMAND"
    )
    shown = _command(agent, "status", agent_status, "what the agent on this device does, and why",
                     "fleetfold agent status", "fleetfold agent status --json")  # fmt: skip
    shown.add_argument("--home", default="", metavar="FOLDER", help=_HOME)
    shown.add_argument("--json", action="store_true", help="print JSON")
    made = _command(agent, "csr", agent_csr, "make a key and a signing request, so that the key stays here",
                    "fleetfold agent csr press-7 --out press-7.csr")  # fmt: skip
    made.add_argument("device", metavar="DEVICE", help="the name that the hub enrolls it by")
    made.add_argument(
        "--out", required=True, metavar="FILE", help="the request; the key lies beside it, .key"
    )
    return parser


_HOME = "the device's folder (FLEETFOLD_AGENT_HOME, ~/.fleetfold-agent)"


def _join_parser(commands: Any) -> None:
    parser = _command(
        commands, "join", join, "take part in a fleet: wait for tasks, and do them",
        "fleetfold join press-7.bundle --app my-app",
        "fleetfold join press-7.bundle --app my-app --require charging,unmetered --daily-bytes 200MB",
        "fleetfold join press-7.bundle --app my-app --systemd",
        "fleetfold join claim.bundle --device press-8 --app my-app",
        "fleetfold join                     # goes on as it was told before",
    )  # fmt: skip
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="the file from fleetfold enroll")
    parser.add_argument("--home", default="", metavar="FOLDER", help=_HOME)
    parser.add_argument("--key", default="", metavar="FILE", help="its key, if the device made its own")
    parser.add_argument("--device", default="", metavar="NAME",
                        help="with a claim: the name that this device is to have")  # fmt: skip
    parser.add_argument("--systemd", nargs="?", const="", metavar="-",
                        help="write a unit for systemd instead, or print it (-)")  # fmt: skip
    for name in terms.NAMES:
        flag, help = "--" + name.replace("_", "-"), terms.meaning(name)
        if terms.is_switch(name):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help)
        elif name == "condition":
            parser.add_argument(flag, action="append", metavar="NAME=COMMAND", help=help)
        else:
            parser.add_argument(flag, metavar=name.upper(), help=help)
    parser.add_argument("--link", default=wiring.LINK, help=argparse.SUPPRESS)
    parser.add_argument("--transfer", default=wiring.TRANSFER, help=argparse.SUPPRESS)


def _command(commands: Any, name: str, command: Any, help: str, *examples: str) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples)
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.set_defaults(command=command, called=made.prog)
    return made
