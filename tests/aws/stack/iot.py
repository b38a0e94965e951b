"""IoT Core, emulated: its APIs over HTTP, Mosquitto as its broker, its rules, its word on who comes and goes.

    functions ──HTTP: Publish──▶ ┌──────┐ ──MQTT──▶ ┌───────────┐ ◀──mutual TLS── devices
    enrolment ──HTTP: things ──▶ │ Core │           │ Mosquitto │  may do what their policy documents say
    SQS ◀──rules of the template─└──────┘ ◀──MQTT── └───────────┘

A client whose policies do not let it connect under its id is cut off after it has come, not before; what it
may publish, receive and subscribe to the broker itself keeps. It does not show: quotas, throttling, late or
repeated delivery by rules, error actions.
"""

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleetfold.hub import authority
from tests.aws import iot_policy
from tests.aws.stack import rules
from tests.aws.stack.broker import CONTROL, CORE, Broker, role, username
from tests.aws.stack.calls import Calls
from tests.aws.stack.registry import Registry
from tests.aws.stack.rest import Api, Refused, Served
from tests.hub.conftest import free_port

LIMIT = 128 * 1024
"""Bytes of a message."""
PATIENCE = 20.0
CORE_ID = f"{1:016x}"


class Core:
    """`queue(url)` sends a text to the queue at that address, with the role's ARN: what a rule's Sqs action
    does. `refusals`: what was tried over MQTT and no policy allowed."""

    def __init__(self, folder: Path, calls: Calls, region: str, account: str) -> None:
        self._calls, self._region, self._account = calls, region, account
        self.folder = folder / "iot"
        self.folder.mkdir()
        self.authority = authority.new("emulated iot core")
        self._save("server", authority.server_pair(self.authority, ["localhost", "127.0.0.1"]))
        self._save("core", authority.device_pair(self.authority, CORE, CORE_ID))
        (self.folder / "ca.pem").write_text(self.authority.pem)
        self.broker = Broker(self.folder, free_port(), self._came, self._went)
        self.registry = Registry(self.authority, region, account, "localhost", self._rights_changed)
        self.send: Callable[[str, str, str], None] = lambda url, text, role: None
        self.refusals: list[str] = []
        self.online: dict[str, str] = {}
        self.ruled = 0
        self.troubles: list[str] = []
        self._versions: Counter[str] = Counter()
        self._told: set[str] = set()
        self._own: Counter[tuple[str, bytes]] = Counter()
        self._lock = threading.RLock()
        self._work = ThreadPoolExecutor(8)
        self._control = ThreadPoolExecutor(1)
        self._subscribed = threading.Event()
        self._answers: list[dict[str, Any]] = []
        self._answered = threading.Condition()
        self._parsed: dict[str, rules.Rule] = {}
        self.served = Served(
            free_port(),
            [Api("iot-data", self), Api("iot", self.registry)],
            lambda key, service, operation, asked, status: calls.note(
                kind="call", key=key, service=service, operation=operation, status=status,
                request={k: v for k, v in asked.items() if not isinstance(v, bytes)},
            ),
            {"stand-in": self._stand_in},
        )  # fmt: skip
        self.url = self.served.url

    def start(self) -> None:
        self.broker.start(username(CORE_ID, CORE))
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=CORE, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.tls_set(
            str(self.folder / "ca.pem"), str(self.folder / "core.pem"), str(self.folder / "core.key")
        )
        self._client.max_inflight_messages_set(200)
        self._client.on_connect, self._client.on_message = self._connected, self._heard
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                self._client.connect("localhost", self.broker.port)
                break
            except OSError:
                assert time.monotonic() < give_up, (self.folder / "mosquitto.log").read_text()
                time.sleep(0.05)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE), "the emulated IoT Core cannot connect to its broker"

    def stop(self) -> None:
        self.served.close()
        self._work.shutdown(cancel_futures=True)
        self._control.shutdown(cancel_futures=True)
        self._client.disconnect()
        self._client.loop_stop()
        self.broker.stop()

    @property
    def address(self) -> str:
        return f"mqtts://localhost:{self.broker.port}"

    def settle(self) -> None:
        """Until the broker knows all rights."""
        self._control.submit(lambda: None).result(PATIENCE)

    # The data plane's API

    def publish(
        self, topic: str, payload: bytes = b"", qos: int = 0, retain: bool = False, response_topic: str = "",
        message_expiry: int = 0, correlation_data: str = "", content_type: str = "",
        payload_format_indicator: str = "", user_properties: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        if len(payload) > LIMIT:
            raise Refused(413, "RequestEntityTooLargeException", f"{len(payload)} bytes")
        if "+" in topic or "#" in topic or qos not in (0, 1):
            raise Refused(400, "InvalidRequestException", "no wildcards, and QoS 0 or 1")
        about = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if response_topic:
            about.ResponseTopic = response_topic
        if message_expiry:
            about.MessageExpiryInterval = message_expiry
        if correlation_data:
            about.CorrelationData = base64.b64decode(correlation_data)
        self._say(topic, payload, qos, retain, about)
        return {}

    def delete_connection(
        self, client_id: str, clean_session: bool = False, prevent_will_message: bool = False
    ) -> dict[str, Any]:
        with self._lock:
            name = self.online.get(client_id)
        if name is None:
            raise Refused(404, "ResourceNotFoundException", client_id)
        self._cut(name)
        return {}

    def _say(self, topic: str, payload: bytes, qos: int, retain: bool, about: Any = None) -> None:
        with self._lock:
            self._own[topic, payload] += 1
        message = self._client.publish(topic, payload, qos, retain, about)
        message.wait_for_publish(PATIENCE)
        if not message.is_published():
            raise Refused(503, "ServiceUnavailableException", "the broker does not answer")

    # What comes over MQTT

    def _connected(self, client: Client, *rest: Any) -> None:
        how = SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=2)  # type: ignore[no-untyped-call]
        client.subscribe([("#", how), ("$aws/#", how), (f"{CONTROL}/response", how)])

    def _heard(self, client: Client, data: Any, message: MQTTMessage) -> None:
        if message.topic == f"{CONTROL}/response":
            with self._answered:
                self._answers += json.loads(message.payload)["responses"]
                self._answered.notify_all()
            return
        payload, at = bytes(message.payload), time.time()
        with self._lock:
            own = self._own[message.topic, payload] > 0
            if own:
                self._own[message.topic, payload] -= 1
        if message.retain and not own:
            self._check_retained(message.topic)
        self._work.submit(self._ruled, rules.Message(message.topic, payload, at=at))

    def _check_retained(self, topic: str) -> None:
        """IoT Core would have cut off whoever retains without leave. Which client it was MQTT does not tell:
        at least one has to be allowed to."""
        with self._lock:
            online = dict(self.online)
        for client, name in online.items():
            if self._allowed("iot:RetainPublish", f"topic/{topic}", client, name):
                return
        certificates = list(self.registry.certificates.values())  # or it was the last will of one that went
        for one in certificates:
            for thing in one["things"]:
                if self._allowed("iot:RetainPublish", f"topic/{topic}", thing, one["username"]):
                    return
        self.refusals.append(f"iot:RetainPublish {topic}")

    def _ruled(self, message: rules.Message) -> None:
        for made in self.registry.rules():
            payload = made["TopicRulePayload"]
            if payload.get("RuleDisabled") in (True, "true"):
                continue
            try:
                rule = self._rule(payload["Sql"])
                if not _fits(rule.filter, message.topic):
                    continue
                found = rule.select(message)
                if found is None:
                    continue
                for action in payload["Actions"]:
                    self._act(action, found)
                self.ruled += 1
            except Exception as error:  # noqa: BLE001 - a rule that fails is told by `troubles`
                self.troubles.append(f"{made.get('RuleName')}: {error!r}")

    def _rule(self, sql: str) -> rules.Rule:
        if sql not in self._parsed:
            self._parsed[sql] = rules.parse(sql)
        return self._parsed[sql]

    def _act(self, action: dict[str, Any], found: dict[str, Any]) -> None:
        if set(action) != {"Sqs"}:
            raise rules.OutsideSubset(f"action {sorted(action)}")
        sqs = action["Sqs"]
        text = json.dumps(found)
        if sqs.get("UseBase64") in (True, "true"):
            text = base64.b64encode(text.encode()).decode()
        self.send(sqs["QueueUrl"], text, sqs["RoleArn"])

    def _stand_in(self, method: str, words: list[str], body: bytes) -> Any:
        if words[0] == "AWS::IoT::TopicRule" and method == "PUT":
            payload = json.loads(body)["TopicRulePayload"]
            rules.parse(payload["Sql"])  # raises for what it does not understand: the deployment fails
            for action in payload["Actions"]:
                if set(action) != {"Sqs"}:
                    raise rules.OutsideSubset(f"action {sorted(action)}")
        return self.registry.stand_in(method, words, body)

    # Who comes and goes

    def _came(self, client: str, name: str, address: str) -> None:
        if name in ("", username(CORE_ID, CORE)):
            return
        if not self._allowed("iot:Connect", f"client/{client}", client, name):
            self.refusals.append(f"iot:Connect {client}")
            self._control.submit(self._told_all, self._cutting(name))
            return
        with self._lock:
            self.online[client] = name
            self._versions[client] += 1
        self._event("connected", client, {"ipAddress": address})

    def _went(self, client: str, why: str) -> None:
        with self._lock:
            if self.online.pop(client, None) is None:
                return
        more = {"clientInitiatedDisconnect": why == "CLIENT_INITIATED_DISCONNECT", "disconnectReason": why}
        self._event("disconnected", client, more)

    def _event(self, kind: str, client: str, more: dict[str, Any]) -> None:
        said = {
            "clientId": client, "timestamp": int(1000 * time.time()), "eventType": kind,
            "sessionIdentifier": f"{client}-{self._versions[client]}", "principalIdentifier": "emulated",
            "versionNumber": self._versions[client], **more,
        }  # fmt: skip
        topic = f"$aws/events/presence/{kind}/{client}"
        self._work.submit(self._say, topic, json.dumps(said).encode(), 1, False)

    # Rights

    def _allowed(self, action: str, what: str, client: str, name: str) -> bool:
        certificate = self.registry.by_username(name)
        if certificate is None:
            return False
        document = self.registry.document(certificate)
        return iot_policy.allows(document, action, what, iot_policy.connection(client, certificate["things"]))

    def _rights_changed(self, id: str) -> None:
        """Have the broker keep to what the certificate's policies say now; whoever is connected by it is cut
        off when they say something else."""
        with self.registry.lock:
            certificate = dict(self.registry.certificates[id])
            document = self.registry.document(certificate)
        client = (certificate["things"] or [""])[0]
        lists = iot_policy.rights(document, iot_policy.connection(client, certificate["things"]))
        name, serial = certificate["username"], certificate["serial"]
        known = name in self._told
        commands: list[dict[str, Any]] = []
        if known:
            commands += [_command("deleteClient", name), {"command": "deleteRole", "rolename": serial}]
            self._told.discard(name)
        if lists:
            commands.append({"command": "createRole", **role(serial, lists)})
            commands.append({"command": "createClient", "username": name, "roles": [{"rolename": serial}]})
            self._told.add(name)
        if commands:
            self._control.submit(self._told_all, commands).result(PATIENCE)

    def _cut(self, name: str) -> None:
        self._control.submit(self._told_all, self._cutting(name)).result(PATIENCE)

    def _cutting(self, name: str) -> list[dict[str, Any]]:
        """What ends the connections of that username, and changes nothing else."""
        known = name in self._told
        words = ("disableClient", "enableClient") if known else ("createClient", "deleteClient")
        return [_command(word, name) for word in words]

    def _told_all(self, commands: list[dict[str, Any]]) -> None:
        with self._answered:
            self._answers.clear()
        self._client.publish(CONTROL, json.dumps({"commands": commands}), 1)
        with self._answered:
            assert self._answered.wait_for(lambda: len(self._answers) >= len(commands), PATIENCE)
            if wrong := [answer for answer in self._answers if "error" in answer]:
                self.troubles.append(f"the broker's rights: {wrong}")

    def _save(self, name: str, pair: tuple[str, str]) -> None:
        (self.folder / f"{name}.pem").write_text(pair[0])
        (self.folder / f"{name}.key").write_text(pair[1])


def _command(what: str, name: str) -> dict[str, Any]:
    return {"command": what, "username": name}


def _fits(filter: str, topic: str) -> bool:
    wanted, words = filter.split("/"), topic.split("/")
    if wanted[0] in ("+", "#") and topic.startswith("$"):
        return False
    for index, word in enumerate(wanted):
        if word == "#":
            return True
        if index >= len(words) or word not in ("+", words[index]):
            return False
    return len(wanted) == len(words)
