"""The device's end of the bus through a Greengrass nucleus: by its one connection to IoT Core, and its spool.

    MqttLink ─▶ Ipc ─▶ PublishToIoTCore, SubscribeToIoTCore ─▶ nucleus ─▶ IoT Core

An `Ipc` is what a `Connection` is to MqttLink. The nucleus does not say whether the broker remembered it:
what was answered last is told again after each loss. It has no last will; who leaves says so by itself.
"""

import queue
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from fleetfold.adapters.connection import FIRST, MOST, ROOM
from fleetfold.errors import Unavailable
from fleetfold.ports import pause

QOS = "1"
"""At least once, as the nucleus calls it."""
NUCLEUS = "the Greengrass nucleus"
PATIENCE = 10.0
"""Seconds in which what was said last has to be with the nucleus when we leave."""
_STATUS = "subscribe_to_iot_core_connection_status"


def nucleus() -> Any:
    """A client of the nucleus that started this component. Raises Unavailable."""
    try:
        from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
    except ImportError:
        raise Unavailable("there is no awsiotsdk here", next="pip install 'fleetfold[greengrass]'") from None
    return GreengrassCoreIPCClientV2()


class Ipc:
    """`open`: makes a client of the nucleus, each time that there is none. Whoever uses it sets what a
    `Connection` has: `filters`, `heard`, `changed`, `lost`, `will`."""

    def __init__(
        self, open: Callable[[], Any] = nucleus, *, pauses: tuple[float, float] = (FIRST, MOST)
    ) -> None:
        self._open, self._pauses = open, pauses
        self.filters: tuple[str, ...] = ()
        self.heard: Callable[[Any, str], None] = lambda message, receipt: None
        self.changed: Callable[[bool], None] = lambda session: None
        self.lost: Callable[[], None] = lambda: None
        self.will: tuple[str, bytes] | None = None
        self.address, self.why, self.connected = NUCLEUS, "not tried yet", False
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._life = self._ended = 0  # which client it is, and the newest whose streams have ended
        self._work: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="greengrass", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, will: bool = False) -> None:
        """Leave. `will`: say before what the will says."""
        if will and self.will:
            self.post(self.will[0], self.will[1], retain=True)
        self._closing.set()
        self._work.put(None)
        self._thread.join(PATIENCE)

    def post(self, topic: str, payload: bytes, retain: bool, about: Any = None) -> None:
        """At QoS 1, now or as soon as the nucleus answers; what it has, it delivers when it can."""
        id = getattr(about, "CorrelationData", None)

        def say(client: Any) -> None:
            more = {"correlation_data": id} if id else {}
            client.publish_to_iot_core(topic_name=topic, qos=QOS, payload=payload, retain=retain, **more)

        if self._work.qsize() < ROOM:
            self._work.put(say)

    def acknowledge(self, receipt: str) -> None:
        """The nucleus has done so."""

    # In the thread

    def _run(self) -> None:
        losses, unsaid = 0, list[Callable[[Any], None]]()
        while not self._closing.is_set() or unsaid:
            try:
                client = self._open()
            except Exception as error:  # noqa: BLE001 - a thread that ends would never connect again
                self.why = _words(error)
            else:
                self._life += 1
                try:
                    self._subscribe(client, self._life)
                    losses = 0
                    self._serve(client, unsaid)
                    return
                except Exception as error:  # noqa: BLE001 - the same
                    self.why = _words(error)
                finally:
                    with suppress(Exception):
                        client.close()
                    self._set(connected=False)
            if self._closing.wait(pause(losses, *self._pauses, random.random())):
                return
            losses += 1

    def _subscribe(self, client: Any, life: int) -> None:
        def over() -> None:
            self._ended = life
            self._work.put(None)

        for topic in self.filters:
            client.subscribe_to_iot_core(
                topic_name=topic, qos=QOS, on_stream_event=self._heard, on_stream_error=self._broken,
                on_stream_closed=over,
            )  # fmt: skip
        # An older nucleus does not tell whether it is connected: then it is taken to be.
        try:
            getattr(client, _STATUS)(
                on_stream_event=self._told, on_stream_error=lambda error: True,
                on_stream_closed=lambda: None,
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - it has many ways to say that it does not know that
            self._set(connected=True)

    def _serve(self, client: Any, unsaid: list[Callable[[Any], None]]) -> None:
        """Say what there is to say, until we leave or the nucleus is lost."""
        while True:
            if not unsaid:
                work = self._work.get()
                if work is not None:
                    unsaid.append(work)
                elif self._closing.is_set():
                    return
                elif self._ended == self._life:
                    raise Unavailable(self.why or f"{NUCLEUS} has ended our subscriptions")
                else:
                    continue
            unsaid[0](client)
            unsaid.pop()

    def _set(self, *, connected: bool) -> None:
        with self._lock:
            if connected == self.connected:
                return
            self.connected = connected
        if connected:
            self.why = ""
            self.changed(False)
        else:
            self.lost()

    # In the client's threads

    def _heard(self, event: Any) -> None:
        said = event.message
        left = getattr(said, "message_expiry_interval_seconds", None)
        message = SimpleNamespace(
            topic=said.topic_name, payload=said.payload or b"",
            properties=SimpleNamespace(MessageExpiryInterval=left),
        )  # fmt: skip
        self.heard(message, "")

    def _told(self, event: Any) -> None:
        status = event.connection_status_event.status
        if status != "CONNECTED":
            self.why = f"{NUCLEUS} is not connected to IoT Core"
        self._set(connected=status == "CONNECTED")

    def _broken(self, error: Exception) -> bool:
        self.why = _words(error)
        return True  # close it


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
