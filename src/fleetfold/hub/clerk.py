"""The hub's clerk: one short connection, under a certificate of its own, that tells a running broker what
has changed about who belongs.

connect ─▶ commands, a batch at a time, each answered ─▶ presence of those who were cut off ─▶ gone
"""

import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from fleetfold import layout
from fleetfold.errors import Unavailable
from fleetfold.hub.authority import Site
from fleetfold.hub.rights import CONTROL
from fleetfold.messages import Presence, encode

PATIENCE = 60.0
"""Seconds for one answer: with 10,000 devices the plugin takes a sixth of one for each command."""
BATCH = 40
"""Commands in one message, which has to fit into a packet."""
KNOWN = ("Client not found", "Role not found", "Client already exists", "Role already exists")
"""What the plugin says to a command that was carried out before."""


class Clerk:
    """Connected from its making on. Raises Unavailable."""

    def __init__(self, folder: Path, site: Site) -> None:
        self._fleet, self._log = site.fleet, folder / "mosquitto.log"
        self._answers: list[MQTTMessage] = []
        self._heard = False  # that our subscription stands
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = lambda client, data, message: self._answers.append(message)
        self._client.on_subscribe = lambda client, data, mid, codes, properties: self._subscribed()
        trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        trust.check_hostname = False  # it is under this roof, and only the hub has a server's certificate
        trust.load_cert_chain(folder / "clerk.pem", folder / "clerk.key")
        self._client.tls_set_context(trust)
        try:
            self._client.connect(site.listen or "127.0.0.1", site.mqtt)
        except (OSError, ValueError) as error:
            raise Unavailable(f"the broker at port {site.mqtt} lets nobody in: {error}") from error
        self._until(self._client.is_connected)
        self._client.subscribe(f"{CONTROL}/response", qos=1)
        self._until(lambda: self._heard)

    def tell(self, commands: Sequence[dict[str, Any]]) -> None:
        for first in range(0, len(commands), BATCH):
            batch = {"commands": commands[first : first + BATCH]}
            self._answers.clear()
            self._client.publish(CONTROL, msgspec.json.encode(batch), qos=1)
            self._until(lambda: bool(self._answers))
            for answer in msgspec.json.decode(self._answers[0].payload)["responses"]:
                if answer.get("error", KNOWN[0]) not in KNOWN:
                    raise Unavailable(f"the broker did not do {answer.get('command')}: {answer['error']}")

    def say(self, presence: Presence) -> None:
        """In the place of a device that was cut off, and cannot say it."""
        place = layout.topic(self._fleet, presence.device, "presence")
        self._until(self._client.publish(place, encode(presence), qos=1, retain=True).is_published)

    def leave(self) -> None:
        self._client.disconnect()

    def _subscribed(self) -> None:
        self._heard = True

    def _until(self, done: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not done():
            if self._client.loop(0.1) is not MQTTErrorCode.MQTT_ERR_SUCCESS or time.monotonic() > give_up:
                raise Unavailable("the broker does not answer its clerk", next=f"tail {self._log}")
