"""The hub's end of the bus over MQTT 5, as Mosquitto and AWS IoT Core speak it: QoS 1, 128 KiB a message.

    MqttBus ──task (retained, expires at the deadline), grant, command──▶ devices
            ◀──status, presence (retained; the last will says offline), ask, answer──

What comes from a device is decoded here or counted and ignored with its reason. A report is acknowledged to
the broker only when it has been taken care of, so that it comes again to whoever takes over from the dead.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from msgspec import Struct
from paho.mqtt.client import MQTTMessage, MQTTMessageInfo
from paho.mqtt.packettypes import PacketTypes

from fleetfold import layout
from fleetfold.adapters.connection import Connection, properties
from fleetfold.adapters.posting import COMMANDED, GRANTED, packed, signed
from fleetfold.errors import Unavailable, shown
from fleetfold.messages import SETTLED, Answer, Ask, Command, Grant, Presence, Report, Task, understood
from fleetfold.ports import Letter, Signer

PATIENCE = 30.0
"""Seconds in which the broker has to say that it has a message."""
ROOM = 10_000
"""Messages of one kind that wait to be taken; what comes when there are more is not taken from the broker."""
KINDS = 100
"""Reasons for ignoring that are counted apart."""


class Ignored:
    """Messages that mean nothing here, counted by reason; each reason is logged once. From any thread."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._lock, self._counts = log, threading.Lock(), dict[str, int]()

    @property
    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def __call__(self, reason: str) -> None:
        with self._lock:
            if reason not in self._counts and len(self._counts) >= KINDS:
                reason = "other reasons"
            self._counts[reason] = self._counts.get(reason, 0) + 1
            first = self._counts[reason] == 1
        if first:
            self._log(f"ignored: {reason}")


class MqttBus:
    """The hub's end: `Control`, and what else a fleet says. `woken` is called, in another thread, whenever
    something has come. `clock`: seconds since the epoch."""

    def __init__(
        self, connection: Connection, fleet: str, signer: Signer, clock: Callable[[], float],
        log: Callable[[str], None], woken: Callable[[], None],
    ) -> None:  # fmt: skip
        self._connection, self._fleet, self._signer, self._clock = connection, fleet, signer, clock
        self._woken, self.ignored = woken, Ignored(log)
        self._lock = threading.Lock()
        self._letters = OrderedDict[str, Letter]()
        self._presences, self._progress = dict[str, Presence](), dict[str, Report]()
        self._asks, self._answers = OrderedDict[str, Ask](), OrderedDict[str, Answer]()
        self._forgotten = False
        connection.filters = tuple(layout.topic(fleet, "+", word) for word in layout.FROM_DEVICE)
        connection.heard, connection.changed = self._heard, self._changed

    # Control

    def invite(self, tasks: Sequence[Task]) -> None:
        now = self._clock()
        self._told(
            [
                self._publish(task.device, "task", signed(task, self._signer), task.deadline - now)
                for task in tasks
            ]
        )

    def letters(self) -> list[Letter]:
        with self._lock:
            return list(self._letters.values())

    def acknowledge(self, receipts: Sequence[str]) -> None:
        with self._lock:
            known = [receipt for receipt in receipts if self._letters.pop(receipt, None)]
        for receipt in known:
            self._connection.acknowledge(receipt)

    def withdraw(self, devices: Sequence[str]) -> None:
        self._told([self._publish(device, "task", None) for device in devices])

    # The fleet

    def presences(self) -> list[Presence]:
        """What devices have said of themselves since the last call, the newest of each."""
        with self._lock:
            found, self._presences = list(self._presences.values()), {}
        return found

    def progress(self) -> list[Report]:
        """How far tasks are, of each device the newest that has come since the last call."""
        with self._lock:
            found, self._progress = list(self._progress.values()), {}
        return found

    def asks(self) -> list[Ask]:
        with self._lock:
            found, self._asks = list(self._asks.values()), OrderedDict()
        return found

    def grant(self, grant: Grant) -> None:
        self._publish(grant.device, "grant", grant, expires=GRANTED)

    def command(self, command: Command) -> None:
        """Have the device do it; a device that is off does it when it is back within a minute."""
        answer = layout.topic(self._fleet, command.device, "answer")
        self._told([self._publish(command.device, "command", command, COMMANDED, answer, command.id)])

    def answers(self) -> list[Answer]:
        with self._lock:
            found, self._answers = list(self._answers.values()), OrderedDict()
        return found

    def forgotten(self) -> bool:
        """Whether since the last call the broker was found not to know this hub: it may have lost all."""
        with self._lock:
            found, self._forgotten = self._forgotten, False
        return found

    # Saying

    def _publish(
        self,
        device: str,
        word: str,
        message: Struct | None,
        expires: float = 0.0,
        answer: str = "",
        id: str = "",
    ) -> MQTTMessageInfo:
        payload = packed(device, word, message)
        about: dict[str, object] = {"MessageExpiryInterval": max(1, ceil(expires))} if message else {}
        if answer:
            about |= {"ResponseTopic": answer, "CorrelationData": id.encode()}
        topic, made = layout.topic(self._fleet, device, word), properties(PacketTypes.PUBLISH, **about)
        return self._connection.publish(topic, payload, word == "task", made)

    def _told(self, messages: Sequence[MQTTMessageInfo]) -> None:
        """Until the broker has them all."""
        until = time.monotonic() + PATIENCE
        for message in messages:
            try:
                message.wait_for_publish(max(0.0, until - time.monotonic()))
                had = message.is_published()
            except (RuntimeError, ValueError):  # the connection was lost meanwhile
                had = False
            if not had:
                raise Unavailable(f"{self._connection.address} does not say that it has the message")

    # Hearing, in the connection's thread

    def _changed(self, session: bool) -> None:
        with self._lock:
            self._forgotten |= not session
            for receipt in [r for r in self._letters if not self._connection.stands(r)]:
                del self._letters[receipt]  # it comes again, or has come already
        self._woken()

    def _heard(self, message: MQTTMessage, receipt: str) -> None:
        found = layout.topic_parts(message.topic)
        device, word = found or ("", "")
        if found is None:
            self._pass_over(f"topic {shown(message.topic, 100)}", receipt)
            return
        said = understood(device, word, bytes(message.payload))
        if isinstance(said, str):
            self._pass_over(said, receipt)
        else:
            self._take(word, said, receipt)
            self._woken()

    def _pass_over(self, reason: str, receipt: str) -> None:
        self.ignored(reason)
        self._connection.acknowledge(receipt)

    def _take(self, word: str, said: Any, receipt: str) -> None:
        """Keep it until it is asked for. Only a settled report needs more than memory."""
        settled = word == "status" and said.state in SETTLED
        with self._lock:
            if settled:
                if len(self._letters) < ROOM:
                    self._letters[receipt] = Letter(receipt, said)
                return
            match word:
                case "status":
                    self._progress[said.device] = said
                case "presence":
                    self._presences[said.device] = said
                case "ask":
                    self._asks[said.device] = said  # one at a time of each
                case _:
                    if len(self._answers) < ROOM:
                        self._answers[said.id] = said
        self._connection.acknowledge(receipt)
