"""What a device keeps on its disk: the models that it has, and the updates that are on their way.

    cache/{sha256}    a model     {sha256}.part, .difference    one that is on its way here
    spool/{run}-{round}-{kind}.{sha256}.safetensors, .sent      an update, a byte for each part that arrived

Nothing has its name before it is whole and synced, and each has its digest in it: what a power cut leaves
of a file on a disk that lies is known for what it is, and as if it were not there.
"""

import errno
import hashlib
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetfold.errors import BadUpdate, Unavailable
from fleetfold.layout import PART
from fleetfold.messages import Task

CACHE, SPOOL = "cache", "spool"
"""Folders in the device's own."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SPOOLED = re.compile(r"(.+)-(-?\d+)-([a-z]+)\.([0-9a-f]{64})\.(safetensors|sent)")


class Cache:
    """Models by their digest, the newest `keep` of them. Of one process at a time: what another left half
    done is removed here."""

    def __init__(self, home: Path, keep: int) -> None:
        self._folder, self._keep = (folder := home / CACHE), keep
        self._checked = set[str]()
        with on_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for place in folder.iterdir():
                if place.suffix == ".rebuilt" or (place.suffix and place.with_suffix("").exists()):
                    place.unlink()  # half of one, or what one was made of

    def find(self, digest: str) -> memoryview | None:
        """The model of that digest, if it is here and is what it was: then it is the newest now."""
        place = self._folder / digest
        data = mapped(place)
        if data is None:
            return None
        if digest not in self._checked and not _is(data, digest):
            remove(place)
            return None
        self._checked.add(digest)
        with on_disk(place):
            os.utime(place)
        return data

    def part(self, digest: str) -> Path:
        """Where the model lies while it comes, to be gone on with after any break."""
        return self._folder / f"{digest}.part"

    def difference(self, digest: str) -> Path:
        """Where the difference lies that makes that model."""
        return self._folder / f"{digest}.difference"

    def add(self, digest: str, part: Path) -> bool:
        """Take up the file as the model of that digest. → whether it is; if not, it is removed."""
        data = mapped(part)
        if data is None or not _is(data, digest):
            remove(part)
            return False
        _name(part, self._folder / digest)
        self._checked.add(digest)
        return True

    def add_made(self, digest: str, pieces: Iterable[bytes | memoryview]) -> bool:
        """Write the pieces, and take up what they make."""
        place = self._folder / f"{digest}.rebuilt"
        _write(place, pieces)
        return self.add(digest, place)

    def make_room(self, digest: str, need: int, known: str = "") -> None:
        """For a model that is to come: what is left of others' coming is removed, and of the models all but
        the newest; `known` is the last to go. Raises BadUpdate where the disk has no room even so."""
        for place in self._listed():
            if not _DIGEST.fullmatch(place.name) and not place.name.startswith(digest):
                remove(place)
        for place in _models(self._folder, known)[max(0, self._keep - 1) :]:
            remove(place)
        with on_disk(self._folder):
            free = shutil.disk_usage(self._folder).free + length_of(self.part(digest))
        if free < need:
            raise BadUpdate(f"no room on the disk for a model of {need} bytes: {free} are free")

    def _listed(self) -> list[Path]:
        with on_disk(self._folder):
            return list(self._folder.iterdir())


def newest(folder: Path) -> str:
    """The digest of the model in a device's folder that was used last; "": there is none."""
    return next((place.name for place in _models(folder / CACHE)), "")


def _models(cache: Path, first: str = "") -> list[Path]:
    """Models, the one that was used last before the others, `first` before them all."""
    with on_disk(cache):
        names = [name for name in os.listdir(cache) if _DIGEST.fullmatch(name)] if cache.exists() else []
    used = [(name == first, _used(cache / name), name) for name in names]
    return [cache / name for _, _, name in sorted(used, reverse=True)]


