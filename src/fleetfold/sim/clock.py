"""Virtual time: a queue of what happens when, and nothing happens in between."""

import heapq
from collections.abc import Callable


class Clock:
    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    def __call__(self) -> float:
        return self.now

    def at(self, time: float, happen: Callable[[], None]) -> None:
        """Have `happen` called when it is `time`; of two at the same time the earlier asked comes first."""
        self._serial += 1
        heapq.heappush(self._queue, (max(time, self.now), self._serial, happen))

    def advance(self, limit: float) -> None:
        """Go on to the next happening, or to `limit` if that comes first."""
        if self._queue and self._queue[0][0] <= limit:
            self.now, _, happen = heapq.heappop(self._queue)
            happen()
        else:
            self.now = limit
