"""Flower's Grid over our rounds: a batch of messages that the app sends is an exchange, answers are files.

    ServerApp ─ messages ─▶ exchange n ─▶ devices ─▶ answers pass the gate ─▶ Messages of lazy arrays

Exchanges are numbered in the order in which the app sends them, so that an app that is begun again after a
death, and sends them again, is answered from the record. What threads send: gathering.py.
"""

import gc
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from fleetfold.coordinator.exchange import Outgoing, Terms
from fleetfold.coordinator.messenger import Messenger
from fleetfold.errors import Unavailable
from fleetfold.flower import private
from fleetfold.flower.gathering import Gathering, is_gathered, number_of
from fleetfold.flower.letters import Letters, turn_of
from fleetfold.ports import Objects
from fleetfold.round.state import ENDED, Phase, Round
from fleetfold.settings import Settings

private.quiet()
from flwr.app import Message, RecordDict  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402

LOOK = 0.25
"""Seconds after which the run is looked at again, whatever was heard."""
GATHER = 0.02
"""The same, where several threads of the app send."""
PULL = 0.05
"""Seconds that a pull waits where nothing has come: an app that pulls in a loop need not burn."""
Idle = Callable[[float], None]
"""Lets up to so many seconds pass, fewer if something may have come."""


class FleetGrid(Grid):  # type: ignore[misc]
    """`fingerprint`: of the app, which answers have to name. `fleet`: names of all devices. `idle`: see Idle;
    what it raises ends the app. `look`: seconds between two looks at the run."""

    def __init__(
        self, messenger: Messenger, objects: Objects, run: str, settings: Settings, *, fingerprint: str,
        fleet: Callable[[], Iterable[str]], idle: Idle, clock: Callable[[], float] = time.time,
        look: float = LOOK,
    ) -> None:  # fmt: skip
        self.messenger, self.settings = messenger, settings
        self.letters = Letters(objects, run, fingerprint, fleet)
        self._idle, self._clock, self._look, self._run = idle, clock, look, None
        self._found = messenger.run().round  # exchanges that were there already
        self._number = 0  # of the newest exchange that the app's main thread has sent
        self._lock, self._owner = threading.RLock(), threading.get_ident()
        self._gathering: Gathering | None = None
        self._lost: dict[str, Message] = {}  # answers to what was pushed to nobody
        self.alone: Callable[[], None] = lambda: None  # hears that the app itself sends something
        private.identify(self.letters.run_id, private.SERVER)

    # As Flower has it

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run or private.empty_run(self.letters.run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(
            content, dst_node_id=dst_node_id, message_type=message_type, ttl=ttl, group_id=group_id
        )

    def get_node_ids(self) -> list[int]:
        """Of the devices that may be sent to now, by the run's policies; so many as have to be there."""
        found = list[str]()

        def enough() -> bool:
            if threading.get_ident() == self._owner and (why := self.hopeless()):
                raise Unavailable(why)
            found[:] = self.messenger.devices()
            return len(found) >= self.settings.available

        self.until(enough)
        return [self.letters.node(name) for name in found]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send them, and do not wait; where a device is still busy with another, wait for that."""
        ids, _, errors = self._pushed(list(messages), None)
        self._lost.update({error.metadata.reply_to_message_id: error for error in errors})
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers to these that are there: once their exchange has ended, and then one to each, if only
        to say that there will be none."""
        wanted = set(message_ids)
        if lost := [self._lost.pop(id) for id in wanted & self._lost.keys()]:
            return lost
        numbers = sorted({number_of(id) for id in wanted})
        found = list[Message]()

        def any_there() -> bool:
            found[:] = [
                message
                for number in numbers
                if self.ended(number)
                for message in self.found(number, everybody=True)
                if message.metadata.reply_to_message_id in wanted
            ]
            return bool(found)

        self.until(any_there, PULL)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send them, and wait until the exchange has ended, by the run's policies or after `timeout`."""
        listed = list(messages)
        if threading.get_ident() != self._owner:
            return self._gathered(listed, timeout)
        _, numbers, found = self._pushed(listed, timeout, spares=True)
        for number in numbers:
            found += self.answers(number)
        return found

    # For what knows of exchanges (start.py)

    @property
    def next(self) -> int:
        """The number of the exchange that the main thread sends next; other threads' are passed over."""
        number = self._number + 1
        while self.messenger.round(number) and is_gathered(self.messenger.batch(number).sent[0]):
            number += 1
        return number

    @next.setter
    def next(self, number: int) -> None:
        self._number = number - 1

    def send(self, messages: Sequence[Message], terms: Terms, *, spares: bool = True) -> int:
        """Open exchange `next`, or find it on record, and then the record counts. At most one message to a
        device, all of which are known; where they are busy, wait for that. It is waited for them no longer
        than the run's deadline and their own. `spares`: have others asked besides, as the run has it. → its
        number."""
        with self._lock:
            number = self._number = self.next
            if self.messenger.round(number) is None:
                self.letters.contents.fresh()
                batch = self.letters.outgoing(number, messages)
                extra = self._spares(batch, messages) if spares else []
                self.until(lambda: not self.messenger.busy().intersection(each.device for each in batch))
                timeout = min(terms.timeout, self._patience(messages))
                terms = replace(terms, timeout=timeout, wanted=len(batch) if extra else 0)
                self.messenger.send(number, [*batch, *extra], terms)
                self.letters.contents.fresh()
            return number

    def is_batch(self, messages: Sequence[Message]) -> bool:
        """Whether they can go in one exchange."""
        nodes = [message.metadata.dst_node_id for message in messages]
        return len(set(nodes)) == len(nodes) and all(map(self.letters.device, nodes))

    def terms(self, messages: Sequence[Message], timeout: float | None) -> Terms:
        """Of messages of which nothing is known but themselves."""
        waited = self._patience(messages)
        return Terms(
            timeout=waited if timeout is None else min(timeout, waited),
            label=messages[0].metadata.message_type, turn=turn_of(messages[0]),
        )  # fmt: skip

    def answers(self, number: int) -> list[Message]:
        """Wait until the exchange has ended. → its answers by seat, and errors for those that were refused;
        of one that failed an error for each."""
        self.wait(number)
        return self.found(number)

    def wait(self, number: int) -> Round:
        """Until the exchange has ended, well or not. Raises Unavailable when too many in a row have not."""
        self.until(lambda: self.ended(number))
        round = self.messenger.round(number)
        assert round is not None
        if round.phase is Phase.FAILED and (why := self.hopeless()):
            raise Unavailable(why)
        return round

    def found(self, number: int, *, everybody: bool = False) -> list[Message]:
        """What `answers` says of an exchange that has ended. `everybody`: an error also for those that were
        not waited for."""
        round = self.messenger.round(number)
        assert round is not None
        sent = {each.device: each.message for each in self.messenger.batch(number).sent}
        found = {}
        for reply in self.messenger.replies(number):
            found[reply.device] = self.letters.answer(number, sent[reply.device], reply)
        for device, why in self.messenger.refusals(number):
            found.setdefault(device, self.letters.error(sent[device], private.RAISED, why))
        if everybody or round.phase is Phase.FAILED:
            why = round.reason if round.phase is Phase.FAILED else "it has not answered in time"
            for device, asked in sent.items():
                found.setdefault(device, self.letters.error(asked, private.NO_REPLY, why))
        return list(found.values())

    def retire(self, before: int, *, after: int = 0) -> None:
        """Nobody will ask for exchanges before that one and after the other again: what they left is removed,
        but for arrays that the app still has."""
        if held := self.letters.held(before):
            gc.collect()  # Flower's records are in cycles, and live on for a while
            held = self.letters.held(before)
        self.messenger.retire(before, held, after=after)

    # Sending

    def _pushed(
        self, messages: Sequence[Message], timeout: float | None, *, spares: bool = False
    ) -> tuple[list[str], list[int], list[Message]]:
        """→ (id of each, the exchanges that they went in, errors for those that nobody can be sent). A second
        message to the same device goes in an exchange after the first."""
        self.alone()
        known, lost = self._known(messages)
        layers: list[list[Message]] = []
        for message in known:
            to = message.metadata.dst_node_id
            at = sum(any(m.metadata.dst_node_id == to for m in layer) for layer in layers)
            layers[at:] = layers[at:] or [[]]
            layers[at].append(message)
        numbers = []
        for layer in layers:
            numbers.append(self.send(layer, self.terms(layer, timeout), spares=spares))
            self.letters.name(layer, numbers[-1])
        errors = self.letters.nobody(lost)
        return [m.metadata.message_id for m in messages], numbers, errors

    def _known(self, messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
        """Those to devices of the fleet, and those to nobody."""
        known, lost = list[Message](), list[Message]()
        for message in messages:
            (known if self.letters.device(message.metadata.dst_node_id) else lost).append(message)
        return known, lost

    def _patience(self, messages: Sequence[Message]) -> float:
        """Seconds for which answers are waited for: by the run's deadline, or until all would be too old."""
        ends: list[float] = [m.metadata.created_at + m.metadata.ttl for m in messages]
        return min(self.settings.deadline, max(max(ends) - self._clock(), 0.0))

    def _spares(self, batch: Sequence[Outgoing], messages: Sequence[Message]) -> list[Outgoing]:
        """Others who are asked the same, where all are asked the same to train."""
        number = math.ceil(self.settings.over_select * len(batch))
        same = all(message.content is messages[0].content for message in messages)
        if not number or not same or not batch[0].message.type.startswith("train"):
            return []
        names = self.messenger.spares([each.device for each in batch], number)
        prefix = batch[0].message.id.partition(".")[0]
        return [
            replace(
                batch[0], device=name,
                message=replace(batch[0].message, id=f"{prefix}.{place}", dst=self.letters.node(name)),
            )
            for place, name in enumerate(names, len(batch))
        ]  # fmt: skip

    def _gathered(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        """Sent by another thread than the app's main one: each has an answer, be it an error."""
        self.alone()
        known, lost = self._known(messages)
        found = self.letters.nobody(lost)
        with self._lock:
            self._gathering = gathering = self._gathering or Gathering(self)
            slips = [gathering.add(message, timeout) for message in known]
        return [*found, *(gathering.answer(slip) for slip in slips)]

    # Waiting

    def until(self, done: Callable[[], bool], most: float = math.inf) -> None:
        """Drive the run until that is so, or for `most` seconds."""
        end = time.monotonic() + most
        while True:
            with self._lock:
                if self._gathering:
                    self._gathering.flush()
                wake = self.messenger.step()
                if done() or time.monotonic() >= end:
                    return
                look = GATHER if self._gathering else self._look
                self._idle(max(0.0, min(wake - self._clock(), look, end - time.monotonic())))
            if self._gathering:
                time.sleep(0.0005)  # another thread gets the lock

    def hopeless(self) -> str:
        """Why there is no use in going on: too many exchanges in a row have failed, of which one was sent
        since this process began."""
        return self.messenger.hopeless(self._found)

    def ended(self, number: int) -> bool:
        round = self.messenger.round(number)
        return round is not None and round.phase in ENDED
