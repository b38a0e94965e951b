"""What each certificate may say and hear, in the words of Mosquitto's dynamic-security plugin.

              publish                       subscribe                 receive
a device      its four of FROM_DEVICE       its three of TO_DEVICE    its own
the hub       all of its fleet              all of its fleet          all of its fleet
its clerk     commands to the plugin, presence                        the plugin's answers
A certificate is known by its whole subject, name and id, so that an older one of the same device is a
stranger. A stranger may do nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from fleetfold.hub.authority import CLERK_ID, HUB, HUB_ID
from fleetfold.hub.enrol import Credential
from fleetfold.layout import FROM_DEVICE, TO_DEVICE, topic

CONTROL = "$CONTROL/dynamic-security/v1"
"""Where the plugin takes commands; it answers at CONTROL/response."""


def username(device: str, id: str) -> str:
    """The certificate's subject as the broker writes it."""
    return f"serialNumber={id},CN={device}"


def document(fleet: str, credentials: Iterable[Credential]) -> dict[str, Any]:
    """All that the plugin is to know when the broker starts."""
    everything = f"fleetfold/{fleet}/#"
    roles = [
        _role(HUB_ID, send=[everything], receive=everything, subscribe=[everything]),
        _role(
            CLERK_ID, send=[CONTROL, topic(fleet, "+", "presence")], receive=f"{CONTROL}/response",
            subscribe=[f"{CONTROL}/response"],
        ),
    ]  # fmt: skip
    clients = [_client(HUB, HUB_ID), _client(HUB, CLERK_ID)]
    for credential in credentials:
        if credential.counts:
            roles.append(_device(fleet, credential))
            clients.append(_client(credential.device, credential.id))
    denied = {"publishClientSend": False, "publishClientReceive": False, "subscribe": False}
    return {
        "defaultACLAccess": {**denied, "unsubscribe": True},
        "clients": clients,
        "groups": [],
        "roles": roles,
    }


def commands(fleet: str, credential: Credential) -> list[dict[str, Any]]:
    """What makes a plugin that knows something older of this device know this."""
    told: list[dict[str, Any]] = []
    for id in credential.void:
        told.append({"command": "deleteClient", "username": username(credential.device, id)})
        told.append({"command": "deleteRole", "rolename": id})
    if credential.counts:
        told.append({"command": "createRole", **_device(fleet, credential)})
        told.append({"command": "createClient", **_client(credential.device, credential.id)})
    return told


def _device(fleet: str, credential: Credential) -> dict[str, Any]:
    device = credential.device
    return _role(
        credential.id,
        send=[topic(fleet, device, word) for word in FROM_DEVICE],
        receive=topic(fleet, device, "#"),
        subscribe=[topic(fleet, device, word) for word in TO_DEVICE],
    )


def _client(device: str, id: str) -> dict[str, Any]:
    return {"username": username(device, id), "roles": [{"rolename": id}]}


def _role(name: str, *, send: Sequence[str], receive: str, subscribe: Sequence[str]) -> dict[str, Any]:
    allowed = [("publishClientSend", topic) for topic in send]
    allowed.append(("publishClientReceive", receive))
    allowed += [("subscribePattern" if "#" in topic else "subscribeLiteral", topic) for topic in subscribe]
    return {
        "rolename": name,
        "acls": [{"acltype": kind, "topic": topic, "priority": 0, "allow": True} for kind, topic in allowed],
    }