class Spool:
    """Updates that were made, until those after them are."""

    def __init__(self, home: Path) -> None:
        self._folder = folder = home / SPOOL
        with on_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for place in folder.glob("*.staged"):
                place.unlink()

    def find(self, task: Task) -> "Spooled | None":
        """The task's update, if it was made and is undamaged."""
        for place, match in self._listed():
            if match[5] != "sent" and (match[1], match[2], match[3]) == _named(task):
                data = mapped(place)
                if data is not None and _is(data, match[4]):
                    return Spooled(place, data)
                remove(place)
        return None

    def add(self, task: Task, update: bytes | memoryview) -> "Spooled":
        """Keep it, also through a power cut. What nobody can ask for any more is removed after."""
        digest = hashlib.sha256(update).hexdigest()
        place = self._folder / f"{'-'.join(_named(task))}.{digest}.safetensors"
        staged = self._folder / f"{os.getpid()}.staged"
        _write(staged, [update])
        _name(staged, place)
        for other, match in self._listed():
            same = (match[1], match[3]) == (task.run, task.kind)
            if other.stem != place.stem and (same or _arrived(other)):
                remove(other)
        return Spooled(place, memoryview(update))

    def _listed(self) -> list[tuple[Path, re.Match[str]]]:
        with on_disk(self._folder):
            names = sorted(os.listdir(self._folder))
        return [(self._folder / name, match) for name in names if (match := _SPOOLED.fullmatch(name))]


class Spooled:
    """One update in the spool, and how many of its parts have arrived."""

    def __init__(self, place: Path, data: memoryview) -> None:
        self.data, self.parts = data, _parts(len(data))
        self._note = _note(place)

    @property
    def sent(self) -> int:
        return length_of(self._note)

    def part(self, number: int) -> tuple[int, memoryview]:
        """Where it begins, and its bytes."""
        return number * PART, self.data[number * PART :][:PART]

    def note(self) -> None:
        """One more has arrived. Not synced: what is forgotten is asked for, or sent, once more."""
        with on_disk(self._note), open(self._note, "ab") as file:
            file.write(b".")


@contextmanager
def on_disk(place: Path) -> Iterator[None]:
    """What the disk says, as one sentence: without room the task cannot be done, else it may be later."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BadUpdate(f"no room on the disk for {place.name[:80]}") from error
        raise Unavailable(f"cannot read or write {place}: {error.strerror or error}") from error


def _named(task: Task) -> tuple[str, str, str]:
    return task.run, str(task.round), task.kind


def _parts(size: int) -> int:
    return max(1, -(-size // PART))


def _note(place: Path) -> Path:
    return place.with_suffix(".sent")


def _arrived(place: Path) -> bool:
    """Whether a file in the spool is of an update that has arrived in all its parts."""
    update = place.with_suffix(".safetensors")
    return length_of(_note(place)) >= _parts(length_of(update))


def mapped(place: Path) -> memoryview | None:
    """The file's bytes where they lie; None: it is not there."""
    with on_disk(place):
        try:
            with open(place, "rb") as file:
                if not os.fstat(file.fileno()).st_size:
                    return memoryview(b"")
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None


def _is(data: memoryview, digest: str) -> bool:
    return hashlib.sha256(data).hexdigest() == digest


def _write(place: Path, pieces: Iterable[bytes | memoryview]) -> None:
    with on_disk(place):
        try:
            with open(place, "wb", buffering=0) as file:
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[file.write(rest) :]
        except BaseException:
            place.unlink(missing_ok=True)
            raise


def _name(staged: Path, place: Path) -> None:
    """Give a finished file its name, once its bytes are synced; then sync the name."""
    with on_disk(place):
        flush(staged)
        os.replace(staged, place)
        flush(place.parent)


def flush(place: Path) -> None:
    """Have the disk write it, a file or a folder, now."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(place: Path) -> None:
    with on_disk(place):
        place.unlink(missing_ok=True)


def length_of(place: Path) -> int:
    """Bytes of the file; 0: it is not there."""
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return 0


def _used(place: Path) -> int:
    try:
        return place.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
