"""A run's numbers for other programs: CSV, JSON Lines, and the event file of TensorBoard.

rows ─▶ series(row): {name: number} ─▶ one line, or one event, a round

What devices report has names of their own (`devices/f1`), which other programs may take for paths, formulas
or commands: `plain` leaves nothing of that.
"""

import csv
import io
import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence

from fleetfold.errors import shown
from fleetfold.round.state import ENDED
from fleetfold.tell import numbers
from fleetfold.tell.journal import line
from fleetfold.view import Row

_PLAIN = re.compile(r"[^A-Za-z0-9_.\- ]")
_SCORERS = ("test", "devices", "trained")


def plain(name: str) -> str:
    """A name of a device's or a user's as one part of a path that is no way out: letters, digits, ' _.-'."""
    return _PLAIN.sub("_", name)[:64].strip(". ") or "_"


def reported(row: Row) -> dict[str, float]:
    """Every number that was reported, as `by/name`: means over devices, or of the test set."""
    found = {
        f"{by}/{plain(name)}": value
        for by in _SCORERS
        for name, value in row.metrics.get(by, {}).items()
        if value is not None
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def series(row: Row) -> dict[str, float]:
    """All numbers of a round, by the names of their curves: those of an evaluation have their own, and of
    messages those of each label."""
    what = row.kind if row.kind != "message" else plain(row.label or "train")
    prefix = "" if what == "train" else f"{what}/"
    return {f"{prefix}{name}": value for name, value in (numbers.of(row) | reported(row)).items()}


def step(row: Row) -> int:
    """Where on a curve it stands: the round's number, or the app's own."""
    return row.turn or row.round


def ended(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.phase in ENDED]


def json_lines(run: str, rows: Iterable[Row]) -> bytes:
    """As metrics.jsonl has them."""
    return b"".join(line(run, row) for row in ended(rows))


ABOUT = ("run", "round", "kind", "label", "turn", "phase", "opened_at", "ended_at")


def to_csv(run: str, rows: Iterable[Row]) -> str:
    """A line for each round that has ended, with a header; the numbers in their order, then what was
    reported, then the reason. No cell is a formula to a spreadsheet."""
    told = ended(rows)
    own = [number.name for number in numbers.NUMBERS]
    theirs = sorted({name for row in told for name in reported(row)})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*ABOUT, *own, *theirs, "reason"])
    for row in told:
        values = numbers.of(row) | reported(row)
        about = (run, row.round, row.kind, row.label, row.turn, row.phase, row.opened_at, row.ended_at)
        cells = (values.get(name, "") for name in (*own, *theirs))
        writer.writerow([*map(_cell, about), *cells, _cell(row.reason)])
    return out.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = shown(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


# TensorBoard: records of protobuf's Event, each with its length and two checksums


def event_file(rows: Sequence[Row]) -> bytes:
    """What TensorBoard reads of a run: scalars by round, at the time when each ended. The same rows give the
    same bytes."""
    return b"".join(_record(event) for event in _events(ended(rows)))


def event_name(run: str, rows: Sequence[Row]) -> str:
    """The name of that file: TensorBoard goes by its first words."""
    began = int(rows[0].opened_at) if rows else 0
    return f"events.out.tfevents.{began:010}.{plain(run)}"


def _events(rows: Iterable[Row]) -> Iterator[bytes]:
    rows = list(rows)
    yield _double(1, rows[0].opened_at if rows else 0.0) + _bytes(3, b"brain.Event:2")
    for row in rows:
        values = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in series(row).items()
        )
        yield _double(1, row.ended_at) + _varint(2 << 3) + _varint(step(row)) + _bytes(5, values)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    """Of 32 bits: what is too large for them is infinity."""
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", math.copysign(math.inf, value))
    return _varint(field << 3 | 5) + packed


def _table() -> list[int]:
    """Of CRC-32C, a byte at a time, its bits turned round."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _table()


def _masked(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
