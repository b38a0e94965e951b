"""The task in a device's hand, and why it cannot be done here, if it cannot.

taken ─▶ (waiting for conditions) ─▶ at work ─▶ settled        resumed: promised in an earlier life
"""

from msgspec import Struct

from fleetfold.device.terms import Terms
from fleetfold.errors import shown
from fleetfold.messages import Report, State, Task
from fleetfold.settings import CHOICES, size

COPIES = 4
"""Models in memory at once: the one received, the one trained, the update, what a codec keeps."""
BASE = 64_000_000
"""Bytes of a worker that has loaded nothing but numpy."""


class Hand(Struct):
    """`attempts`: how often it was begun before this process began it. `deaths`: of workers at it since."""

    task: Task
    taken: float
    resumed: bool = False
    begun: bool = False
    attempts: int = 0
    deaths: int = 0
    waits: str = ""  # why it is not begun


def same(one: Task, other: Task) -> bool:
    return (one.run, one.round, one.kind) == (other.run, other.round, other.kind)


def report(task: Task, state: State, reason: str = "") -> Report:
    return Report(
        run=task.run, round=task.round, kind=task.kind, device=task.device, state=state, reason=reason
    )


def unable(task: Task, terms: Terms, memory: int | None) -> str:
    """Why this device cannot do the task; "": it can, as far as can be told before it is begun."""
    if not terms.app:
        return "this device has no app"
    known = [codec for codec in CHOICES["codec"] if codec != ":"]
    if task.form.codec not in known:
        return f"codec {shown(task.form.codec, 20)!r} is not one of {', '.join(known)}"
    limit = terms.memory or memory
    needed = COPIES * task.size + BASE
    if limit and needed > limit:
        return f"not enough memory: the task needs about {size(needed)}, there are {size(limit)}"
    return ""
