"""Looks at the device's conditions now and then, and remembers for how long one has failed.

Cheap enough to be asked at every turn: what was read lately is not read again.
"""

import time
from collections.abc import Callable

from fleetfold.device.conditions import Condition, Network, OwnLoad, network, power, read, root, waiting_for
from fleetfold.device.conditions import memory as machine
from fleetfold.device.own import Facts
from fleetfold.device.presence import presence
from fleetfold.device.terms import Terms
from fleetfold.messages import Presence

EAGER, CALM = 3.0, 30.0
"""Seconds between two looks, where something waits for the conditions and else."""
NETWORK = 600.0
"""Seconds between two looks at the network where no condition asks for it."""


class Guard:
    """cpu: seconds of processor that our own work has taken so far."""

    def __init__(self, terms: Terms, timer: Callable[[], float], cpu: Callable[[], float]) -> None:
        self._terms, self._timer, self._cpu = terms, timer, cpu
        self._at = self._network_at = float("-inf")
        self._failing: float | None = None
        self._own, self._network = OwnLoad(), Network()
        self.conditions: list[Condition] = []
        self.memory = terms.memory or machine(root())

    def waits(self, every: float = CALM) -> str:
        """Why there may be no work now; "": there may."""
        now = self._timer()
        if self._terms.required and now - self._at >= every:
            if "idle" in self._terms.required:
                self._own.add(self._cpu(), now)
            self.conditions = read(
                self._terms.required, self._terms.condition, root(), self._own.value, time.time()
            )
            self._at = now
            if not waiting_for(self.conditions):
                self._failing = None
            elif self._failing is None:
                self._failing = now
        return waiting_for(self.conditions)

    def failing(self) -> float:
        """Seconds for which some condition has failed without a break."""
        self.waits(EAGER)
        return 0.0 if self._failing is None else self._timer() - self._failing

    def presence(self, device: str, facts: Facts, cached: bool) -> Presence:
        now = self._timer()
        if now - self._network_at >= NETWORK:
            self._network, self._network_at = network(root()), now
        return presence(device, self.waits(), facts, cached, power(root()), self._network, self.memory)
