"""One task offered to the device that is tried, and what has come of it: what it said, what lies at the door.

task, model, addresses ─▶ device ─▶ reports, asks ─▶ grants, update ─▶ the gate's verdict
"""

from typing import TypeVar

from fleetfold import layout
from fleetfold.coordinator.granting import addresses, refused
from fleetfold.errors import BadUpdate
from fleetfold.fold.gate import Expected, admit
from fleetfold.fold.tensors import Header
from fleetfold.hub.check.scratch import DEVICE, Said, Scratch
from fleetfold.messages import SETTLED, Answer, Ask, Presence, Report, Task, encode, understood
from fleetfold.ports import read

RUN = "check"
LIFETIME = 600.0
"""Seconds that an address is good for."""
_Kind = TypeVar("_Kind", Answer, Ask, Presence, Report)


class Offer:
    """One task, offered to the device, and what has come of it."""

    def __init__(self, scratch: Scratch, task: Task, model: Header | None) -> None:
        self.task, self.model, self._scratch = task, model, scratch
        self.key = layout.update(layout.round(RUN, task.round, task.kind), DEVICE)
        self.denied = ""  # why there are no fresh addresses
        self.asked = 0

    def give(self) -> None:
        self._scratch.tell("task", encode(self.task))

    def reports(self) -> list[Report]:
        mine = (self.task.run, self.task.round, self.task.kind)
        said = (message(said, Report) for said in list(self._scratch.said) if said.word == "status")
        return [report for report in said if report and (report.run, report.round, report.kind) == mine]

    def answers(self) -> list[Report]:
        return [report for report in self.reports() if report.state in SETTLED]

    def update(self) -> int | None:
        """Bytes of the update that lies there."""
        return self._scratch.lying.size(self.key)

    def verdict(self) -> str:
        """Why the gate does not admit the update; "" if it does."""
        task, lying, size = self.task, self._scratch.lying, self.update() or 0
        expected = Expected(
            run=task.run, round=task.round, kind=task.kind, device=DEVICE, model=self.model,
            carried=task.form.carried,
        )  # fmt: skip
        try:
            admit(lambda offset, length: read(lying, self.key, offset, length), size, expected)
        except BadUpdate as error:
            return error.sentence
        return ""

    def grant(self, ask: Ask) -> None:
        self.asked += 1
        given = refused(ask, self.denied)
        if not self.denied:
            model, signer = layout.model(RUN, self.task.round), self._scratch.signer()
            given = addresses(ask, model, self.key, self.task.most, signer, LIFETIME)
        self._scratch.bus.grant(given)


def message(said: Said, kind: type[_Kind]) -> _Kind | None:
    """The message, if it is one of that kind."""
    found = understood(DEVICE, said.word, said.payload)
    return found if isinstance(found, kind) else None
