"""What a device is given to join a fleet: one file with who it is, whom it trusts and where they are.

    enroll ─▶ device-3.bundle (0600) ─▶ join          claim ─▶ the same file for many ─▶ join --device NAME

The key is in it, unless the device made its own and sent a signing request: then it adds it on its side.
A claim says of nobody who it is: whoever has it may become a new device of the fleet, with a key of its own.
"""

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fleetfold.errors import BadConfig


class Bundle(Struct, frozen=True, kw_only=True):
    """Addresses as URLs; certificates and key as PEM text."""

    v: int = 1
    fleet: str
    device: str
    brokers: tuple[str, ...]  # mqtts://host:8883, wss://host:443/mqtt: tried in this order
    door: str = ""  # https://host:8443: objects by signed address, by the same authority
    authority: str  # the certificate that broker and door are known by
    certificate: str
    key: str = ""
    poll: tuple[str, str] = ("", "")  # of a device without a connection: where it is told, and says, first


class Claim(Struct, frozen=True, kw_only=True):
    """The right to become a device; `template`: what IoT Core makes it by."""

    v: int = 1
    fleet: str
    template: str
    brokers: tuple[str, ...]
    authority: str
    certificate: str
    key: str


def load(path: Path) -> Bundle:
    """Raises BadConfig."""
    found = opened(path)
    if isinstance(found, Claim):
        raise BadConfig(f"{path} is a claim, for many", next=f"fleetfold join {path} --device NAME")
    return found


def opened(path: Path) -> Bundle | Claim:
    """Raises BadConfig."""
    try:
        data = path.read_bytes()
        is_claim = "template" in msgspec.json.decode(data, type=dict[str, Any])
        return msgspec.json.decode(data, type=Claim) if is_claim else msgspec.json.decode(data, type=Bundle)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}", next="fleetfold enroll DEVICE on the hub") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is no bundle: {error}", next="fleetfold enroll DEVICE on the hub") from None


def save(bundle: Bundle | Claim, path: Path) -> None:
    private(path, msgspec.json.format(msgspec.json.encode(bundle)) + b"\n")


def private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may ever read, whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.fchmod(file, 0o600)
            os.write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(staged, path)
    except OSError as error:
        raise BadConfig(f"cannot write {path}: {error.strerror}") from None
