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
    told_at: float = 0.0  # when that was, by the broker's clock, where the broker tells who comes and goes
    life: int = -1  # twice the number of its newest connection there, one more when that has ended


def heard(device: Device, presence: Presence, now: float) -> Device:
    """The entry after the device said that of itself, or its last will did."""
    return replace(device, says=presence, last_seen=now if presence.online else device.last_seen)


class Sighting(Struct, frozen=True, kw_only=True):
    """That a device spoke, or by its broker's word came or left. `at`: seconds since the epoch, by the
    broker's clock; `session`: the number of its connection there, None where it spoke itself."""

    device: str
    at: float
    online: bool = True
    session: int | None = None
    says: Presence | None = None


RESET = 60.0
"""Seconds after everything else that is known, from which on a lower number is not an older connection's: the
broker counts from 0 again when a device was away for long."""


def sighted(device: Device, sighting: Sighting) -> Device:
    """The entry after a sighting, whatever the order in which they come; what is older than what is known
    changes nothing. The broker's word that a device has left is believed, and not its last will, where there
    is both: a connection that was replaced leaves a will behind."""
    at = max(device.told_at, sighting.at)
    seen = max(device.last_seen, sighting.at) if sighting.online else device.last_seen
    if sighting.session is not None:
        life = 2 * sighting.session + (not sighting.online)
        if life <= device.life and sighting.at <= device.told_at + RESET:
            return device
        says = replace(device.says or Presence(device=device.name), online=sighting.online)
        return replace(device, says=says, told_at=at, life=life, last_seen=seen)
    if sighting.says is None:
        return replace(device, last_seen=seen) if seen > device.last_seen + SEEN else device
    if sighting.at < device.told_at or (device.life >= 0 and not sighting.online):
        return device
    return replace(device, says=sighting.says, told_at=at, last_seen=seen)


SEEN = 60.0
"""Seconds between two writes of what is only newer."""


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
