"""Whether the device may work now: on a charger, on a connection that costs nothing, with nobody using it.

    /sys, /proc, NetworkManager, the owner's own command ─▶ readings ─▶ Condition(holds, said)

What cannot be told holds, and says so: a device without a battery is charging. FLEETFOLD_SYS is another
root of the files that are read.
"""

import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

BUSY_LOAD = 0.3
"""Load per core, our own work not counted, from which on a device is not idle."""
QUIET = 60.0
"""Seconds without a key pressed after which nobody is there."""
MINUTE = 60.0
TIMEOUT = 10.0
"""Seconds that a command has to answer."""


class Condition(Struct, frozen=True):
    name: str
    holds: bool
    said: str  # with the measured value: why it holds, or why not


class Power(Struct, frozen=True):
    battery: float | None = None  # of 1; None: there is none, or it does not say
    status: str = ""  # of the battery, as the kernel has it
    mains: bool | None = None  # None: nothing that could tell

    @property
    def charging(self) -> bool | None:
        """None: it cannot be told."""
        if self.mains:
            return True
        if self.status in ("", "Unknown"):
            return None
        return self.status != "Discharging"


class Network(Struct, frozen=True):
    metered: bool | None = None
    said: str = ""


def waiting_for(conditions: Sequence[Condition]) -> str:
    """Why there is no work now; "": nothing is in the way."""
    missing = [f"{c.name} is required, {c.said}" for c in conditions if not c.holds]
    return "waiting: " + "; ".join(missing) if missing else ""


# What follows from the readings


def charging(power: Power) -> Condition:
    level = "" if power.battery is None else f" at {power.battery:.0%}"
    if power.mains:
        return Condition("charging", True, f"mains power{level and ', battery'}{level}")
    if not power.status:
        return Condition("charging", True, "there is no battery")
    if power.charging is None:
        return Condition("charging", True, f"unknown, so it holds: the battery says nothing{level}")
    return Condition("charging", bool(power.charging), f"battery is {power.status.lower()}{level}")


def unmetered(network: Network) -> Condition:
    if network.metered is None:
        return Condition("unmetered", True, f"unknown, so it holds: {network.said}")
    return Condition("unmetered", not network.metered, network.said)


def idle(load: float | None, own: float, cores: int, since_input: float | None) -> Condition:
    """load: the kernel's average over a minute, of which `own` is ours."""
    if since_input is not None and 0 <= since_input < QUIET:
        return Condition("idle", False, f"somebody typed {since_input:.0f} s ago")
    if load is None:
        return Condition("idle", True, "unknown, so it holds: no load average")
    share = max(0.0, load - own) / cores
    return Condition("idle", share < BUSY_LOAD, f"load is {share:.2f} a core, idle is below {BUSY_LOAD}")


class OwnLoad:
    """Our own part of the kernel's load average: CPU time of our work, smoothed over the same minute."""

    def __init__(self) -> None:
        self.value, self._cpu, self._at = 0.0, 0.0, 0.0

    def add(self, cpu: float, now: float) -> None:
        """cpu: seconds that our work has taken so far; less than before: it is another process now."""
        passed = now - self._at
        if passed <= 0:
            return
        running = max(0.0, cpu - self._cpu) / passed
        self.value += (running - self.value) * (1 - math.exp(-passed / MINUTE))
        self._cpu, self._at = cpu, now


# The readings


def root() -> Path:
    return Path(os.environ.get("FLEETFOLD_SYS") or "/")


def power(root: Path) -> Power:
    """Of the machine itself: batteries of mice and the like say that their scope is a device."""
    level, status, mains = None, "", None
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        if _line(supply / "scope") == "Device":
            continue
        if _line(supply / "type") == "Battery":
            status = _line(supply / "status") or "Unknown"
            capacity = _line(supply / "capacity")
            level = min(1.0, int(capacity) / 100) if capacity.isdigit() else level
        elif online := _line(supply / "online"):
            mains = bool(mains) or online != "0"
    return Power(level, status, mains)


def network(root: Path) -> Network:
    """By NetworkManager where it runs, else by the kind of interface that the default route takes."""
    interface = _default_interface(root)
    if not interface:
        return Network(None, "no default route")
    said = _asked("nmcli", "-t", "-f", "GENERAL.METERED", "device", "show", interface)
    word = said.partition(":")[2].strip()
    if word and not word.startswith("unknown"):
        metered = word.startswith("yes")
        return Network(metered, f"{interface} is {'' if metered else 'not '}metered, NetworkManager says")
    mobile = interface.startswith(("wwan", "ppp", "rmnet", "wwp"))
    return Network(mobile, f"{interface} is {'a mobile' if mobile else 'no mobile'} connection")


def load(root: Path) -> float | None:
    first = _line(root / "proc/loadavg").partition(" ")[0]
    try:
        return float(first)
    except ValueError:
        return None


def since_input(root: Path, now: float) -> float | None:
    """Seconds since a terminal was read from; `now` by the clock of the file system."""
    times = []
    for place in [*(root / "dev/pts").glob("[0-9]*"), *(root / "dev").glob("tty[1-9]")]:
        try:
            times.append(place.stat().st_atime)
        except OSError:
            continue
    return now - max(times) if times else None


def own(name: str, command: str) -> Condition:
    """The owner's command holds by its exit code; its last line says why."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Condition(name, False, f"its command failed: {type(error).__name__}")
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return Condition(name, done.returncode == 0, (lines or [f"exit code {done.returncode}"])[-1][:200])


def read(
    required: Sequence[str], commands: Mapping[str, str], root: Path, own_load: float, now: float
) -> list[Condition]:
    """Each required condition as it is now."""
    found = []
    for name in required:
        if name in commands:
            found.append(own(name, commands[name]))
        elif name == "charging":
            found.append(charging(power(root)))
        elif name == "unmetered":
            found.append(unmetered(network(root)))
        else:
            found.append(idle(load(root), own_load, os.cpu_count() or 1, since_input(root, now)))
    return found


def memory(root: Path) -> int | None:
    """Bytes that the machine has."""
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _default_interface(root: Path) -> str:
    for line in _text(root / "proc/net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000":
            return words[0]
    for line in _text(root / "proc/net/ipv6_route").splitlines():
        words = line.split()
        if len(words) > 9 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            return words[9]
    return ""


def _asked(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _line(path: Path) -> str:
    return _text(path).strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
