"""What is known of each device: how its rounds went, and what it says of itself.

A device is timed by the coordinator's clock, from invitation to arrival; the average is exponentially
weighted. A device that missed the deadline is timed too: it took at least that long.
"""

from msgspec import Struct
from msgspec.structs import replace

from fleetfold.messages import Presence


class Device(Struct, frozen=True, kw_only=True):
    """One entry of the registry. Times in seconds; `turnaround` is None until the device was timed."""

    name: str
    last_seen: float = 0.0
    examples: int = 0
    turnaround: float | None = None
    chosen: int = 0  # rounds that it was invited to
    arrived: int = 0  # rounds that it contributed to
    failures: int = 0  # rounds that it was refused in, failed, or missed
    last_round: int = 0  # the newest round that it was invited to: what was counted once is not again
    last_run: str = ""  # whose round that was: a hub's fleet serves many runs
    says: Presence | None = None  # of a fleet elsewhere: the newest that came


def heard(device: Device, presence: Presence, now: float) -> Device:
    """The entry after the device said that of itself, or its last will did."""
    return replace(device, says=presence, last_seen=now if presence.online else device.last_seen)


def in_run(device: Device, run: str) -> Device:
    """The entry as that run sees it: rounds of another do not compare with its own."""
    return device if device.last_run in ("", run) else replace(device, last_run=run, last_round=0)


def settle(
    device: Device, round: int, *, took: float, seen: float | None, examples: int | None, decay: float
) -> Device:
    """The entry after `round` ended for a device of its cohort; the same round twice changes nothing.

    `took`: seconds from invitation to arrival, or until the round closed without it. `seen`: when it
    was heard of, None if it was not. `examples`: what its update was trained on, None if none counted.
    """
    if round <= device.last_round:
        return device
    old = device.turnaround
    return replace(
        device,
        last_seen=max(device.last_seen, seen or 0.0),
        examples=device.examples if examples is None else examples,
        turnaround=took if old is None else decay * old + (1 - decay) * took,
        chosen=device.chosen + 1,
        arrived=device.arrived + (examples is not None),
        failures=device.failures + (examples is None),
        last_round=round,
    )
