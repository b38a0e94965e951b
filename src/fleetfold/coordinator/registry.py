"""What rounds teach the registry about each device of their cohorts."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from fleetfold.coordinator.late import Names
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.round.fleet import Device, in_run, settle
from fleetfold.round.state import Round

Stopwatch = Callable[[Round, Arrival], float]
"""How long a device took for its part in a round, in seconds."""


def by_own_clock(round: Round, arrival: Arrival) -> float:
    """From invitation to arrival, by the coordinator's clock: no device can make itself look fast."""
    return arrival.at - round.asked_at


def by_devices_clock(round: Round, arrival: Arrival) -> float:
    """The device's own steps, without the time that it waited for its turn: for devices that share a
    machine, where the queue would make all look slow."""
    took = arrival.took
    steps = [step for step in (took.download, took.compute, took.upload) if step is not None]
    return sum(steps) if steps else by_own_clock(round, arrival)


def teach(ledger: Ledger, rounds: Sequence[Round], names: Names, decay: float, stopwatch: Stopwatch) -> None:
    """Update the entry of every device that was invited to `rounds`, of which the last has just ended and
    the others are heard of late; the same round twice changes nothing."""
    lessons: dict[str, list[tuple[Round, Arrival | None]]] = {}
    for round in rounds:
        arrivals = ledger.arrivals(place(round))
        for name in names(round.cohort):
            arrival = arrivals.get(name)
            at_work = arrival is None and round.policy.buffered and rounds[-1].ended_at < round.deadline_at
            if not at_work:
                lessons.setdefault(name, []).append((round, arrival))

    def taught(device: Device) -> Device:
        for round, arrival in lessons[device.name]:
            device = _settled(device, round, arrival, decay, stopwatch)
        return device

    ledger.amend(lessons, taught)


def _settled(
    device: Device, round: Round, arrival: Arrival | None, decay: float, stopwatch: Stopwatch
) -> Device:
    missed = round.policy.deadline if round.policy.buffered else round.ended_at - round.asked_at
    counted = arrival is not None and (
        arrival.state == "admitted" or (round.policy.buffered and arrival.state != "refused")
    )
    return settle(
        replace(in_run(device, round.run), last_run=round.run), round.number,
        took=stopwatch(round, arrival) if arrival else missed,
        seen=arrival.at if arrival else None,
        examples=arrival.examples if arrival and counted else None,
        decay=decay,
    )  # fmt: skip
