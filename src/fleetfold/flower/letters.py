"""Flower's messages, to what goes through an exchange and back: names of nodes, ids, contents, errors.

    Message to node 7…  ─ outgoing ─▶  Outgoing to "kitchen", envelope + stored content
    Message from node 7… ◀─ answer ─  Reply: envelope + stored tensors

What an answer says of itself is taken from what was asked, not from what the device writes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet

from fleetfold.coordinator.exchange import Outgoing, Reply
from fleetfold.errors import BadUpdate
from fleetfold.flower import private, records
from fleetfold.flower.contents import Contents
from fleetfold.flower.lazy import Stored
from fleetfold.messages import Envelope
from fleetfold.ports import Objects

private.quiet()
from flwr.app import Error, Message  # noqa: E402


class Letters:
    """Of one run. `fingerprint`: of the app, which answers have to name. `fleet`: names of all devices."""

    def __init__(
        self, objects: Objects, run: str, fingerprint: str, fleet: Callable[[], Iterable[str]]
    ) -> None:
        self.run_id, self.contents = private.run_id(run), Contents(objects, run)
        self._objects, self._fingerprint, self._fleet = objects, fingerprint, fleet
        self._names: dict[int, str] = {}
        self._lost = 0
        self._alive: dict[int, WeakSet[Stored]] = defaultdict(WeakSet)

    def node(self, device: str) -> int:
        number = private.node_id(device)
        self._names[number] = device
        return number

    def device(self, node: int) -> str | None:
        """The device that is that node; None: there is none."""
        if node not in self._names:
            for name in self._fleet():
                self.node(name)
        return self._names.get(node)

    def outgoing(self, number: int, messages: Sequence[Message], mark: str = "") -> list[Outgoing]:
        """The messages as they go, their contents stored. Raises BadConfig for one that cannot be sent."""
        found = []
        self.name(messages, number, mark)
        for message in messages:
            about, placed = message.metadata, self.contents.place(message.content)
            envelope = Envelope(
                id=about.message_id, type=about.message_type, src=private.SERVER, dst=about.dst_node_id,
                group=about.group_id, ttl=about.ttl, created=about.created_at, app=self._fingerprint,
                records=placed.records,
            )  # fmt: skip
            device = self.device(about.dst_node_id)
            assert device is not None
            found.append(
                Outgoing(
                    device=device,
                    message=envelope,
                    content=placed.key,
                    digest=placed.digest,
                    size=placed.size,
                )
            )
        return found

    def nobody(self, messages: Sequence[Message]) -> list[Message]:
        """Errors in answer to messages to nodes that are none."""
        errors = []
        for message in messages:
            self._lost += 1
            private.named(message, f"0.{self._lost}", self.run_id)
            why = f"there is no node {message.metadata.dst_node_id} in the fleet"
            errors.append(Message(Error(private.UNAVAILABLE, why), reply_to=message))
        return errors

    def name(self, messages: Sequence[Message], number: int, mark: str = "") -> None:
        """Give each the id by which its answer is found."""
        for place, message in enumerate(messages):
            private.named(message, f"{number}.{place}{mark}", self.run_id)

    def answer(self, number: int, asked: Envelope, reply: Reply, *, arrays: bool = True) -> Message:
        """What came to that message in that exchange, its ArrayRecords empty without `arrays`; an error for
        what cannot be read."""
        said = reply.message
        if said.error is not None:
            return self.error(asked, *said.error)
        stored = Stored(self._objects, reply.key, reply.header)
        if arrays:
            self._alive[number].add(stored)
        try:
            content = records.content(stored, said.records, arrays=arrays)
        except BadUpdate as error:
            return self.error(asked, private.UNKNOWN, error.sentence)
        return self._message(asked, content, None, said.created, said.ttl)

    def error(self, asked: Envelope, code: int, why: str) -> Message:
        return self._message(asked, None, Error(code, why), asked.created, asked.ttl)

    def _message(self, asked: Envelope, content: Any, error: Any, created: float, ttl: float) -> Message:
        return private.message(
            content, error, id=f"{asked.id}-reply", run=self.run_id, src=asked.dst, dst=private.SERVER,
            type=asked.type, group=asked.group, ttl=ttl, created=created, reply_to=asked.id,
        )  # fmt: skip

    def held(self, before: int) -> list[str]:
        """Keys of answers in exchanges before that one whose arrays somebody still has."""
        return [stored.key for number, alive in self._alive.items() if number < before for stored in alive]


def turn_of(message: Message) -> int:
    """The app's own number of the round that a message belongs to; 0 if it does not say."""
    group = message.metadata.group_id
    if group.isdecimal() and len(group) < 10:
        return int(group)
    said = [record.get("server-round") for record in message.content.config_records.values()]
    return next((n for n in said if isinstance(n, int) and 0 < n < 1 << 31), 0)
