"""Who belongs to the fleet: one record for each device, and the newest credential in it is the one that
counts. Broker and door go by these records; a certificate by itself proves only which one is meant.

enroll ─▶ registry, then record ─▶ bundle            revoke ─▶ record ─▶ broker.py has it take effect
Whatever dies in between: a record whose bundle nobody has is replaced by the next enrolment.
"""

import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.bundle import Bundle
from fleetfold.errors import BadConfig
from fleetfold.hub.authority import (
    HUB,
    device_certificate,
    device_pair,
    load,
    requested_key,
    site,
)
from fleetfold.layout import checked_name
from fleetfold.ledger import Ledger
from fleetfold.messages import Presence, encode
from fleetfold.ports import Records
from fleetfold.round.fleet import Device, heard

CREDENTIALS = "credentials/"


class Credential(Struct, frozen=True, kw_only=True):
    """What a device proves itself by. Times in seconds since the epoch; `revoked_at` 0: it counts."""

    device: str
    id: str  # 16 hex digits, another one with each enrolment
    issued_at: float
    revoked_at: float = 0.0
    past: tuple[str, ...] = ()  # ids of the credentials that it replaced

    @property
    def counts(self) -> bool:
        return not self.revoked_at

    @property
    def void(self) -> tuple[str, ...]:
        """Ids by which nobody gets in any more."""
        return self.past if self.counts else (*self.past, self.id)


_CREDENTIAL = msgspec.json.Decoder(Credential)


def enroll(records: Records, folder: Path, device: str, now: float, csr: str = "") -> Bundle:
    """Make the device one of the fleet. `csr`: its signing request; without, its key is made here.
    What it had before counts no more. Raises BadConfig."""
    if checked_name(device, "device") == HUB:
        raise BadConfig(f"{HUB!r} is the hub's own name", next="fleetfold enroll ANOTHER_NAME")
    place, authority, id = site(folder), load(folder), f"{secrets.randbits(63) + 256:016x}"
    if csr:
        certificate, key = device_certificate(authority, requested_key(csr), device, id), ""
    else:
        certificate, key = device_pair(authority, device, id)
    Ledger(records).register(Device(name=device, says=Presence(device=device, online=False)))
    fresh = Credential(device=device, id=id, issued_at=now)
    _change(records, device, lambda old: replace(fresh, past=(*old.past, old.id)) if old else fresh)
    return Bundle(
        fleet=place.fleet, device=device, brokers=place.brokers, door=place.base,
        authority=authority.pem,
        certificate=certificate, key=key,
    )  # fmt: skip


def revoke(records: Records, device: str, now: float) -> Credential:
    """Have the device's credential count no more. Raises BadConfig if it never had one."""

    def revoked(old: Credential | None) -> Credential:
        if old is None:
            raise BadConfig(f"device {device[:80]!r} was never enrolled", next="fleetfold devices")
        return replace(old, revoked_at=now) if old.counts else old

    changed = _change(records, device, revoked)
    ledger = Ledger(records)
    ledger.save_devices([heard(entry, absence(changed), now) for entry in ledger.devices([device])])
    return changed


def absence(credential: Credential) -> Presence:
    """What is said of a device that was cut off: it is not there; if it belongs no more, not to be asked."""
    reason = "" if credential.counts else "revoked"
    return Presence(device=credential.device, online=False, available=not reason, reason=reason)


def credential(records: Records, device: str) -> Credential | None:
    """The device's newest one, whether it counts or not."""
    record = records.get(CREDENTIALS + device)
    return None if record is None else _CREDENTIAL.decode(record.value)


def credentials(records: Records) -> list[Credential]:
    """The newest one of each device that was ever enrolled, by name."""
    return [_CREDENTIAL.decode(record.value) for _, record in records.scan(CREDENTIALS)]


def _change(records: Records, device: str, change: Callable[[Credential | None], Credential]) -> Credential:
    while True:
        record = records.get(CREDENTIALS + device)
        old = _CREDENTIAL.decode(record.value) if record else None
        new = change(old)
        if new == old or records.swap(CREDENTIALS + device, encode(new), record.version if record else 0):
            return new
