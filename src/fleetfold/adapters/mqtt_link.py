"""The device's end of the bus over MQTT 5: its task, its answers, and who it is.

    task (retained; empty: taken back) ─▶ MqttLink ─▶ status, presence, ask, answer

What is not understood is passed over. Nothing here looks at the device's clock: whether a task is still
wanted is told by the message's own remaining time, or by the broker's silence.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from paho.mqtt.packettypes import PacketTypes

from fleetfold import layout
from fleetfold.adapters.connection import properties
from fleetfold.errors import Unavailable, shown
from fleetfold.messages import (
    LONGEST,
    PROTOCOL,
    Answer,
    Ask,
    Command,
    Grant,
    Presence,
    Report,
    Task,
    encode,
)

SURE = 5.0
"""Seconds after which a message that a broker holds for a device has come to it."""
QUEUED = 100
"""Commands that wait to be taken; what comes when there are more is passed over."""
TO_DEVICES: dict[str, "msgspec.json.Decoder[Any]"] = {
    "task": msgspec.json.Decoder(Task),
    "grant": msgspec.json.Decoder(Grant),
    "command": msgspec.json.Decoder(Command),
}


class Wire(Protocol):
    """A `Connection`, or what does the same by another way."""

    filters: tuple[str, ...]
    heard: Callable[[Any, str], None]
    changed: Callable[[bool], None]
    lost: Callable[[], None]
    will: tuple[str, bytes] | None
    address: str
    why: str
    connected: bool

    def start(self) -> None: ...
    def close(self, *, will: bool = False) -> None: ...
    def post(self, topic: str, payload: bytes, retain: bool, about: Any = None) -> None: ...
    def acknowledge(self, receipt: str) -> None: ...


class MqttLink:
    """The device's end: `Link` for one device, and what else it has to say and to hear."""

    def __init__(self, connection: Wire, fleet: str, device: str, timer: Callable[[], float]) -> None:
        self._connection, self._fleet, self._device, self._timer = connection, fleet, device, timer
        self._lock, self._granting = threading.Lock(), threading.Condition()
        self._news = threading.Event()
        self._fresh: Task | None = None
        self._current: Task | None = None
        self._seen: tuple[str, int, str] | None = None
        self._until = float("inf")  # by the timer: when the current task expires
        self._doubt = float("inf")  # by the timer: when a task that was not seen again is gone
        self._withdrawn = self._forgotten = False
        self._commands = OrderedDict[str, Command]()
        self._granted: Grant | None = None
        self._presence: Presence | None = None
        connection.filters = tuple(layout.topic(fleet, device, word) for word in layout.TO_DEVICE)
        connection.heard, connection.changed = self._heard, self._changed
        connection.lost = self.wake
        gone = encode(Presence(device=device, online=False))
        connection.will = (layout.topic(fleet, device, "presence"), gone)

    def start(self) -> None:
        self._connection.start()

    def close(self) -> None:
        self._connection.close(will=True)

    @property
    def connected(self) -> bool:
        return self._connection.connected

    @property
    def broker(self) -> str:
        return self._connection.address

    @property
    def why(self) -> str:
        """Why it is not connected."""
        return self._connection.why

    # Hearing

    def wait(self, seconds: float) -> None:
        """Until something has come or changed, or so many seconds have passed."""
        self._news.wait(seconds)
        self._news.clear()

    def wake(self) -> None:
        """End the wait that there is, or the next one."""
        self._news.set()

    def tasks(self) -> list[Task]:
        with self._lock:
            found, self._fresh = self._fresh, None
        return [found] if found else []

    def withdrawn(self) -> bool:
        """Whether the task in hand is not wanted any more: taken back, or its round is over."""
        now = self._timer()
        with self._lock:
            over = (
                self._current is not None and not self._current.late and now > min(self._until, self._doubt)
            )
            found, self._withdrawn = self._withdrawn or over, False
            if found:
                self._current, self._until, self._doubt = None, float("inf"), float("inf")
        return found

    def commands(self) -> list[Command]:
        with self._lock:
            found, self._commands = list(self._commands.values()), OrderedDict()
        return found

    def forgotten(self) -> bool:
        """Whether since the last call the broker was found not to know this device: answers may be lost."""
        with self._lock:
            found, self._forgotten = self._forgotten, False
        return found

    # Saying

    def report(self, report: Report) -> None:
        self._publish("status", report)

    def answer(self, answer: Answer) -> None:
        self._publish("answer", answer, id=answer.id)

    def say(self, presence: Presence) -> None:
        """Retained; said again at each connection."""
        with self._lock:
            self._presence = presence
        if self.connected:
            self._publish("presence", presence, retain=True)

    def ask(self, ask: Ask, seconds: float) -> Grant:
        """Raises Unavailable when no answer comes in so many seconds."""
        until = self._timer() + seconds
        with self._granting:
            self._granted = None
        self._publish("ask", ask)
        while (left := until - self._timer()) > 0:
            with self._granting:
                if (grant := self._granted) is None or _about(grant) != _about(ask):
                    self._granting.wait(left)
                    grant = self._granted
            if grant and _about(grant) == _about(ask):
                return grant
        raise Unavailable(
            f"{self.broker} has no fresh addresses for round {ask.round} of {ask.run}: no answer"
        )

    def _publish(self, word: str, message: Struct, *, retain: bool = False, id: str = "") -> None:
        about = properties(PacketTypes.PUBLISH, **({"CorrelationData": id.encode()} if id else {}))
        topic = layout.topic(self._fleet, self._device, word)
        self._connection.post(topic, _fitting(message), retain, about)

    # In the connection's thread

    def _changed(self, session: bool) -> None:
        with self._lock:
            self._forgotten |= not session
            presence = self._presence
            # A broker that knows us would have told us of the task again by now, if it were still wanted.
            self._doubt = self._timer() + SURE if session and self._current else float("inf")
        if presence:
            self._publish("presence", presence, retain=True)
        self.wake()

    def _heard(self, message: Any, receipt: str) -> None:
        word = message.topic.rpartition("/")[2]
        if word in TO_DEVICES:
            self._take(word, message)
        self._connection.acknowledge(receipt)
        self.wake()

    def _take(self, word: str, message: Any) -> None:
        if word == "task" and not message.payload:
            with self._lock:
                self._withdrawn = self._withdrawn or self._current is not None
                self._fresh = self._current = None
            return
        try:
            said = TO_DEVICES[word].decode(message.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # of a version that this device does not know; it says its own in `presence`
        if said.v != PROTOCOL or said.device != self._device:
            return
        if word == "grant":
            with self._granting:
                self._granted = said
                self._granting.notify_all()
            return
        with self._lock:
            match word:
                case "task":
                    left = getattr(message.properties, "MessageExpiryInterval", None)
                    self._until = self._timer() + left + SURE if left else float("inf")
                    self._doubt, self._current, self._withdrawn = float("inf"), said, False
                    if (said.run, said.round, said.kind) != self._seen:
                        self._seen = (said.run, said.round, said.kind)
                        self._fresh = said
                case _:
                    if len(self._commands) < QUEUED:
                        self._commands[said.id] = said


def _fitting(message: Struct) -> bytes:
    """What nobody would take in, said shorter: at a broker with a limit it would end the connection, and
    then again, since an answer that was not heard is given again."""
    payload = encode(message)
    if len(payload) <= LONGEST:
        return payload
    if isinstance(message, Answer) and message.state == "done":
        reason = f"the answer has {len(payload)} bytes, a message at most {LONGEST}"
        message = Answer(id=message.id, device=message.device, state="failed", reason=reason)
    elif isinstance(message, Report | Answer | Presence):
        message = replace(message, reason=shown(message.reason))
    return encode(message)


def _about(message: Ask | Grant) -> tuple[str, int, str, int, int]:
    return message.run, message.round, message.kind, message.parts, message.first
