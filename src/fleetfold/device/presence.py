"""What a device says of itself, and how often: when it comes, when something changed, now and then.

settings, /sys, records ─▶ Presence ─▶ Herald: is it worth saying?
"""

from collections.abc import Callable

from msgspec.structs import replace

from fleetfold import __version__
from fleetfold.device.conditions import Network, Power
from fleetfold.device.own import Facts
from fleetfold.messages import Presence

SELDOM = 60.0
"""Seconds between two presences, at least."""
OFTEN = 600.0
"""Seconds after which it is said again, though nothing changed."""


def presence(
    device: str, waits: str, facts: Facts, cached: bool, power: Power, network: Network, memory: int | None
) -> Presence:
    """waits: why there is no work now. cached: whether the model that it knows of still lies there."""
    return Presence(
        device=device, available=not waits, reason=waits, examples=facts.examples, battery=power.battery,
        charging=power.charging,
        link="" if network.metered is None else "metered" if network.metered else "unmetered",
        memory=memory, model=facts.model if cached else "", agent=f"fleetfold {__version__}",
    )  # fmt: skip


class Herald:
    """Says a presence when it differs from the last in more than a few percent of battery."""

    def __init__(self, say: Callable[[Presence], None], timer: Callable[[], float]) -> None:
        self._say, self._timer = say, timer
        self._last: Presence | None = None
        self._at = 0.0

    def due(self) -> bool:
        """Whether something might be said now: else it need not be found out."""
        return self._last is None or self._timer() - self._at >= SELDOM

    def forget(self) -> None:
        """What was said last holds no more: the next is worth saying at once."""
        self._last = None

    def show(self, now: Presence) -> None:
        if not self.due():
            return
        if self._last is None or _gist(now) != _gist(self._last) or self._timer() - self._at >= OFTEN:
            self._say(now)
            self._last, self._at = now, self._timer()


def _gist(presence: Presence) -> Presence:
    """What of it counts: a tenth of battery, which conditions are not met and not by how much."""
    battery = None if presence.battery is None else round(presence.battery, 1)
    return replace(presence, battery=battery, reason="")
