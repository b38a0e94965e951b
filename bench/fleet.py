"""What a fleet costs its hub: one real hub, one real Mosquitto, mutual TLS; training only adds one.

  onsite.py ─▶ fleetfold hub (its broker beside it) ◀─▶ fleet_devices.py × processes: real agents
            ─▶ fleetfold run --hub                         ─▶ rounds, from the ledger; tasks, from the devices

Devices and hub share the machine and its clock. The devices share one key pair, so that it need not be made
10,000 times; each has a certificate, a name and connections of its own.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench.onsite import begun, broker, cpu, end, enrolled, machine, memory_mb, note, ran
from fleetfold.bundle import Bundle
from fleetfold.round.state import Round

DEVICES = Path(__file__).parent / "fleet_devices.py"
MEMORY = Path("/dev/shm")
"""Where the devices' folders lie, where there is such: their disks are not what is measured."""
TEN = 10
"""Devices of the small cohort."""
SETTLED = 10.0
"""Seconds between the last that comes and the quiet."""
SHOWN = {
    "round_1000_s": ("seconds of a round of all devices", "30"),
    "hub_peak_mb": ("MB of the hub at its highest", "300"),
    "broker_peak_mb": ("MB of its broker at its highest", ""),
    "idle_core": ("of a core, hub and broker, while nothing happens", "0.01"),
    "task_p99_ms_10": ("ms from the invitation to the task in hand, p99, cohorts of ten", "100"),
    "task_p99_ms": ("the same, cohorts of all devices", "2000"),
    "publish_10000_s": ("seconds from the last upload to the new model, most are off", "5"),
    "connected_s": ("seconds until all were connected who came at once", ""),
    "enroll_ms": ("ms to enrol one device", ""),
}
"""Figure → what it is, and what it may be, with 1,000 devices and with 200 of 10,000 on two cores."""


class Figures(Struct, frozen=True, kw_only=True):
    devices: int  # all connected
    enrolled: int  # at the second hub, most of them off
    round_1000_s: float
    hub_peak_mb: float
    broker_peak_mb: float
    idle_core: float
    task_p99_ms_10: float
    task_p99_ms: float
    publish_10000_s: float
    connected_s: float
    enroll_ms: float


class Heard(Struct, frozen=True):
    """What the devices of a process tell at the end: when tasks were handed over and the last upload was
    done, by run and round; connections that were lost, and what was unavailable."""

    handed: dict[str, list[float]]
    uploaded: dict[str, float]
    lost: int
    unavailable: int


def fleet(
    *,
    devices: Annotated[int, Parameter(validator=Number(gte=1), help="devices that are connected")] = 1000,
    enrolled: Annotated[int, Parameter(help="devices that belong to the second hub's fleet")] = 10_000,
    cohort: Annotated[int, Parameter(help="of them are connected, all in each round")] = 200,
    rounds: Annotated[int, Parameter(validator=Number(gte=1), help="rounds, of all devices")] = 3,
    small: Annotated[int, Parameter(validator=Number(gte=1), help="rounds, of ten devices")] = 30,
    idle: Annotated[float, Parameter(help="seconds in which nothing happens")] = 60.0,
    processes: Annotated[int, Parameter(help="that the devices live in")] = 2,
    threads: Annotated[int, Parameter(help="of each, that work")] = 4,
    json: Annotated[bool, Parameter(help="print one JSON object", negative="")] = False,
) -> None:
    """Rounds, memory and idling of a hub with 1,000 devices, and of one with 200 there of 10,000.

    Medians over the rounds. A task's way begins with the invitation's round (`asked_at`) and ends when the
    device's loop hands the task over. The first round of each run is warming up, for tasks.
    """
    machine()
    with _fleet(devices, devices, processes, threads) as there:
        figures = there.figures(rounds, small, idle)
    with _fleet(enrolled, min(cohort, enrolled), processes, threads) as there:
        figures |= {"enrolled": enrolled} | there.figures_of_many(rounds)
    found = msgspec.convert(figures, Figures)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        Console(width=None if sys.stdout.isatty() else 110).print(_table(found))


