"""What an app sends from several threads at once, one message each, as Flower's older API does: gathered.

    thread ─ message ─▶ box ─▶ nobody has added one for a moment: an exchange ─▶ each thread its own answer

Threads are in no order. So after a death each message is found on record by whom it was for, of which kind,
in which of the app's rounds: the first like it is the first like it again.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from fleetfold.coordinator.exchange import Outgoing, Terms
from fleetfold.coordinator.messenger import Messenger
from fleetfold.errors import FleetfoldError
from fleetfold.flower import private
from fleetfold.flower.letters import Letters

private.quiet()
from flwr.app import Message  # noqa: E402

PAUSE = 0.02
"""Seconds for which nobody has added a message, before what is there is sent."""
MARK = "t"
"""Ends the ids of messages that were gathered."""
Like = tuple[int, str, str]
"""The node, the type and the group of a message."""


class Sender(Protocol):
    """What is asked of the grid. Its lock is held whenever it calls, and whenever `until` asks."""

    messenger: Messenger
    letters: Letters

    def terms(self, messages: Sequence[Message], timeout: float | None) -> Terms: ...

    def found(self, number: int, *, everybody: bool = False) -> list[Message]: ...

    def ended(self, number: int) -> bool: ...

    def until(self, done: Callable[[], bool]) -> None: ...


class Slip:
    """One message on its way. `id`: "" until it has gone; `failed`: why it cannot go."""

    def __init__(self, message: Message, timeout: float | None) -> None:
        self.message, self.timeout, self.id = message, timeout, ""
        self.failed: FleetfoldError | None = None


class Gathering:
    def __init__(self, grid: Sender) -> None:
        self._grid = grid
        self._box: list[Slip] = []
        self._added = 0.0
        self._answers: dict[str, Message] = {}
        self._record: dict[Like, deque[str]] = defaultdict(deque)
        for number in range(1, grid.messenger.run().round + 1):
            if grid.messenger.round(number):
                for sent in grid.messenger.batch(number).sent:
                    if is_gathered(sent):
                        asked = sent.message
                        self._record[asked.dst, asked.type, asked.group].append(asked.id)

    def add(self, message: Message, timeout: float | None) -> Slip:
        """To be sent, or found on record."""
        about = message.metadata
        slip, known = (
            Slip(message, timeout),
            self._record[about.dst_node_id, about.message_type, about.group_id],
        )
        if known:
            slip.id = known.popleft()
        else:
            self._box.append(slip)
            self._added = time.monotonic()
        return slip

    def answer(self, slip: Slip) -> Message:
        """Its answer, or an error that says why there is none. Raises what kept it from being sent."""
        self._grid.until(lambda: slip.failed is not None or self._grid.ended(number_of(slip.id)))
        if slip.failed:
            raise slip.failed
        if slip.id not in self._answers:
            for found in self._grid.found(number_of(slip.id), everybody=True):
                self._answers[found.metadata.reply_to_message_id] = found
        return self._answers.pop(slip.id)

    def flush(self) -> None:
        """Send what has been gathered: one exchange of messages of one kind, to devices that are free."""
        if not self._box or time.monotonic() - self._added < PAUSE:
            return
        busy, first = self._grid.messenger.busy(), self._box[0]
        kind = (first.message.metadata.message_type, first.message.metadata.group_id)
        taken: dict[int, Slip] = {}
        for slip in self._box:
            about = slip.message.metadata
            if (about.message_type, about.group_id) == kind:
                taken.setdefault(about.dst_node_id, slip)
        if busy.intersection(self._grid.letters.device(node) or "" for node in taken):
            return
        number = self._grid.messenger.run().round + 1
        slips = list(taken.values())
        messages = [slip.message for slip in slips]
        try:
            batch = self._grid.letters.outgoing(number, messages, MARK)
            times = [slip.timeout for slip in slips if slip.timeout is not None]
            terms = self._grid.terms(messages, min(times) if times else None)
            self._grid.messenger.send(number, batch, terms)
        except FleetfoldError as error:
            for slip in slips:
                slip.failed = error
        self._box = [slip for slip in self._box if slip not in slips]
        for slip in slips:
            slip.id = slip.message.metadata.message_id


def is_gathered(sent: Outgoing) -> bool:
    return sent.message.id.endswith(MARK)


def number_of(id: str) -> int:
    """The exchange that the message with that id went in; 0: in none."""
    head = id.partition(".")[0]
    return int(head) if head.isdecimal() else 0
