"""Turns at a record that many processes change: who has many arrivals to tell takes one, and the others wait.

    take ─▶ read, decide, compare-and-set ─▶ give back          a turn that its process died in ends by itself

It is a courtesy: what is right is kept by the compare-and-set alone. But the round of ten thousand devices is
a record of 50 kB, and a lost write of it costs as much as one that won.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fleetfold import layout
from fleetfold.ports import Records, pause

Turn = Callable[[str], AbstractContextManager[None]]
"""Waits for a turn at the record of that key, and gives it back."""
CROWD = 10
"""Arrivals in one go for which a turn is taken; for fewer, only after a lost compare-and-set."""
LEASE = 3.0
"""Seconds that a turn lasts at most. A commit takes some hundredths of one."""
PATIENCE = 10.0
"""Seconds after which one goes on without a turn."""
FIRST, MOST = 0.02, 0.3
"""Seconds of pause between two looks, at first and at most."""
_FREE = b"0"


def no_turn(key: str) -> AbstractContextManager[None]:
    """For who drives a run alone."""
    return nullcontext()


class Turns:
    """`clock`: seconds since the epoch; `sleep`, `chance` (in (0, 1)): for the pauses."""

    def __init__(
        self, records: Records, clock: Callable[[], float], sleep: Callable[[float], None],
        chance: Callable[[], float],
    ) -> None:  # fmt: skip
        self._records, self._clock, self._sleep, self._chance = records, clock, sleep, chance

    @contextmanager
    def __call__(self, key: str) -> Iterator[None]:
        place = layout.turn(key)
        version = self._take(place)
        try:
            yield
        finally:
            if version:
                self._records.swap(place, _FREE, expect=version)

    def _take(self, place: str) -> int:
        """The version of the record that says it is our turn; 0: it is not, and we go on all the same."""
        give_up, attempt = self._clock() + PATIENCE, 0
        while True:
            found, now = self._records.get(place), self._clock()
            version, until = (found.version, float(found.value)) if found else (0, 0.0)
            free = not now < until <= now + 2 * LEASE  # later than that no clock of ours has said
            if free and self._records.swap(place, b"%.3f" % (now + LEASE), expect=version):
                return version + 1
            if now >= give_up:
                return 0
            self._sleep(pause(attempt, FIRST, MOST, self._chance()))
            attempt += 1
