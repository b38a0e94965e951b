"""How many bytes of data the device may move in a day, and how many it has: kept through every death.

    spend ─▶ record "budget" (Day) ─▶ left ─▶ refusal of a task whose worst case is more

A day ends when the device's own date moves forward, once in 20 hours of a machine that stays up: a clock that
jumps to and fro gives no new budget each time. A date that went back is believed after an hour. Control
messages are not counted: they are a few kilobytes.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from fleetfold.messages import encode
from fleetfold.ports import Records
from fleetfold.settings import size

KEY = "budget"
LEAST_DAY = 20 * 3600.0
"""Seconds of one boot between two beginnings of a day."""
BELIEVED = 3600.0
"""Seconds since the boot after which a date that went back is the date."""
STEP = 1_000_000
"""Bytes that may be spent before it is written down: a death forgets no more."""


class Day(Struct, frozen=True, kw_only=True):
    date: str  # 2031-12-24, the device's own
    used: int = 0
    boot: str = ""  # in which it began
    began: float | None = None  # seconds since that boot; None: it is the first one, begun by nobody


class Budget:
    """`daily`: bytes; 0: any number. today: the local date. timer: seconds since the boot, named `boot`."""

    def __init__(
        self, records: Records, daily: int, today: Callable[[], str], timer: Callable[[], float], boot: str
    ) -> None:
        self._records, self.daily = records, daily
        self._today, self._timer, self._boot = today, timer, boot
        record = records.get(KEY)
        self._day = msgspec.json.decode(record.value, type=Day) if record else Day(date=today())
        self._unwritten = 0

    @property
    def used(self) -> int:
        """Bytes of today."""
        self._turn()
        return self._day.used

    @property
    def left(self) -> int | None:
        return max(0, self.daily - self.used) if self.daily else None

    def spend(self, count: int) -> None:
        self._turn()
        self._day = msgspec.structs.replace(self._day, used=self._day.used + count)
        self._unwritten += count
        if self._unwritten >= STEP:
            self.write()

    def write(self) -> None:
        if self._unwritten:
            self._records.put_many([(KEY, encode(self._day))])
            self._unwritten = 0

    def refusal(self, needed: int) -> str:
        """Why something that moves so many bytes cannot be begun; "": it can."""
        left = self.left
        if left is None or needed <= left:
            return ""
        return f"the day's budget of {size(self.daily)}: {size(left)} left, the task needs {size(needed)}"

    def _turn(self) -> None:
        day, today = self._day, self._today()
        if today == day.date:
            return
        if today < day.date:
            if self._timer() > BELIEVED:
                self._day = msgspec.structs.replace(day, date=today)
        elif day.boot == self._boot and day.began is not None and self._timer() - day.began < LEAST_DAY:
            self._day = msgspec.structs.replace(day, date=today)
        else:
            self._day = Day(date=today, boot=self._boot, began=self._timer())
            self._unwritten = 1
            self.write()
