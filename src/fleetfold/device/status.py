"""`fleetfold agent status`: in one screen what a device's agent does, and why.

    supervisor ─▶ HOME/state.json ─▶ screen        what lies in folders is counted when it is asked for

Times in the file are seconds since the boot: a clock that jumps changes no age.
"""

import os
import ssl
import textwrap
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from fleetfold.bundle import Bundle
from fleetfold.device.conditions import Condition
from fleetfold.device.terms import Home, Terms
from fleetfold.settings import size
from fleetfold.wiring.device import replace_file


class Doing(Struct, frozen=True):
    """A piece of work: a task, or a command."""

    what: str
    since: float
    step: str = "waiting"
    step_since: float = 0.0
    reason: str = ""
    done: int = 0
    total: int = 0


class Told(Struct, frozen=True):
    """An answer that was given."""

    at: float
    what: str
    state: str
    reason: str = ""


class State(Struct, frozen=True, kw_only=True):
    pid: int
    born: str  # of that process, as the kernel counts: another one may get its number
    version: str
    started: float
    fleet: str
    device: str
    broker: str
    connected: bool
    since: float  # connected or not
    why: str = ""  # it is not connected
    worker: int | None = None  # its process
    doing: tuple[Doing, ...] = ()  # the one at work first
    conditions: tuple[Condition, ...] = ()
    answers: tuple[Told, ...] = ()
    used: int = 0  # bytes of today
    terms: Terms = Terms()


def born(pid: int) -> str:
    """When a process began, in the kernel's ticks; "": there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Ledge:
    """Where the supervisor leaves its state, whenever it has changed."""

    def __init__(self, home: Home) -> None:
        self._home, self._last = home, b""

    def leave(self, state: State) -> None:
        text = msgspec.json.encode(state)
        if text != self._last:
            replace_file(self._home.state, text, durable=False)
            self._last = text


def load(home: Home) -> State | None:
    try:
        return msgspec.json.decode(home.state.read_bytes(), type=State)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def running(state: State | None) -> bool:
    return state is not None and state.born != "" and born(state.pid) == state.born


def identity(certificate: str) -> tuple[str, str]:
    """(name, credential id) of a certificate: the last CN and serialNumber in it, which are its subject's."""
    try:
        der = ssl.PEM_cert_to_DER_cert(certificate)
    except ValueError:
        return "", ""

    def last(oid: bytes) -> str:
        at = der.rfind(b"\x06\x03" + oid)
        if at < 0 or at + 7 > len(der):
            return ""
        return der[at + 7 : at + 7 + der[at + 6]].decode(errors="replace")

    return last(b"\x55\x04\x03"), last(b"\x55\x04\x05")


def screen(
    home: Home, bundle: Bundle, terms: Terms, state: State | None, now: float, width: int = 10_000
) -> str:
    """now: seconds since the boot."""
    alive = state is not None and running(state)
    lines = [_who(home, bundle, state if alive else None, now)]
    if alive and state is not None:
        lines += [_link(state, now), *_work(state, now)]
        lines += [_line(c.name, f"{'yes' if c.holds else 'NO'}: {c.said}") for c in state.conditions]
        lines += _answers(state, now)
        lines.append(_line("today", f"{size(state.used)} moved" + _of(state.used, state.terms.daily_bytes)))
        lines.append(_line("memory", _memory(state)))
    lines += [_line("models", _files(home.cache)), _line("spool", _files(home.spool))]
    name, id = identity(bundle.certificate)
    lines.append(_line("identity", f"{name or '?'}, credential {id or '?'}"))
    lines.append(_line("app", terms.app or "none: fleetfold join --app FOLDER"))
    lines.append(_line("home", str(home.path)))
    return "\n".join(_wrapped(line, width) for line in lines)


def _wrapped(line: str, width: int) -> str:
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * 13)) if len(line) > width else line


def _who(home: Home, bundle: Bundle, state: State | None, now: float) -> str:
    who = f"{bundle.device} of fleet {bundle.fleet}"
    if state is not None:
        return f"{who}: running for {ago(now - state.started)}, process {state.pid}"
    try:
        seen = time.strftime("%Y-%m-%d %H:%M", time.localtime(home.state.stat().st_mtime))
        return f"{who}: not running, last seen {seen}\n  next: fleetfold join"
    except OSError:
        return f"{who}: has never run\n  next: fleetfold join"


def _link(state: State, now: float) -> str:
    since = ago(now - state.since)
    if state.connected:
        return _line("link", f"connected to {state.broker} for {since}")
    return _line("link", f"not connected to {state.broker} for {since}" + (state.why and f": {state.why}"))


def _work(state: State, now: float) -> list[str]:
    if not state.doing:
        return [_line("doing", "nothing: there is no task" if state.connected else "nothing: not connected")]
    lines = []
    for label, doing in zip(["doing"] + ["next"] * len(state.doing), state.doing, strict=False):
        share = f", {size(doing.done)} of {size(doing.total)}" if doing.total else ""
        lines.append(_line(label, f"{doing.what}, taken {ago(now - doing.since)} ago"))
        said = doing.reason or doing.step
        lines.append(_line("", f"{said}{share}, for {ago(now - doing.step_since)}"))
    return lines


def _answers(state: State, now: float) -> list[str]:
    return [
        _line("answered" if k == 0 else "", f"{ago(now - told.at)} ago: {told.what} {told.state}" + (
            told.reason and f": {told.reason}"))
        for k, told in enumerate(reversed(state.answers))
    ]  # fmt: skip


def _memory(state: State) -> str:
    mine = resident(state.pid)
    worker = f", its worker {size(resident(state.worker))}" if state.worker else ", no worker"
    limit = f", of at most {size(state.terms.memory)}" if state.terms.memory and state.worker else ""
    return f"agent {size(mine)}{worker}{limit}"


def resident(pid: int) -> int:
    """Bytes of a process that lie in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _files(folder: Path) -> str:
    try:
        sizes = [path.stat().st_size for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        sizes = []
    return f"{len(sizes)} file{'' if len(sizes) == 1 else 's'}, {size(sum(sizes))}" if sizes else "none"


def _of(used: int, daily: int) -> str:
    return f" of {size(daily)}, {size(max(0, daily - used))} left" if daily else ", no limit"


def _line(label: str, text: str) -> str:
    return f"  {label:<10} {text}"


def ago(seconds: float) -> str:
    """A time for people: the two largest units of it."""
    whole = max(0, int(seconds))
    for big, small, unit, rest in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= big:
            return f"{whole // big} {unit} {whole % big // small} {rest}"
    return f"{whole} s"
