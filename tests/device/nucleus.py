"""A double of a Greengrass nucleus's IPC, as awsiotsdk's client shows it: no nucleus can be had here, and its
authorization, its spool and its own connection to the broker are not in it. It keeps what is retained."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Nucleus:
    """`tells`: whether it knows of connection status. `said`: what components published."""

    def __init__(self, *, tells: bool = True) -> None:
        self.tells, self.there, self.online = tells, True, True
        self.said: list[SimpleNamespace] = []
        self.retained: dict[str, SimpleNamespace] = {}
        self.clients: list[Client] = []

    def open(self) -> "Client":
        if not self.there:
            raise ConnectionRefusedError("no socket")
        self.clients.append(Client(self))
        return self.clients[-1]

    def deliver(
        self, topic: str, payload: bytes, *, retain: bool = False, expires: int | None = None
    ) -> None:
        message = SimpleNamespace(topic_name=topic, payload=payload, message_expiry_interval_seconds=expires)
        if retain:
            self.retained[topic] = message
        for client in self.clients:
            client.hear(message)

    def connect(self, online: bool) -> None:
        """To IoT Core, or lose the connection there."""
        self.online = online
        for client in self.clients:
            client.tell()

    def stop(self) -> None:
        self.there = False
        for client in self.clients[:]:
            client.close()


class Client:
    def __init__(self, nucleus: Nucleus) -> None:
        self._nucleus, self._subscribed = nucleus, dict[str, dict[str, Callable[..., Any]]]()
        self._status: list[Callable[..., Any]] = []

    def subscribe_to_iot_core(self, *, topic_name: str, qos: str, **streams: Callable[..., Any]) -> None:
        assert qos == "1"
        self._subscribed[topic_name] = streams
        if topic_name in self._nucleus.retained:
            self.hear(self._nucleus.retained[topic_name])

    def subscribe_to_iot_core_connection_status(self, **streams: Callable[..., Any]) -> None:
        if not self._nucleus.tells:
            raise RuntimeError("unknown operation")
        self._status.append(streams["on_stream_event"])
        self.tell()

    def publish_to_iot_core(self, **said: Any) -> None:
        if self not in self._nucleus.clients:
            raise ConnectionResetError("closed")
        assert said["qos"] == "1"
        self._nucleus.said.append(SimpleNamespace(**said))

    def close(self) -> None:
        if self in self._nucleus.clients:
            self._nucleus.clients.remove(self)
            for streams in self._subscribed.values():
                # In a thread of its own, and late, as the real one's executor does.
                threading.Thread(target=streams["on_stream_closed"]).start()

    def hear(self, message: SimpleNamespace) -> None:
        if message.topic_name in self._subscribed:
            self._subscribed[message.topic_name]["on_stream_event"](SimpleNamespace(message=message))

    def tell(self) -> None:
        status = "CONNECTED" if self._nucleus.online else "DISCONNECTED"
        event = SimpleNamespace(connection_status_event=SimpleNamespace(status=status))
        for stream in self._status:
            stream(event)
