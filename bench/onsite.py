"""A hub of its own for a benchmark: a folder, a real process with its broker, and runs that it drives.

enrolled ─▶ HOME/hub ─▶ begun: fleetfold hub ◀── ran: fleetfold run --hub ─▶ the rounds, from the ledger
"""

import os
import random
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fleetfold.bundle import Bundle
from fleetfold.device import keys
from fleetfold.hub import authority
from fleetfold.hub.enrol import enroll
from fleetfold.round.state import Phase, Round
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place

APP = Path(__file__).parent / "apps" / "add_one.py"
FLEETFOLD = (sys.executable, "-m", "fleetfold")
PATIENCE = 300.0
"""Seconds in which a hub has to start."""


def enrolled(home: Path, devices: int) -> list[Bundle]:
    """A hub's folder, and devices that belong, each by a signing request of the one key."""
    folder = wiring.folder(home)
    place = authority.Site(hosts=("127.0.0.1",), listen="127.0.0.1", mqtt=free_port(), door=free_port())
    authority.create(folder, place)
    key, request = keys.request("bench", home / "bench.csr").read_text(), (home / "bench.csr").read_text()
    records = wiring.records(home)
    bundles = [enroll(records, folder, f"d{n:05}", time.time(), request) for n in range(devices)]
    return [replace(bundle, key=key) for bundle in bundles]


def begun(stack: ExitStack, home: Path) -> "subprocess.Popen[bytes]":
    """The hub, as a person starts it; it ends with the stack."""
    place = home / "hub.log"
    with place.open("wb") as log:
        hub = subprocess.Popen([*FLEETFOLD, "hub"], env=at(home), stderr=log, stdin=subprocess.DEVNULL)
    stack.callback(end, hub)
    give_up = time.monotonic() + PATIENCE
    while "door https" not in place.read_text():
        if hub.poll() is not None or time.monotonic() > give_up:
            sys.exit(f"the hub did not start:\n{place.read_text()[-2000:]}")
        time.sleep(0.05)
    return hub


def broker(home: Path) -> int:
    """The process of the hub's broker."""
    return int((wiring.folder(home) / "broker.lock").read_text())


def ran(home: Path, rounds: int, cohort: int, available: int) -> list[Round]:
    """A run of that many rounds, by those who are there. → its rounds, all as they should be."""
    command = [
        *FLEETFOLD, "run", str(APP), "--hub", "--json", "--rounds", str(rounds), "--cohort", str(cohort),
        "--available", str(available), "--select", "random", "--where", "online == true",
    ]  # fmt: skip
    done = subprocess.run(command, env=at(home), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    newest = max((home / "runs").iterdir(), key=lambda place: int(place.name.rpartition("-")[2]))
    found = wiring.ledger(Place(home, newest.name)).rounds(newest.name)
    if any(len(round.arrived) != cohort or round.phase is not Phase.DONE for round in found):
        sys.exit(f"not all devices came into each round: {[round.reason for round in found]}")
    return found


def at(home: Path) -> dict[str, str]:
    """The environment in which that is the home of hub and runs."""
    return {**os.environ, "FLEETFOLD_HOME": str(home)}


def end(process: "subprocess.Popen[Any]") -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def memory_mb(pid: int, what: str) -> float:
    """`VmHWM`: at its highest; `VmRSS`: now."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 1024


def cpu(pid: int) -> float:
    """Seconds of processor that it has taken."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> None:
    note(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.partition(' ')[0]}")


def note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def free_port() -> int:
    """Below those that the system gives to whoever connects."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
