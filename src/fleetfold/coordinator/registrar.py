"""Keeps the registry up to date with what devices say of themselves, and with when they were last heard.

presence, will ─▶ at once, if it says anything new        any other message ─▶ last seen, every few seconds
"""

from collections.abc import Iterable

from msgspec.structs import replace

from fleetfold.errors import shown
from fleetfold.ledger import Ledger
from fleetfold.messages import Presence, Report
from fleetfold.round.fleet import Device, heard

WORDS = 200
"""Characters that are kept of what a device says in words of its own."""
EVERY = 5.0
"""Seconds between two writes of what is only newer."""
COUNTED = 0.005
"""Seconds for each device between two counts of all: a large fleet is not read through all the time."""


class Registrar:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: dict[str, float] = {}
        self._fresh: dict[str, Presence] = {}  # until they are written
        self._written = 0.0
        self._online, self._known, self._counted = set[str](), 0, float("-inf")

    def count(self, now: float) -> tuple[int, int]:
        """Devices that are there, and devices that belong, the latter as of a moment ago."""
        if not 0 <= now - self._counted < COUNTED * self._known:
            fleet = self._ledger.fleet()
            self._online = {device.name for device in fleet if device.says and device.says.online}
            self._known, self._counted = len(fleet), now
        return len(self._online), max(self._known, len(self._online))

    def take(self, presences: Iterable[Presence], seen: Iterable[str], now: float) -> None:
        """What has come since the last call: presences, and devices that said anything else."""
        self._seen.update(dict.fromkeys(seen, now))
        fresh = self._fresh
        fresh.update((presence.device, short(presence)) for presence in presences)
        due = self._seen and now - self._written >= EVERY
        if not fresh and not due:
            return
        names = [*fresh, *(self._seen if due else ())]
        after = self._ledger.amend(names, lambda device: self._newer(device, fresh.get(device.name), now))
        self._online -= {device.name for device in after if device.says and not device.says.online}
        self._online |= {device.name for device in after if device.says and device.says.online}
        self._fresh = {}
        if due:
            self._seen, self._written = {}, now

    def all_gone(self) -> None:
        """The broker has lost its memory: nobody is there who does not say so again."""
        gone = [
            replace(device, says=replace(device.says, online=False))
            for device in self._ledger.fleet()
            if device.says and device.says.online
        ]
        self._ledger.save_devices(gone)
        self._online.clear()

    def _newer(self, device: Device, presence: Presence | None, now: float) -> Device:
        if presence:
            device = heard(device, presence, now)
        return replace(device, last_seen=max(device.last_seen, self._seen.get(device.name, 0.0)))


def short(presence: Presence) -> Presence:
    """As it is kept: every round reads the whole registry."""
    words = {name: shown(getattr(presence, name), WORDS) for name in ("reason", "model", "agent")}
    return replace(presence, **words)


def brief(report: Report) -> Report:
    """What a device is at, as it is kept: without more words of its own than a person reads."""
    return replace(report, run=shown(report.run, WORDS), reason=shown(report.reason, WORDS))
