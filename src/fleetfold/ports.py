"""The doors to the world: what the core asks of a disk, a database and a wire, and no more.

    Objects   large, written once          Control   the coordinator's end of the bus
    Records   small, compare-and-set       Link      the device's end of the bus
    Alarm     wakes a round up             Transfer  the device's way to objects
    Signer    gives addresses of objects that say by themselves what they allow
    Uploads   objects made of parts that several put

Every adapter of a port passes the port's contract (tests/contract). None has a default for what is
atomic. All raise Unavailable, and nothing of their vendor's, when the other side does not answer.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import NamedTuple, Protocol

from fleetfold.messages import Report, Task


class Reader(Protocol):
    """One object, held open until `close`. `file`: the open file, where it is one (None: it is not).

    What one reader has begun to read it reads on, or finds gone; it never finds other bytes.
    """

    file: int | None

    def read(self, offset: int, into: memoryview) -> int:
        """Fill `into` from byte `offset` on. → bytes read, fewer at the end. Raises KeyError if gone."""

    def close(self) -> None: ...


class Objects(Protocol):
    """Large values by key. A key is written once, whole or not at all, and never changed."""

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        """Write the parts one after another; visible when all are durable, or not at all. → bytes.

        An exception from `data` is passed on and leaves nothing behind.
        """

    def open(self, key: str) -> "Reader":
        """For reading, from several threads if need be. Raises KeyError if absent."""

    def size(self, key: str) -> int | None:
        """Bytes of the object; None if there is none."""

    def list(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, which ends with "/", in order."""

    def delete(self, key: str) -> None:
        """Remove it, if it is there."""


class Uploads(Protocol):
    """Objects made of parts that several put, none knowing of the others; seen by nobody before `finish`."""

    def begin(self, key: str) -> str:
        """Begin an upload of that object. → its id. There may be several; each is finished or abandoned."""

    def put(self, key: str, upload: str, number: int, data: bytes | bytearray) -> None:
        """Part `number`, from 1 to 10,000: durable on return, and again if it was there. Raises KeyError if
        the upload is gone."""

    def finish(self, key: str, upload: str, size: int) -> bool:
        """Make the object of its parts, in the order of their numbers. → whether it is there: it is not while
        they are not `size` bytes together. Again is the same. Raises KeyError if the upload is gone, and no
        object of that size is there."""

    def abandon(self, key: str, upload: str) -> None:
        """Let go of its parts, if it is there: it will never be an object."""


class Record(NamedTuple):
    """A small value and its version: 1 when it was created, one more with each change."""

    value: bytes
    version: int


class Records(Protocol):
    """Small values by key, changed one at a time by compare-and-set."""

    def get(self, key: str) -> Record | None: ...

    def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
        """Those of `keys` that are there."""

    def swap(self, key: str, value: bytes, expect: int) -> bool:
        """Write `value` if the record's version is still `expect` (0: there is none). → whether it was."""

    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None:
        """Write each, whatever was there. All are durable on return; not atomic together."""

    def scan(self, prefix: str) -> Iterable[tuple[str, Record]]:
        """Records that lie right below `prefix`, which ends with "/" (no further "/" in their keys), in order
        of keys."""


class Letter(NamedTuple):
    """A report as delivered, and the receipt with which it is acknowledged."""

    receipt: str
    report: Report


class Control(Protocol):
    """The coordinator's end of the bus."""

    def invite(self, tasks: Sequence[Task]) -> None:
        """Give each device its task, retained: a newer one replaces it, a device that was off finds it."""

    def letters(self) -> Sequence[Letter]:
        """Reports that have come and are not acknowledged: at least once each, in any order."""

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """These have been taken care of, durably."""

    def withdraw(self, devices: Sequence[str]) -> None:
        """Take their tasks back: who has not begun finds none, who is at it may leave off."""


class Link(Protocol):
    """The device's end of the bus."""

    def tasks(self) -> Sequence[Task]:
        """Current tasks of the devices behind this link that it has not handed over before."""

    def report(self, report: Report) -> None:
        """Have the report delivered, at least once, also if this process dies after."""


class Transfer(Protocol):
    """The device's way to objects. A task's addresses are opaque: keys here, signed URLs over a network."""

    def fetch(self, task: Task) -> bytes | memoryview:
        """The task's model. What it brings may be anything: whoever asks compares the digest."""

    def deliver(self, task: Task, update: bytes) -> None:
        """Make the update durable; from here on it is finished and is never trained again. Raises BadUpdate
        where it is not wanted (any more)."""

    def delivered(self, task: Task) -> bool:
        """Whether the task's update is finished; what is left of its way is gone now. Raises BadUpdate as
        `deliver` does."""


class Signer(Protocol):
    """Addresses for one device, each of one object, one method and a time."""

    def to_fetch(self, key: str, device: str, seconds: float) -> str: ...

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        """`most`: bytes that may be put there, where the store can be told so."""


class Alarm(Protocol):
    def wake_at(self, run: str, time: float) -> None:
        """Have the run's coordinator woken at `time` (seconds since the epoch), also after a restart."""


def fetch(objects: Objects, key: str) -> bytes:
    """A whole object. Raises KeyError if there is none."""
    size = objects.size(key)
    if size is None:
        raise KeyError(key)
    return read(objects, key, 0, size)


def read(objects: Objects, key: str, offset: int, length: int) -> bytes:
    """Bytes of an object, fewer at its end. Raises KeyError if there is none."""
    with closing(objects.open(key)) as reader:
        return read_on(reader, offset, length)


def read_on(reader: Reader, offset: int, length: int) -> bytes:
    """Bytes of what is open, fewer at its end. Raises KeyError if it is gone."""
    data = bytearray(length)
    return bytes(data[: reader.read(offset, memoryview(data))])


def pause(attempt: int, first: float, most: float, chance: float) -> float:
    """Seconds to wait before try number `attempt` (from 0) of what was Unavailable: doubling up to `most`,
    with full jitter (`chance` in (0, 1)), so that a fleet that lost its hub together does not return
    together."""
    return min(most, first * 2.0 ** min(attempt, 60)) * chance
