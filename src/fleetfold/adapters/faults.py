"""Faults as wrappers over a port: a process that dies at a chosen write, a disk that is full, a bus
that repeats and reorders. What is wrapped does not know; what uses it cannot tell.

    Faults(die).wrap(records)       every method that writes passes `die` before and after
"""

import os
import random
import signal
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from fleetfold.ports import Control, Letter

_T = TypeVar("_T")
WRITES = frozenset(
    {
        *("put", "delete", "swap", "put_many", "begin", "finish", "abandon"),
        *("invite", "acknowledge", "withdraw", "report", "report_all"),
        *("deliver", "wake_at", "tell", "grant", "command"),
    }
)


class Died(BaseException):
    """What a simulated death raises: nobody may catch it, as nobody catches a kill -9."""


class Faults:
    """Counts the steps of everything it wraps: one before and one after each write. `at` is the step at
    which `die` is called."""

    def __init__(self, at: int | None, die: Callable[[], None]) -> None:
        self.at, self.die, self.steps = at, die, 0

    def wrap(self, port: _T) -> _T:
        return cast(_T, _Wrapped(port, self))

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.die()


class _Wrapped:
    def __init__(self, port: Any, faults: Faults) -> None:
        self._port, self._faults = port, faults

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name not in WRITES:
            return method

        def around(*arguments: Any, **named: Any) -> Any:
            self._faults.step()
            result = method(*arguments, **named)
            self._faults.step()
            return result

        return around


def simulated_death() -> None:
    raise Died


def real_death() -> None:
    """What a power cut leaves of this process: nothing."""
    os.kill(os.getpid(), signal.SIGKILL)


class Unruly:
    """A bus that delivers late, twice and in another order, as at-least-once allows."""

    def __init__(self, control: Control, chance: random.Random) -> None:
        self._control, self._chance = control, chance
        self.invite, self.withdraw = control.invite, control.withdraw

    def letters(self) -> Sequence[Letter]:
        letters = [letter for letter in self._control.letters() if self._chance.random() < 0.7]
        letters += [letter for letter in letters if self._chance.random() < 0.3]
        self._chance.shuffle(letters)
        return letters

    def acknowledge(self, receipts: Sequence[str]) -> None:
        self._control.acknowledge([r for r in receipts if self._chance.random() < 0.7])
