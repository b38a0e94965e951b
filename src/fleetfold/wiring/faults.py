"""The fault that the environment asks of a process, put around its ports: for tests of what survives."""

import os
from typing import TypeVar

from fleetfold.adapters.faults import Faults, real_death

_T = TypeVar("_T")
FAULTS = "FLEETFOLD_FAULTS"
"""In the environment, `coordinator:17` or `worker-0:5`: that process kills itself (kill -9) at its 17th
or 5th step, counting one before and one after each write."""


def faulty(process: str, port: _T) -> _T:
    """The port itself, or with the fault that FLEETFOLD_FAULTS asks of this process."""
    if process not in _FAULTS:
        wanted, _, step = os.environ.get(FAULTS, "").partition(":")
        at = int(step) if wanted == process and step.isdigit() else None
        _FAULTS[process] = Faults(at, real_death) if wanted == process else None
    faults = _FAULTS[process]
    return port if faults is None else faults.wrap(port)


_FAULTS: dict[str, Faults | None] = {}
