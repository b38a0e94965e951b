"""A round's steps in time, device by device: what a Gantt chart draws, and what traces are made of.

    invited ──wait──┬─download─┬─compute─┬─upload─▶ arrived       ─▶ closed ──fold──▶ ended

A device says how long its steps took, by its own clock; when it was invited and when it arrived, the
coordinator's clock says. So steps end with the arrival, and never begin before the invitation.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from fleetfold.ledger import Arrival
from fleetfold.round.state import Round

Name = Literal["wait", "download", "compute", "upload"]


class Step(Struct, frozen=True):
    """Seconds since the epoch, by the coordinator's clock."""

    name: Name
    begin: float
    end: float


class Lane(Struct, frozen=True):
    """One device's part in a round. `state`: as of its arrival, or "silent"; `took`: seconds, None if it was
    not heard of."""

    device: str
    state: str
    reason: str
    steps: tuple[Step, ...]
    took: float | None
    bytes: int = 0
    examples: int = 0


def lane(round: Round, device: str, arrival: Arrival | None) -> Lane:
    if arrival is None:
        return Lane(device, "silent", "", (), None)
    took = max(0.0, arrival.at - round.asked_at)
    return Lane(
        device, arrival.state, arrival.reason, tuple(_steps(round, arrival, took)), took, arrival.size,
        arrival.examples,
    )  # fmt: skip


def _steps(round: Round, arrival: Arrival, took: float) -> Iterable[Step]:
    """Without gaps from the invitation to the arrival; what a device claims beyond that is scaled down."""
    said: tuple[tuple[Name, float | None], ...] = (
        ("download", arrival.took.download),
        ("compute", arrival.took.compute),
        ("upload", arrival.took.upload),
    )
    steps = [(name, max(0.0, seconds)) for name, seconds in said if seconds is not None]
    whole = sum(seconds for _, seconds in steps)
    scale = min(1.0, took / whole) if whole > 0 else 1.0
    at = arrival.at - whole * scale
    if at > round.asked_at:
        yield Step("wait", round.asked_at, at)
    for name, seconds in steps:
        yield Step(name, at, at + seconds * scale)
        at += seconds * scale


def lanes(round: Round, cohort: Sequence[str], arrivals: Mapping[str, Arrival]) -> list[Lane]:
    """Of every invited device: those that were not heard of, then the slowest first."""
    found = [lane(round, device, arrivals.get(device)) for device in cohort]
    return sorted(found, key=lambda each: (each.took is not None, -(each.took or 0), each.device))
