"""What a SuperNode's app and the bridge say to each other: a line of JSON each way, over a private socket.

    app ──Forward──▶ bridge ──▶ device ──▶ bridge ──Back──▶ app    tensors lie in files, which the lines name

Who is asked may die meanwhile: the app asks again until its time is over, and the same question has the same
answer. Where the socket is, the file `address` in the bridge's folder says.
"""

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fleetfold.errors import Unavailable
from fleetfold.messages import Envelope, encode

ADDRESS, SPOOL = "address", "spool"
"""In the bridge's folder: where its socket is, and files of tensors on their way."""
FOLDER, DEVICE = "FLEETFOLD_BRIDGE", "FLEETFOLD_BRIDGE_DEVICE"
"""What an app finds in its environment: the bridge's folder, and whose SuperNode has started it."""
LINE = 32 << 20
"""Bytes of a line that are read."""
AGAIN = 0.5
"""Seconds between two tries while nobody is there."""


class Forward(Struct, frozen=True, kw_only=True):
    """A message to a device. `run`: Flower's number of its run; `settings`: the run's config; `file`,
    `digest`, `size`: the content's tensors; `until`: seconds since the epoch, after which nobody waits."""

    device: str
    run: int
    message: Envelope
    settings: dict[str, Any]
    file: str
    digest: str
    size: int
    until: float


class Back(Struct, frozen=True, kw_only=True):
    """The device's answer, or why there is none (`message.error`). `file`: its tensors, "": none."""

    message: Envelope
    file: str = ""


FORWARD, BACK = msgspec.json.Decoder(Forward), msgspec.json.Decoder(Back)


def rounds(forward: Forward) -> int:
    """How many the app says that it does, for people; 1 where it does not."""
    found = forward.settings.get("num-server-rounds")
    return found if isinstance(found, int) and found > 0 else 1


def failed(forward: Forward, why: str, code: int) -> Back:
    """An error of Flower's instead of an answer."""
    return Back(message=Envelope(id="", reply_to=forward.message.id, error=(code, why)))


def line(said: Struct) -> bytes:
    return encode(said) + b"\n"


def ask(folder: Path, forward: Forward, sleep: Callable[[float], None] = time.sleep) -> Back:
    """Have the bridge of `folder` forward it, however often that bridge dies meanwhile. Raises Unavailable
    when the message's time is over."""
    why = "no bridge is running"
    while (left := forward.until - time.time()) > 0:
        try:
            answer = _once(folder, line(forward), left)
        except OSError as error:
            why = f"the bridge cannot be asked: {error.strerror or error}"
        else:
            if answer:
                return BACK.decode(answer)
            why = "the bridge left"
        sleep(min(AGAIN, max(0.0, forward.until - time.time())))
    raise Unavailable(f"{forward.device} was not asked in time: {why}", next="fleetfold flower bridge …")


def _once(folder: Path, question: bytes, seconds: float) -> bytes:
    """→ the answer; b"" if the bridge left before it had one."""
    with socket.socket(socket.AF_UNIX) as bridge:
        bridge.settimeout(min(seconds, 30.0))
        bridge.connect((folder / ADDRESS).read_text())
        bridge.sendall(question)
        bridge.settimeout(seconds)
        with bridge.makefile("rb") as answers:
            answer = answers.readline(LINE)
    return answer if answer.endswith(b"\n") else b""


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """A socket that only this user may connect to, at a short path (some 100 bytes are allowed), which
    `address` in the folder tells."""
    with suppress(OSError):
        before = Path((folder / ADDRESS).read_text()).parent
        if before.name.startswith("fleetfold-bridge-"):
            shutil.rmtree(before, ignore_errors=True)
    room = Path(tempfile.mkdtemp(prefix="fleetfold-bridge-"))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(room / "s"))
            listener.listen(64)
            listener.setblocking(False)
            staged = folder / f".{ADDRESS}"
            staged.write_text(str(room / "s"))
            staged.replace(folder / ADDRESS)
            yield listener
    finally:
        shutil.rmtree(room, ignore_errors=True)
