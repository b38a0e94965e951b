"""Objects by obstore: here files below a folder. Ranged reads go to the file itself, into the caller's
buffer.

`durable` says what a finished put survives: False, the death of any process (the kernel has the bytes
and the name); True, a power cut as well (bytes are synced before they get their name, folders after).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from fleetfold.errors import Unavailable

STAGING = "staging/"
"""Where an object lies until its bytes are safe; what a power cut leaves there is nobody's."""


class FileObjects:
    def __init__(self, root: Path, *, durable: bool = False) -> None:
        self._root, self._durable = root, durable
        self._synced = {root}
        try:
            self._store = LocalStore(root, mkdir=True)
        except (OSError, BaseError) as error:
            raise _unavailable(error, str(root)) from error

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        sizes: list[int] = []

        def measured() -> Iterator[bytes | memoryview]:
            for part in data:
                sizes.append(len(part))
                yield part

        # A power cut may keep a name and lose the bytes: they are synced under another name first.
        written = f"{STAGING}{uuid4().hex}" if self._durable else key
        try:
            if isinstance(data, list):  # whole already: one write, without the machinery of parts
                obstore.put(self._store, written, b"".join(measured()), use_multipart=False)
            else:
                obstore.put(self._store, written, measured())
            if self._durable:
                _flush(self._root / written)
                obstore.rename(self._store, written, key)
                self._sync_folders(key)
        except (OSError, BaseError) as error:
            raise _unavailable(error, key) from error
        return sum(sizes)

    def read(self, key: str, offset: int, into: memoryview) -> int:
        try:
            file = os.open(self._place(key), os.O_RDONLY)
        except FileNotFoundError:
            raise KeyError(key) from None
        except OSError as error:
            raise _unavailable(error, key) from error
        try:
            done = 0
            while done < len(into) and (n := os.preadv(file, [into[done:]], offset + done)):
                done += n
            return done
        except OSError as error:
            raise _unavailable(error, key) from error
        finally:
            os.close(file)

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
        _flush(folder)
        while folder not in self._synced:
            self._synced.add(folder)
            folder = folder.parent
            _flush(folder)  # it names the one below


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unavailable(error: Exception, place: str) -> Unavailable:
    if "No space left" in str(error) or getattr(error, "errno", None) == 28:
        return Unavailable(
            f"no space left on the disk while writing {place}; nothing was lost",
            next="make room, then fleetfold run --resume latest",
        )
    return Unavailable(f"cannot read or write {place}: {str(error).splitlines()[0]}")
