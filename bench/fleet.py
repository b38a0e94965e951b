"""What a fleet costs its hub: one real hub, one real Mosquitto, mutual TLS; training only adds one.

    site ─▶ fleetfold hub (its broker beside it) ◀─▶ fleet_devices.py × processes: real agents
         ─▶ fleetfold run --hub                        ─▶ rounds, from the ledger; tasks, from the devices

Devices and hub share the machine and its clock. The devices share one key pair, so that it need not be made
10,000 times; each has a certificate, a name and connections of its own.
"""

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from fleetfold.bundle import Bundle
from fleetfold.device import keys
from fleetfold.hub import authority
from fleetfold.hub.enrol import enroll
from fleetfold.round.state import Phase, Round
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place

HERE = Path(__file__).parent
APP = HERE / "apps" / "add_one.py"
MEMORY = Path("/dev/shm")
"""Where the devices' folders lie, where there is such: their disks are not what is measured."""
TEN = 10
"""Devices of the small cohort, and rounds of it: a hundred tasks."""
PATIENCE = 300.0
"""Seconds in which a hub has to start."""
SETTLED = 10.0
"""Seconds between the last that comes and the quiet."""
SHOWN = {
    "round_1000_s": ("seconds of a round of all devices", "30"),
    "hub_peak_mb": ("MB of the hub at its highest", "300"),
    "broker_peak_mb": ("MB of the broker at its highest", ""),
    "idle_core": ("of a core, hub and broker, while nothing happens", "0.01"),
    "task_p99_ms_10": ("ms from the invitation to the task in hand, p99 of cohorts of ten", "100"),
    "task_p99_ms": ("the same, of cohorts of all devices", "2000"),
    "publish_10000_s": ("seconds from the last upload to the model, most devices off", "5"),
    "connected_s": ("seconds until all were connected who came at once", ""),
    "enroll_ms": ("ms to enrol one device", ""),
}
"""Figure → what it is, and what it may be, of 1,000 devices and of 200 of 10,000 on two cores."""


class Figures(Struct, frozen=True, kw_only=True):
    """Seconds, milliseconds and megabytes; `devices` connected, and `enrolled` at the second hub."""

    devices: int
    enrolled: int
    connected_s: float  # until all devices were connected, subscribed and had said so, at once
    idle_core: float  # of one core: hub and broker, while nothing happens
    round_1000_s: float  # of all devices: from its opening to its new model
    task_p99_ms: float  # from the invitation to the task in the device's hand
    task_p99_ms_10: float  # the same, of cohorts of ten
    hub_peak_mb: float
    broker_peak_mb: float
    enroll_ms: float  # one device
    publish_10000_s: float  # of 200 devices, the others are off: from the last upload to the new model


class Heard(Struct, frozen=True):
    """What the devices tell at the end."""

    handed: dict[str, list[float]]
    uploaded: dict[str, float]
    lost: int
    unavailable: int


def fleet(
    *,
    devices: Annotated[int, Parameter(validator=Number(gte=TEN), help="devices that are connected")] = 1000,
    enrolled: Annotated[int, Parameter(help="devices that belong to the second hub's fleet")] = 10_000,
    cohort: Annotated[int, Parameter(help="of them are connected, all in each round")] = 200,
    rounds: Annotated[int, Parameter(validator=Number(gte=1), help="rounds of each kind")] = 3,
    idle: Annotated[float, Parameter(help="seconds in which nothing happens")] = 60.0,
    processes: Annotated[int, Parameter(help="that the devices live in")] = 2,
    threads: Annotated[int, Parameter(help="of each, that work")] = 4,
    json: Annotated[bool, Parameter(help="print one JSON object", negative="")] = False,
) -> None:
    """Rounds, memory and idling of a fleet of 1,000 at one hub, and of 200 where 10,000 belong.

    Medians over the rounds. A task's way is measured from the moment of the invitation, by the hub's clock,
    which is the machine's, to the moment that the device's loop hands it over.
    """
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    with _fleet(devices, devices, processes, threads) as there:
        figures = there.figures(idle, rounds)
    with _fleet(enrolled, min(cohort, enrolled), processes, threads) as there:
        figures |= {"enrolled": enrolled, **there.figures_of_many(rounds)}
    found = msgspec.convert(figures, Figures)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        Console().print(_table(found))


