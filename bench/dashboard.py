"""What the dashboard costs: who watches, and the run that is watched.

a ledger of 10,000 devices and 500 rounds ─▶ pages (bytes, seconds), the server (CPU, memory)
  the same in Chromium, where there is one ─▶ first paint, everything there, memory of the tab
a run of its own, with a page on it and without, in turn ─▶ how much slower its rounds are
"""

import http.client
import json as text
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from bench.ledgers import Written
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

APP = Path(__file__).parent / "apps" / "add_one.py"
TICK = os.sysconf("SC_CLK_TCK")
WINDOW, POLL, FIRST = 4.0, 1.0, 20
"""Seconds for which a run is watched or left alone, between a page's polls, and the round from which on."""


def dashboard(
    *,
    devices: Annotated[int, Parameter(help="of the large fleet")] = 10_000,
    rounds: Annotated[int, Parameter(help="of its run")] = 500,
    cohort: Annotated[int, Parameter(help="devices of each of them; the last one, open, has all")] = 100,
    pairs: Annotated[int, Parameter(help="times that a run is left alone and then watched")] = 30,
    small: Annotated[int, Parameter(help="devices of that run, all in each round")] = 100,
    json: Annotated[bool, Parameter(help="one JSON object a figure", negative="")] = False,
) -> None:
    """Pages, first paint and memory with a large fleet, and what being watched costs a run."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fleetfold-bench-") as home:
        written = Written(Path(home), "large", devices=devices, cohort=cohort, rounds=rounds, elsewhere=True)
        written.rounds(rounds - 1)
        written.open(devices, now=time.time())
        written.arrive(devices // 3)
        with _serving(home) as (process, port):
            found |= _pages(port, process, written)
        if find_spec("playwright") and shutil.which("chromium"):
            with _serving(home) as (process, port):
                found |= _browser(port)
        else:
            print("no Chromium, or no Playwright: make test-browser installs both", file=sys.stderr)
    if pairs:
        found |= _slowed(pairs, small)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(f"{devices:,} devices, {rounds} rounds", no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    for what, figure in found.items():
        if json:
            print(text.dumps({"what": what, "figure": figure}))
        table.add_row(what, figure)
    if not json:
        Console(highlight=False).print(table)


@contextmanager
def _serving(home: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    words = [sys.executable, "-m", "fleetfold", "dashboard", "--port", "0"]
    environment = {**os.environ, "FLEETFOLD_HOME": home}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    address = re.search(r":(\d+)/", process.stdout.readline())
    assert address is not None
    try:
        yield process, int(address[1])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


class _Page:
    """What a page asks, without the page."""

    def __init__(self, port: int, run: str = "latest") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._run, self.cursor, self.bytes, self.longest = run, "", 0, 0

    def leave(self) -> None:
        """The next poll comes by a new connection: servers do not keep one for ever."""
        self._connection.close()

    def poll(self) -> dict[str, Any]:
        self._connection.request("GET", f"/api/poll?run={self._run}&cursor={self.cursor}")
        body = self._connection.getresponse().read()
        told: dict[str, Any] = text.loads(body)
        self.cursor, self.bytes, self.longest = told["cursor"], len(body), max(self.longest, len(body))
        return told


def _pages(port: int, process: subprocess.Popen[str], written: Written) -> dict[str, str]:
    page, began, polls, first = _Page(port), time.monotonic(), 0, 0.0
    more = True
    while more:
        told = page.poll()
        polls, first = polls + 1, first or time.monotonic() - began
        more = told["more"] or told["run"]["todo"] > 1
        time.sleep(0 if told["more"] else 0.05)
    everything, used = time.monotonic() - began, _cpu(process.pid)
    longest, page.longest = page.longest, 0
    written.arrive(100)
    while not told.get("lanes"):
        time.sleep(0.2)
        told = page.poll()
    delta = page.bytes
    for _ in range(10):  # nothing happens any more
        time.sleep(0.8)
        page.poll()
    idle = (_cpu(process.pid) - used) / 10
    return {
        "longest page": f"{longest / 1000:.1f} kB",
        "first page": f"{first:.2f} s",
        "all pages": f"{polls}, {everything:.1f} s",
        "page after 100 arrivals": f"{delta / 1000:.1f} kB",
        "page when nothing has changed": f"{page.bytes / 1000:.1f} kB",
        "the server: CPU until everything is told": f"{used:.1f} s",
        "the server: CPU for each poll after that": f"{1000 * idle:.0f} ms",
        "the server: memory": f"{_memory(process.pid) / 1e6:.0f} MB",
    }


def _browser(port: int) -> dict[str, str]:
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1440, "height": 1000})
        page.goto("about:blank")
        before = _renderers()
        began = time.monotonic()
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("() => !document.getElementById('all').hidden", polling=20)
        shown = time.monotonic() - began
        paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime")
        done = "() => document.getElementById('live').textContent === 'live'"
        page.wait_for_function(done, polling=50, timeout=120_000)
        everything = time.monotonic() - began
        page.wait_for_timeout(3000)
        tab = max(_private(pid) for pid in _renderers() | before)
        chromium.close()
    return {
        "Chromium: first paint": f"{paint / 1000:.2f} s",
        "Chromium: the run is on the page": f"{shown:.2f} s",
        "Chromium: everything is on the page": f"{everything:.1f} s",
        "Chromium: memory of the tab's process": f"{tab / 1e6:.0f} MB",
    }


def _slowed(pairs: int, devices: int) -> dict[str, str]:
    """One run, which a page watches for WINDOW seconds and then leaves alone for as long, again and again:
    what else the machine does meets both alike, and each window is compared with the one beside it."""
    with tempfile.TemporaryDirectory(prefix="fleetfold-bench-") as home:
        words = ["run", str(APP), "--devices", str(devices), "--rounds", "100000", "--workers", "1", "--json"]
        environment = {**os.environ, "FLEETFOLD_HOME": home}
        with _serving(home) as (server, port), _running([*words, "--evaluate", "off"], environment) as run:
            place, page = Place(Path(home), "add_one-1"), _Page(port)
            while not (place.folder / "workers.log").exists():  # or its name would be taken
                _lives(run)
            ledger = wiring.ledger(place)
            while (found := ledger.run("add_one-1")) is None or found[0].round < FIRST:
                _lives(run)
            switched, used = [time.time()], _cpu(server.pid)
            for window in range(2 * pairs):
                while time.time() < switched[-1] + WINDOW:
                    if window % 2:
                        page.poll()
                    time.sleep(POLL)
                switched.append(time.time())
                page.leave()
            used = (_cpu(server.pid) - used) / (pairs * WINDOW)
        openings = [round.opened_at for round in ledger.rounds("add_one-1")]
    took = [(before, after - before) for before, after in pairwise(openings)]
    windows = [
        median(seconds for began, seconds in took if start <= began and began + seconds <= stop)
        for start, stop in pairwise(switched)
    ]
    ratios = sorted(watched / plain - 1 for plain, watched in zip(windows[::2], windows[1::2], strict=True))
    low, high = ratios[pairs // 4], ratios[-1 - pairs // 4]
    return {
        f"a round of {devices} devices, unwatched": f"{1000 * median(windows[::2]):.1f} ms",
        "the same, watched": f"{1000 * median(windows[1::2]):.1f} ms",
        f"slower by, median of {pairs} pairs": f"{100 * median(ratios):+.1f} %",
        "half of the pairs lie between": f"{100 * low:+.1f} and {100 * high:+.1f} %",
        "the server's CPU meanwhile": f"{100 * used:.1f} % of one core",
    }


@contextmanager
def _running(words: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "fleetfold", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _lives(process: subprocess.Popen[bytes]) -> None:
    """Let a moment pass; leave if nothing more can come."""
    time.sleep(0.1)
    if process.poll() is not None:
        sys.exit(f"the run ended with code {process.returncode}")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _memory(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _renderers() -> set[int]:
    """Processes of Chromium that draw a page."""
    found = set[int]()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"--type=renderer" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def _private(pid: int) -> int:
    """Bytes that it alone has."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(kb) for kb in re.findall(r"Private_(?:Clean|Dirty):\s+(\d+)", rollup)) * 1024
