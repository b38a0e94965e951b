"""Rows of the tables that the page is told: short, of plain numbers and of words that can be shown.

What devices and apps call themselves may be anything; here it becomes printable and bounded. Numbers have as
many digits as anybody can see, and what is no number is null.
"""

from math import isfinite
from typing import get_args

from msgspec import Struct

from fleetfold.dashboard.feed import Row as Told
from fleetfold.errors import shown
from fleetfold.ledger import Arrival
from fleetfold.messages import Kind
from fleetfold.round.fleet import Device
from fleetfold.round.state import Round
from fleetfold.tell.numbers import BY_NAME
from fleetfold.view import Row, Spread, title

NAME, WORDS = 80, 240
"""Characters of a name, and of a sentence."""
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST = 1e30
"""Numbers beyond it would break the axes that they are drawn on."""


def name(text: str) -> str:
    """A name that fits on a screen. Longer ones end in a mark, so that nobody takes them for another."""
    plain = shown(text, NAME)
    if not plain.strip():  # nobody could see it, or point at it
        return shown(f"({text!r})", NAME)
    return plain if plain == text else f"{plain[: NAME - 1]}…"


def number(value: float | None, digits: int = 5) -> float | None:
    if value is None or not isfinite(value) or abs(value) > LARGEST:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def time(at: float) -> float | None:
    """Seconds since the epoch, to a hundredth; None: it has not come."""
    return round(at, 2) if at and isfinite(at) else None


class Spreads(Struct, frozen=True):
    loss: Spread | None = None
    accuracy: Spread | None = None


def round_row(row: Row, opened: Round, spreads: Spreads) -> Told:
    """[round, kind, phase, cohort, arrived, refused, late, credited, loss, accuracy, scored by, reported
    loss, reported accuracy, spread of loss, spread of accuracy, ε, seconds, fold seconds, bytes up, bytes
    down, cost, opened at, ended at, reason, title]"""
    reported = (BY_NAME[which].of(row) for which in ("reported_loss", "reported_accuracy"))
    return (
        row.round, KINDS.index(row.kind), row.phase, row.cohort, row.arrived, row.refused, row.late,
        row.credited, number(row.loss), number(row.accuracy), row.scored_by,
        *(number(value) for value in reported), _quartiles(spreads.loss), _quartiles(spreads.accuracy),
        number(row.epsilon), number(row.seconds), number(row.fold_seconds), row.bytes_up, row.bytes_down,
        number(row.cost), time(opened.opened_at), time(opened.ended_at), shown(row.reason, WORDS), title(row),
    )  # fmt: skip


def _quartiles(spread: Spread | None) -> list[float | None] | None:
    if spread is None:
        return None
    return [number(v, 4) for v in (spread.least, spread.low, spread.middle, spread.high, spread.most)]


STATES = ("unknown", "free", "waits", "off")
"""Of a device, by what it says of itself; one on this machine says nothing."""


def device_row(id: int, device: Device) -> Told:
    """[id, name, state, why, battery in %, charging, link, examples, turnaround, chosen, arrived, failures,
    last seen]"""
    says = device.says
    state = 0 if says is None else 3 if not says.online else 1 if says.available else 2
    battery = number(says.battery, 3) if says else None
    examples = says.examples if says and says.examples is not None else device.examples
    return (
        id, name(device.name), state, shown(says.reason, WORDS) if says else "",
        None if battery is None else round(100 * battery), says.charging if says else None,
        says.link if says else "", examples, number(device.turnaround, 4), device.chosen, device.arrived,
        device.failures, int(device.last_seen) or None,
    )  # fmt: skip


LANES = ("invited", "downloading", "training", "uploading", "arrived", "late", "refused", "silent")
"""What a device of a round is at, or has come to."""
_CAME = {"admitted": "arrived", "refused": "refused", "late": "late", "credited": "late"}


def lane_row(seat: int, id: int, round: Round, arrival: Arrival | None, step: str) -> Told:
    """[seat, device, state, download, compute, upload, seconds from invitation to arrival, examples, bytes,
    why]; `step`: what a device is at of which nothing has come."""
    if arrival is None:
        return (seat, id, LANES.index(step), None, None, None, None, 0, 0, "")
    took = arrival.took
    return (
        seat, id, LANES.index(_CAME[arrival.state]), number(took.download, 3), number(took.compute, 3),
        number(took.upload, 3), number(max(0.0, arrival.at - round.asked_at), 4), arrival.examples,
        arrival.size, shown(arrival.reason, WORDS),
    )  # fmt: skip


def refused_row(id: int, device: int, name: str, round: Round, at: float, why: str) -> Told:
    """[id, device or null, name, round, kind, at, why]"""
    kind = KINDS.index(round.kind)
    return (id, device if device >= 0 else None, name, round.number, kind, time(at), shown(why, WORDS))