class _Fleet:
    """A hub that runs, and its devices, all connected."""

    def __init__(self, home: Path, connected: list[str], enrolling: float) -> None:
        self._home, self._devices, self._enrolling = home, connected, enrolling
        self._crowds: list[subprocess.Popen[str]] = []
        self._connecting = 0.0

    def figures(self, idle: float, rounds: int) -> dict[str, float]:
        """Of a fleet that is connected as a whole."""
        found: dict[str, float] = {"devices": len(self._devices), "connected_s": self._connecting}
        _note(f"{len(self._devices)} devices are connected")
        found["idle_core"] = self._idled(idle)
        large = self._run(len(self._devices), rounds)
        small = self._run(min(TEN, len(self._devices)), max(TEN, rounds))
        pids = self._pids()
        heard = self._heard()
        return found | {
            "round_1000_s": median(round.ended_at - round.asked_at for round in large),
            "task_p99_ms": _p99_ms(large, heard),
            "task_p99_ms_10": _p99_ms(small, heard),
            "hub_peak_mb": _peak_mb(pids[0]),
            "broker_peak_mb": _peak_mb(pids[1]),
        }

    def figures_of_many(self, rounds: int) -> dict[str, float]:
        """Of a fleet of which most are off."""
        rows = self._run(len(self._devices), rounds)
        heard = self._heard()
        after = (round.ended_at - max(h.uploaded.get(_where(round), 0.0) for h in heard) for round in rows)
        return {"enroll_ms": self._enrolling, "publish_10000_s": median(after)}

    # What happens to it

    def begin(self, stack: ExitStack) -> None:
        """The hub, as a person starts it."""
        log = stack.enter_context((self._home / "log").open("wb"))
        environment = {**os.environ, "FLEETFOLD_HOME": str(self._home)}
        self._hub = subprocess.Popen(
            [sys.executable, "-m", "fleetfold", "hub"], env=environment, stderr=log, stdin=subprocess.DEVNULL
        )
        stack.callback(_end, self._hub)
        self._await(lambda: "door https" in (self._home / "log").read_text())

    def join(self, stack: ExitStack, bundles: list[Bundle], processes: int, threads: int) -> None:
        """All devices, as fast as they can."""
        memory = str(MEMORY) if MEMORY.is_dir() else None
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fleetfold-bench-", dir=memory)))
        for number in range(processes):
            share = folder / f"{number}.json"
            share.write_bytes(msgspec.json.encode(bundles[number::processes]))
            crowd = subprocess.Popen(
                [sys.executable, "-P", str(HERE / "fleet_devices.py"), str(folder), str(share), str(threads)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(_end, crowd)
            self._crowds.append(crowd)
        self._connecting = max(float(_said(crowd)["connected"]) for crowd in self._crowds)

    def _idled(self, seconds: float) -> float:
        """Share of a core that hub and broker take while nobody has anything to do."""
        time.sleep(min(SETTLED, seconds))
        pids = self._pids()
        before, since = sum(map(_cpu, pids)), time.monotonic()
        time.sleep(seconds)
        return (sum(map(_cpu, pids)) - before) / (time.monotonic() - since)

    def _run(self, cohort: int, rounds: int) -> list[Round]:
        """A run of that many rounds, by whoever is connected. → its rounds."""
        _note(f"{rounds} rounds of {cohort}")
        command = [
            sys.executable, "-m", "fleetfold", "run", str(APP), "--hub", "--json",
            "--rounds", str(rounds), "--cohort", str(cohort), "--available", str(len(self._devices)),
            "--select", "random", "--where", "online == true",
        ]  # fmt: skip
        environment = {**os.environ, "FLEETFOLD_HOME": str(self._home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        place = Place(self._home, max((self._home / "runs").iterdir(), key=lambda p: p.stat().st_ctime).name)
        found = wiring.ledger(place).rounds(place.run)
        if any(len(round.arrived) != cohort or round.phase is not Phase.DONE for round in found):
            sys.exit(f"not all devices came into each round: {[round.reason for round in found]}")
        return found

    def _heard(self) -> list[Heard]:
        """What the devices tell when they leave."""
        for crowd in self._crowds:
            assert crowd.stdin is not None
            crowd.stdin.close()
        found = [msgspec.convert(_said(crowd), Heard) for crowd in self._crowds]
        _note(f"connections lost {sum(h.lost for h in found)}, tries {sum(h.unavailable for h in found)}")
        return found

    def _pids(self) -> tuple[int, int]:
        return self._hub.pid, int((self._home / "hub" / "broker.lock").read_text())

    def _await(self, true: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not true():
            if self._hub.poll() is not None or time.monotonic() > give_up:
                sys.exit(f"the hub did not start:\n{(self._home / 'log').read_text()[-2000:]}")
            time.sleep(0.05)


@contextmanager
def _fleet(enrolled: int, connected: int, processes: int, threads: int) -> Iterator[_Fleet]:
    """`enrolled` belong to it; `connected` of them are there."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="fleetfold-bench-")))
        _note(f"{enrolled} devices are enrolled")
        since = time.monotonic()
        bundles = _enrolled(home, enrolled)[:connected]
        spent = 1000 * (time.monotonic() - since) / enrolled
        fleet = _Fleet(home, [bundle.device for bundle in bundles], spent)
        fleet.begin(stack)
        fleet.join(stack, bundles, processes, threads)
        yield fleet


def _enrolled(home: Path, devices: int) -> list[Bundle]:
    """A hub's folder, and devices that belong, each by a signing request of the one key."""
    folder = wiring.folder(home)
    place = authority.Site(hosts=("127.0.0.1",), listen="127.0.0.1", mqtt=_free_port(), door=_free_port())
    authority.create(folder, place)
    key, request = keys.request("bench", home / "bench.csr").read_text(), (home / "bench.csr").read_text()
    records = wiring.records(home)
    bundles = [enroll(records, folder, f"d{n:05}", time.time(), request) for n in range(devices)]
    return [replace(bundle, key=key) for bundle in bundles]


def _p99_ms(rounds: list[Round], heard: list[Heard]) -> float:
    """From the invitation to the task in hand, of all tasks of all rounds but the first."""
    ways = [
        1000 * (at - round.asked_at)
        for round in rounds[1:] or rounds
        for each in heard
        for at in each.handed.get(_where(round), ())
    ]
    return sorted(ways)[-(-len(ways) * 99 // 100) - 1]


def _where(round: Round) -> str:
    return f"{round.run} {round.number}"


def _said(crowd: "subprocess.Popen[str]") -> dict[str, Any]:
    assert crowd.stdout is not None
    line = crowd.stdout.readline()
    if not line:
        sys.exit("the devices have died")
    return msgspec.json.decode(line, type=dict[str, Any])


def _end(process: "subprocess.Popen[Any]") -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cpu(pid: int) -> float:
    """Seconds of processor that it has taken."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def _free_port() -> int:
    """Below those that the system gives to whoever connects."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _table(figures: Figures) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("at most", justify="right", no_wrap=True)
    for name, (words, most) in SHOWN.items():
        table.add_row(words, f"{getattr(figures, name):.4g}", most)
    return table
