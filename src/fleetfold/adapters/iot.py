"""The coordinator's end of the bus on AWS IoT Core: messages to devices by its HTTPS endpoint, at QoS 1.

    IotBus ──task (retained, expires at the deadline), grant, command──▶ IoT Core ──MQTT 5──▶ devices
           ◀──letters── status function ◀── queue ◀── rules ◀──

Nothing listens here: what devices say comes by a rule and a queue to a function, which hands it over as
letters and tells the queue what became of them (`done`).
"""

import random
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from msgspec import Struct

from fleetfold import layout
from fleetfold.adapters.boto import Service, together
from fleetfold.adapters.posting import COMMANDED, GRANTED, packed, signed
from fleetfold.messages import Command, Grant, Task
from fleetfold.ports import Letter, Signer

LONGEST = 604_800
"""Seconds after which a message expires at the latest, by IoT Core's own limit."""


class IotBus:
    """`client`: boto3's of "iot-data", which asks once (boto.client), at the account's own endpoint. `clock`:
    seconds since the epoch. `letters`: what this invocation was woken with. `done`: the receipts of those
    that have been taken care of."""

    def __init__(
        self, client: Any, fleet: str, signer: Signer, clock: Callable[[], float],
        letters: Sequence[Letter] = (), *,
        sleep: Callable[[float], None] = time.sleep, chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._service = Service(client, "AWS IoT", sleep=sleep, chance=chance)
        self._fleet, self._signer, self._clock = fleet, signer, clock
        self._letters = {letter.receipt: letter for letter in letters}
        self.done = set[str]()

    # Control

    def invite(self, tasks: Sequence[Task]) -> None:
        now = self._clock()

        def invite(task: Task) -> None:
            self._publish(task.device, "task", signed(task, self._signer), task.deadline - now)

        together(invite, tasks)

    def letters(self) -> list[Letter]:
        return [letter for receipt, letter in self._letters.items() if receipt not in self.done]

    def acknowledge(self, receipts: Sequence[str]) -> None:
        self.done.update(receipt for receipt in receipts if receipt in self._letters)

    def withdraw(self, devices: Sequence[str]) -> None:
        together(lambda device: self._publish(device, "task", None), devices)

    # The fleet

    def grant(self, grant: Grant) -> None:
        self._publish(grant.device, "grant", grant, GRANTED)

    def command(self, command: Command) -> None:
        """Have the device do it; a device that is off does it when it is back within a minute."""
        answer = layout.topic(self._fleet, command.device, "answer")
        correlation = b64encode(command.id.encode()).decode()
        self._publish(
            command.device, "command", command, COMMANDED, responseTopic=answer, correlationData=correlation
        )

    def _publish(
        self, device: str, word: str, message: Struct | None, expires: float = 0.0, **about: str
    ) -> None:
        left: dict[str, Any] = {"messageExpiry": min(max(1, ceil(expires)), LONGEST)} if message else {}
        self._service.ask(
            "publish", topic=layout.topic(self._fleet, device, word), qos=1, retain=word == "task",
            payload=packed(device, word, message), **left, **about,
        )  # fmt: skip
