"""What a round that ended teaches the registry about each device of its cohort."""

from collections.abc import Callable, Sequence

from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.round.fleet import settle
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


def teach(ledger: Ledger, round: Round, cohort: Sequence[str], decay: float, stopwatch: Stopwatch) -> None:
    """Update the entry of every device of the cohort; the same round twice changes nothing."""
    arrivals, members = ledger.arrivals(place(round)), frozenset(cohort)
    entries = []
    for device in ledger.fleet():
        if device.name in members:
            arrival = arrivals.get(device.name)
            counted = arrival is not None and arrival.state == "admitted"
            entry = settle(
                device, round.number,
                took=stopwatch(round, arrival) if arrival else round.ended_at - round.asked_at,
                seen=arrival.at if arrival else None,
                examples=arrival.examples if arrival and counted else None,
                decay=decay,
            )  # fmt: skip
            entries.append(entry)
    ledger.save_devices(entries)
