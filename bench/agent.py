"""What a device pays for waiting: until it is there, its memory, and what it has to have installed.

    fleetfold join ─▶ first line ─▶ connected, present in the hub's registry ─▶ a round ─▶ at rest
    └──────────────── start_s ────────────────────────────────────────┘        └ memory of both processes

A real hub with its Mosquitto, on this machine. The app is bench/apps/add_one.py: numpy, no PyTorch.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import requires
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from bench.onsite import APP, FLEETFOLD, begun, enrolled, machine, memory_mb, note, ran
from fleetfold.bundle import save
from fleetfold.device.terms import Terms
from fleetfold.ledger import Ledger
from fleetfold.wiring import hub as wiring

HEAVY = ("torch", "obstore", "cyclopts", "rich", "aiohttp", "cryptography", "numpy")
"""What the waiting process must not import."""
PATIENCE = 60.0
SHOWN = {
    "start_s": ("seconds from its start until the hub knows that it is there", "0.5"),
    "first_line_s": ("until it says its first line", ""),
    "first_join_s": ("until it is there when it joins for the first time, and tries its app", ""),
    "resident_mb": ("MB of the waiting process at rest, after a round", "45"),
    "worker_mb": ("MB of its worker, while that is kept warm", ""),
    "worker_warm_s": ("seconds for which a worker is kept with nothing to do", ""),
    "dependencies": ("packages that a device needs", "4"),
}
"""Figure → what it is, and what it may be."""


class Figures(Struct, frozen=True, kw_only=True):
    """`heavy`: packages of those that the waiting process must not import, and does."""

    start_s: float
    first_line_s: float
    first_join_s: float
    resident_mb: float
    worker_mb: float
    worker_warm_s: float
    dependencies: int
    heavy: list[str]


def agent(
    *,
    starts: Annotated[int, Parameter(validator=Number(gte=1), help="starts; medians are shown")] = 9,
    rest: Annotated[float, Parameter(help="seconds of rest before memory is measured")] = 60.0,
    json: Annotated[bool, Parameter(help="print one JSON object", negative="")] = False,
) -> None:
    """Start, memory and dependencies of the process that waits on a device (`fleetfold join`)."""
    machine()
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="fleetfold-bench-")))
        [bundle] = enrolled(home, 1)
        save(bundle, home / "d.bundle")
        begun(stack, home)
        device = _Device(home)
        join = [str(home / "d.bundle"), "--app", str(APP)]
        found = _measured(device, join, starts, rest)
    if json:
        print(msgspec.json.encode(found).decode())
    else:
        Console(width=None if sys.stdout.isatty() else 110).print(_table(found))
    if found.heavy:
        sys.exit(f"the waiting process imports {', '.join(found.heavy)}")


class _Device:
    """One device, as its hub's registry has it, and the process that waits on it."""

    def __init__(self, home: Path) -> None:
        self.home, self.said = home, home / "device.errors"
        self._registry = Ledger(wiring.records(home))

    def start(self, *arguments: str, python: tuple[str, ...] = ()) -> tuple["subprocess.Popen[bytes]", float]:
        """→ the process, and seconds until its first line."""
        program, *fleetfold = FLEETFOLD
        command = [program, *python, *fleetfold, "join", *arguments, "--home", str(self.home / "agent")]
        since = time.monotonic()
        with self.said.open("wb") as said:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        return process, time.monotonic() - since

    def timed(self, *arguments: str) -> tuple["subprocess.Popen[bytes]", float, float]:
        """→ the process, seconds until its first line, and until the hub knows that it is there."""
        since = time.monotonic()
        process, line = self.start(*arguments)
        self.until(online=True)
        return process, line, time.monotonic() - since

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        process.terminate()
        process.communicate()
        self.until(online=False)

    def until(self, *, online: bool, available: bool | None = None) -> None:
        give_up = time.monotonic() + PATIENCE
        while True:
            says = self._registry.fleet()[0].says
            if says and says.online == online and (available is None or says.available == available):
                return
            if time.monotonic() > give_up:
                sys.exit(f"the hub does not say that the device is {'there' if online else 'gone'}")
            time.sleep(0.002)


def _measured(device: _Device, join: list[str], starts: int, rest: float) -> Figures:
    process, _, first = device.timed(*join)
    device.until(online=True, available=True)
    device.stop(process)
    note(f"{starts} starts")
    lines, seconds = list[float](), list[float]()
    for _ in range(starts):
        process, line, there = device.timed()
        device.stop(process)
        lines.append(line)
        seconds.append(there)
    process, _ = device.start()
    ran(device.home, rounds=1, cohort=1, available=1)
    note(f"a round, and {rest:.0f} s of rest")
    time.sleep(rest)
    [worker] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    memory = [memory_mb(pid, "VmRSS") for pid in (process.pid, int(worker))]
    device.stop(process)
    return Figures(
        start_s=median(seconds), first_line_s=median(lines), first_join_s=first, resident_mb=memory[0],
        worker_mb=memory[1], worker_warm_s=Terms().keep_warm, dependencies=_dependencies(),
        heavy=_heavy(device),
    )  # fmt: skip


def _dependencies() -> int:
    """What installing fleetfold without any extra brings, beside what that needs itself."""
    return sum("extra ==" not in line for line in requires("fleetfold") or ())


def _heavy(device: _Device) -> list[str]:
    """Told by Python itself, in a process that waits as the others do."""
    process, _ = device.start(python=("-X", "importtime"))
    device.until(online=True)
    device.stop(process)
    lines = (line.rpartition("|")[2].strip() for line in device.said.read_text().splitlines())
    imported = {line.partition(".")[0] for line in lines}
    if "fleetfold" not in imported:
        sys.exit("Python does not tell what the waiting process imports")
    return [name for name in HEAVY if name in imported]


def _table(figures: Figures) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for column in ("measured", "at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, (words, most) in SHOWN.items():
        table.add_row(words, f"{getattr(figures, name):.3g}", most)
    return table
