"""The hub's commands to a device: a few may wait, each is done once and answered as often as asked."""

from collections import OrderedDict, deque
from typing import Literal

from fleetfold.messages import Answer, Command

WAITING = 16
"""Commands that may wait, and answers that are remembered."""


class Errands:
    def __init__(self) -> None:
        self.waiting: deque[Command] = deque()
        self._taken: set[str] = set()
        self._answers = OrderedDict[str, Answer]()

    def take(self, command: Command) -> Answer | None:
        """→ what is to be answered at once: it was done before, or too many wait."""
        if (known := self.known(command)) is not None:
            return known
        if command.id in self._taken:
            return None
        if len(self.waiting) >= WAITING:
            return answer(command, "refused", f"{WAITING} commands are waiting already")
        self._taken.add(command.id)
        self.waiting.append(command)
        return None

    def known(self, command: Command) -> Answer | None:
        """What was answered to it when it came before."""
        return self._answers.get(command.id)

    def answered(self, answer: Answer) -> None:
        self._taken.discard(answer.id)
        self._answers[answer.id] = answer
        while len(self._answers) > WAITING:
            self._answers.popitem(last=False)

    def last(self) -> Answer | None:
        return next(reversed(self._answers.values()), None)


def answer(command: Command, state: Literal["done", "refused", "failed"], reason: str = "") -> Answer:
    return Answer(id=command.id, device=command.device, state=state, reason=reason)
