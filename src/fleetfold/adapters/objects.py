"""Objects as files below a folder, written and read by the caller's own buffers: no copy in between.

`durable` says what a finished put survives: False, the death of any process (the kernel has the bytes
and the name); True, a power cut as well (bytes are synced before they get their name, folders after).
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

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
            os.makedirs(self._staging, exist_ok=True)
            _sweep(self._staging)
        except OSError as error:
            raise _unavailable(error, str(root)) from error

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        with self.writing(key) as writing:
            for part in data:
                writing.write(part)
            writing.finish()
        return writing.size

    def writing(self, key: str) -> "Writing":
        """A new object, for a caller who gets its bytes little by little."""
        staged = f"{self._staging}/{os.getpid()}-{uuid4().hex}"
        named = (lambda: self._sync_folders(key)) if self._durable else None
        return Writing(key, staged, self._place(key), named)

    def secure(self, key: str) -> None:
        """Whoever wrote this object may have died between giving it its name and making that durable."""
        try:
            if self._durable:
                self._sync_folders(key)
        except OSError as error:
            raise _unavailable(error, key) from error

    def open(self, key: str) -> "File":
        try:
            return File(os.open(self._place(key), os.O_RDONLY), key)
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
        start, found = len(self._place("")), list[str]()
        for folder, _, names in os.walk(self._place(prefix.rstrip("/")), onerror=_told):
            found += [f"{folder}/{name}"[start:] for name in names]
        return sorted(found)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._place(key))

    def _place(self, key: str) -> str:
        """As text: a Path of every key would keep each of their names in memory for ever."""
        return f"{self._root}/{key}"

    def _sync_folders(self, key: str) -> None:
        """The folder that names the object, and those above it that are new to this process."""
        folder, fresh = (self._root / key).parent, []
        flush(folder)
        while folder not in self._synced:
            fresh.append(folder)
            folder = folder.parent
            flush(folder)  # it names the one below
        self._synced.update(fresh)  # only now: another thread must not believe it any sooner


class Writing:
    """An object on its way: under another name until all of it is there, so that a reader finds all or
    nothing, and gone if it is left before it has its own. `named`: makes names durable; None: need not be."""

    def __init__(self, key: str, staged: str, place: str, named: Callable[[], None] | None) -> None:
        self.size = 0
        self._key, self._staged, self._place, self._named = key, staged, place, named
        try:
            self._file: int | None = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise _unavailable(error, key) from error

    def __enter__(self) -> "Writing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, part: bytes | bytearray | memoryview) -> None:
        assert self._file is not None
        try:
            self.size += _write(self._file, part)
        except OSError as error:
            raise _unavailable(error, self._key) from error

    def finish(self) -> None:
        """Give it its name, whoever had it before."""
        self._finish(_replace)
        self._staged = ""  # that is its own name now

    def finish_first(self) -> bool:
        """Give it its name, unless that is taken: of many who try, one wins. → whether this one did. Either
        way there is an object of that name on return, durably."""
        return self._finish(_link)

    def close(self) -> None:
        if self._file is not None:
            self._shut(self._file)
        if self._staged:
            with suppress(OSError):
                os.unlink(self._staged)

    def _shut(self, file: int) -> None:
        self._file = None
        os.close(file)

    def _finish(self, name: Callable[[str, str], bool]) -> bool:
        assert self._file is not None
        try:
            if self._named:
                os.fsync(self._file)
            self._shut(self._file)  # before it has a name: some disks tell only here that they are full
            try:
                won = name(self._staged, self._place)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self._place), exist_ok=True)
                won = name(self._staged, self._place)
            if self._named:
                self._named()
        except OSError as error:
            raise _unavailable(error, self._key) from error
        return won


class File:
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


def _told(error: OSError) -> None:
    """A folder that nothing was put into yet is an empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise _unavailable(error, str(error.filename)) from error


def _replace(staged: str, place: str) -> bool:
    os.replace(staged, place)
    return True


def _link(staged: str, place: str) -> bool:
    try:
        os.link(staged, place)
    except FileExistsError:
        return False
    return True


def _write(file: int, part: bytes | bytearray | memoryview) -> int:
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
