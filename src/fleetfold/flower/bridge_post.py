"""The way of a bridge's messages to the devices and back: one run of ours for each of Flower's.

    Forward ─▶ run flower-N (bridge_run) ─▶ device        a run without messages ends, and is opened again

Who has the bus, a hub, invites and takes in; here exchanges are opened, and what came is looked at.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from fleetfold.errors import FleetfoldError
from fleetfold.flower.bridge_lines import Back, Forward
from fleetfold.flower.bridge_run import BridgedRun, Drive, Limits
from fleetfold.round.run import Run, RunState
from fleetfold.wiring import local
from fleetfold.wiring.local import Place

PREFIX = "flower-"
"""Before Flower's number of a run, in ours."""


class Fleet(Struct, frozen=True, kw_only=True):
    """Where the devices are. `open`: a run for what that message belongs to; `drive`: have a run driven,
    again if need be; `waiting`: whether another run waits until this one has ended."""

    home: Path
    where: local.Where
    open: Callable[[Place, Forward], Run]
    drive: Drive
    waiting: Callable[[str], bool]


class FleetPost:
    """`superlink`: whose runs they are."""

    def __init__(
        self, fleet: Fleet, superlink: str, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._fleet, self._superlink, self._limits, self._clock = fleet, superlink, limits, clock
        self._runs = {number: self._begun(place) for number, place in self._before()}

    def take(self, forward: Forward) -> None:
        if forward.run not in self._runs:
            self._runs[forward.run] = self._opened(forward)
        self._runs[forward.run].take(forward)

    def step(self) -> float:
        wake, now = float("inf"), self._clock()
        for number, run in list(self._runs.items()):
            wake = min(wake, run.step())
            idle = self._limits.away if self._fleet.waiting(run.name) else self._limits.idle
            if now - run.used > idle and run.is_quiet():
                run.end("no message came any more")
                del self._runs[number]
        return wake

    def back(self, forward: Forward) -> Back | None:
        run = self._runs.get(forward.run)
        return run.back(forward) if run else None

    def close(self) -> None:
        for run in self._runs.values():
            with suppress(FleetfoldError):
                run.end("the bridge was ended")

    def _opened(self, forward: Forward) -> BridgedRun:
        place = Place(self._fleet.home, f"{PREFIX}{forward.run}")
        place.folder.mkdir(parents=True, exist_ok=True)
        if _on_record(place) is None:
            self._fleet.open(place, forward)
        return self._begun(place)

    def _begun(self, place: Place) -> BridgedRun:
        return BridgedRun(place, self._fleet.drive, self._limits, self._clock)

    def _before(self) -> Iterator[tuple[int, Place]]:
        """Runs of a bridge to this SuperLink that have not ended."""
        for folder in sorted((self._fleet.home / "runs").glob(f"{PREFIX}*")):
            number, place = folder.name.removeprefix(PREFIX), Place(self._fleet.home, folder.name)
            is_ours = number.isdigit() and local.where(place) == self._fleet.where
            run = _on_record(place) if is_ours else None
            if run and run.app == self._superlink and run.state is RunState.RUNNING:
                yield int(number), place


def _on_record(place: Place) -> Run | None:
    if not (place.folder / "ledger.db").exists():
        return None
    found = local.ledger(place).run(place.run)
    return found[0] if found else None
