"""One process at a time holds a folder: the operating system's lock on a file, gone with its holder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetfold.errors import BadConfig, Unavailable


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold `what` lies in `folder`. Raises BadConfig that says who holds it, if somebody does."""
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise Unavailable(f"cannot open {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise _held_by(file.read(), what) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether some process holds it now."""
    return is_locked(folder / "lock")


def is_locked(path: Path) -> bool:
    """Whether some process has that file locked; many may look at once."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _held_by(text: str, what: str) -> BadConfig:
    try:
        holder = json.loads(text)
        who, stop = f"process {holder['pid']} on {holder['host']}", f"kill {holder['pid']}"
    except (ValueError, KeyError, TypeError):
        who, stop = "another process", "wait for it"
    return BadConfig(f"{what} is held by {who}", next=f"wait for it, or: {stop}")
