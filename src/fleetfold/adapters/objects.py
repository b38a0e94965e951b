"""Objects as files below a folder, written and read by the caller's own buffers: no copy in between.

`durable` says what a finished put survives: False, the death of any process (the kernel has the bytes
and the name); True, a power cut as well (bytes are synced before they get their name, folders after).
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from fleetfold.adapters.disk import flush
from fleetfold.errors import Unavailable

STAGING = "staging"
"""Where an object lies until all of it is there, by a name that begins with the process that writes it."""


class FileObjects:
    def __init__(self, root: Path, *, durable: bool = False) -> None:
        self._root, self._durable = root, durable
        self._synced = {root}
        self._staging = f"{root}/{STAGING}"
        try:
            self._store = LocalStore(root, mkdir=True)
            os.makedirs(self._staging, exist_ok=True)
            _sweep(self._staging)
        except (OSError, BaseError) as error:
            raise _unavailable(error, str(root)) from error

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        # Under another name until all of it is there: a reader finds all or nothing.
        written, place = f"{self._staging}/{os.getpid()}-{uuid4().hex}", self._place(key)
        size = 0
        try:
            file = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                for part in data:
                    size += _write(file, part)
                if self._durable:
                    os.fsync(file)
            finally:
                os.close(file)
            try:
                os.replace(written, place)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                os.replace(written, place)
            if self._durable:
                self._sync_folders(key)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(written)
            if isinstance(error, OSError):
                raise _unavailable(error, key) from error
            raise
        return size

    def open(self, key: str) -> "_File":
        try:
            return _File(os.open(self._place(key), os.O_RDONLY), key)
        except FileNotFoundError:
            raise KeyError(key) from None
        except OSError as error:
            raise _unavailable(error, key) from error

    def size(self, key: str) -> int | None:
        try:
            return os.stat(self._place(key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unavailable(error, key) from error

    def list(self, prefix: str) -> list[str]:
        pages = obstore.list(self._store, prefix.removesuffix("/") or None)
        return sorted(entry["path"] for page in pages for entry in page)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._place(key))

    def _place(self, key: str) -> str:
        """As text: a Path of every key would keep each of their names in memory for ever."""
        return f"{self._root}/{key}"

    def _sync_folders(self, key: str) -> None:
        """The folder that names the object, and those above it that are new to this process."""
        folder = (self._root / key).parent
        flush(folder)
        while folder not in self._synced:
            self._synced.add(folder)
            folder = folder.parent
            flush(folder)  # it names the one below


class _File:
    """An open file: what it holds stays readable also when its name is gone."""

    def __init__(self, handle: int, key: str) -> None:
        self.file: int | None = handle
        self._handle, self._key = handle, key

    def read(self, offset: int, into: memoryview) -> int:
        try:
            done = os.preadv(self._handle, [into], offset)
            while done < len(into) and (n := os.preadv(self._handle, [into[done:]], offset + done)):
                done += n
            return done
        except OSError as error:
            raise _unavailable(error, self._key) from error

    def close(self) -> None:
        os.close(self._handle)


def _write(file: int, part: bytes | memoryview) -> int:
    rest = memoryview(part).cast("B")
    while rest:
        rest = rest[os.write(file, rest) :]
    return len(part)


def _sweep(staging: str) -> None:
    """Remove what processes left there that died while they wrote."""
    for name in os.listdir(staging):
        writer = name.partition("-")[0]
        if writer.isdigit() and not os.path.exists(f"/proc/{writer}") and os.path.exists("/proc/self"):
            with suppress(OSError):
                os.unlink(f"{staging}/{name}")


def _unavailable(error: Exception, place: str) -> Unavailable:
    if "No space left" in str(error) or getattr(error, "errno", None) == 28:
        return Unavailable(
            f"no space left on the disk while writing {place}; nothing was lost",
            next="make room, then fleetfold run --resume latest",
        )
    return Unavailable(f"cannot read or write {place}: {str(error).splitlines()[0]}")