class _Fleet:
    """A hub that runs, and its devices, all connected."""

    def __init__(self, home: Path, hub: int, crowds: list["subprocess.Popen[str]"], enrolling: float) -> None:
        self._home, self._pids, self._crowds = home, (hub, broker(home)), crowds
        self._enrolling = enrolling
        said = [_said(crowd) for crowd in crowds]
        self._connecting = max(float(each["connected"]) for each in said)
        self._devices = sum(int(each["devices"]) for each in said)
        note(f"{self._devices} devices are connected")

    def figures(self, rounds: int, small: int, idle: float) -> dict[str, float]:
        """Of a fleet that is there as a whole."""
        idling = self._idled(idle)
        large, ten = self._ran(rounds, self._devices), self._ran(small, min(TEN, self._devices))
        peaks = [memory_mb(pid, "VmHWM") for pid in self._pids]
        heard = self._heard()
        return {
            "devices": self._devices,
            "connected_s": self._connecting,
            "idle_core": idling,
            "round_1000_s": median(round.ended_at - round.opened_at for round in large),
            "task_p99_ms": _p99_ms(large, heard),
            "task_p99_ms_10": _p99_ms(ten, heard),
            "hub_peak_mb": peaks[0],
            "broker_peak_mb": peaks[1],
        }

    def figures_of_many(self, rounds: int) -> dict[str, float]:
        """Of a fleet of which most are off."""
        found = self._ran(rounds, self._devices)
        heard = self._heard()
        last = [max(each.uploaded.get(_place(round), 0.0) for each in heard) for round in found]
        after = [round.ended_at - at for round, at in zip(found, last, strict=True)]
        return {"enroll_ms": self._enrolling, "publish_10000_s": median(after)}

    def _idled(self, seconds: float) -> float:
        """Share of a core that hub and broker take while nobody has anything to do."""
        time.sleep(min(SETTLED, seconds))
        before, since = sum(map(cpu, self._pids)), time.monotonic()
        time.sleep(seconds)
        return (sum(map(cpu, self._pids)) - before) / (time.monotonic() - since)

    def _ran(self, rounds: int, cohort: int) -> list[Round]:
        note(f"{rounds} rounds of {cohort}")
        return ran(self._home, rounds, cohort, self._devices)

    def _heard(self) -> list[Heard]:
        """What the devices tell when they leave."""
        for crowd in self._crowds:
            assert crowd.stdin is not None
            crowd.stdin.close()
        found = [msgspec.convert(_said(crowd), Heard) for crowd in self._crowds]
        lost, tried = sum(each.lost for each in found), sum(each.unavailable for each in found)
        note(f"{lost} connections were lost; {tried} times something was unavailable")
        return found


@contextmanager
def _fleet(devices: int, connected: int, processes: int, threads: int) -> Iterator[_Fleet]:
    """A hub to which so many devices belong, and so many of them come as fast as they can."""
    memory = str(MEMORY) if MEMORY.is_dir() else None
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="fleetfold-bench-")))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="fleetfold-bench-", dir=memory)))
        note(f"{devices} devices are enrolled")
        since = time.monotonic()
        bundles = enrolled(home, devices)
        enrolling = 1000 * (time.monotonic() - since) / devices
        hub = begun(stack, home)
        shares = [bundles[:connected][number::processes] for number in range(processes)]
        crowds = [_crowd(stack, folder, n, share, threads) for n, share in enumerate(shares)]
        yield _Fleet(home, hub.pid, crowds, enrolling)


def _crowd(
    stack: ExitStack, folder: Path, number: int, bundles: list[Bundle], threads: int
) -> "subprocess.Popen[str]":
    share = folder / f"{number}.json"
    share.write_bytes(msgspec.json.encode(bundles))
    crowd = subprocess.Popen(
        [sys.executable, "-P", str(DEVICES), str(folder), str(share), str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stack.callback(end, crowd)
    return crowd


def _p99_ms(rounds: list[Round], heard: list[Heard]) -> float:
    """From the invitation to the task in hand, of all tasks of the rounds after the first."""
    ways = sorted(
        1000 * (at - round.asked_at)
        for round in rounds[1:] or rounds
        for each in heard
        for at in each.handed.get(_place(round), ())
    )
    return ways[-(-len(ways) * 99 // 100) - 1]


def _place(round: Round) -> str:
    return f"{round.run} {round.number}"


def _said(crowd: "subprocess.Popen[str]") -> dict[str, Any]:
    assert crowd.stdout is not None
    line = crowd.stdout.readline()
    if not line:
        sys.exit("the devices have died")
    return msgspec.json.decode(line, type=dict[str, Any])


def _table(figures: Figures) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for column in ("measured", "at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, (words, most) in SHOWN.items():
        table.add_row(words, f"{getattr(figures, name):.4g}", most)
    return table
