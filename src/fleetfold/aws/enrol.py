"""Who belongs to a fleet on AWS: a thing of IoT Core with one certificate that counts, and a record of it.

enroll   thing ─▶ certificate, inactive ─▶ thing, policy ─▶ registry, record ─▶ active ─▶ older ones void
revoke   record, registry ─▶ certificates inactive, detached ─▶ connection ended

The private key is made here or on the device, and never goes to AWS. What dies in between leaves at worst a
certificate that allows nothing; enrolling again is right again. What is not of the fleet is not touched.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.boto import Declined, Service, client
from fleetfold.adapters.poll_bus import close_box, open_box
from fleetfold.adapters.stores import LONGEST
from fleetfold.aws.stack import Stack
from fleetfold.bundle import Bundle
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.layout import checked_name
from fleetfold.ledger import Ledger
from fleetfold.messages import LIMIT, Presence, encode
from fleetfold.ports import Records, Signer
from fleetfold.round.fleet import Device, heard
from fleetfold.wiring.aws import records

CREDENTIALS = "credentials/"
FLEET = "fleet"
"""The attribute of a thing that says whose it is."""
ROOTS = Path(__file__).with_name("amazon-roots.pem")
DATA = "iot:Data-ATS"
"""The kind of endpoint whose certificate Amazon's own roots have signed."""
PORTS = (8883, 443)
"""Of IoT Core, in the order in which a device tries them: a firewall that lets nothing else out knows 443."""
_THING = re.compile(r"[A-Za-z0-9_-]+")
"""Of the names that devices may have elsewhere, those that things may: IoT Core knows no dot in them."""
REVOKED = "revoked"
"""What the registry has for a reason why nobody asks a device that was cut off."""
_ABSENT, _THERE, _WRONG = (
    "ResourceNotFoundException", "ResourceAlreadyExistsException", "InvalidRequestException"
)  # fmt: skip
_AGAIN = "the same command once more"
Kind = Literal["mqtt", "poll"]


class Place(Struct, frozen=True, kw_only=True):
    """What an enrolment has to know of a deployed stack: the names of its IoT policy and of its thing group,
    and the host of the account's data endpoint."""

    fleet: str
    policy: str
    group: str
    endpoint: str

    @property
    def brokers(self) -> tuple[str, ...]:
        return tuple(f"mqtts://{self.endpoint}:{port}" for port in PORTS)


class Credential(Struct, frozen=True, kw_only=True):
    """What a device proves itself by. `id`: its certificate's at IoT Core. Times in seconds since the epoch;
    `revoked_at` 0: it counts."""

    device: str
    id: str = ""
    kind: Kind = "mqtt"
    issued_at: float = 0.0
    revoked_at: float = 0.0
    past: tuple[str, ...] = ()  # ids of the certificates that it replaced

    @property
    def counts(self) -> bool:
        return not self.revoked_at


_CREDENTIAL = msgspec.json.Decoder(Credential)


class Account(Struct, frozen=True):
    """What of AWS an enrolment asks: boto3's clients `iot` and `iot-data`, the fleet's records, its place."""

    iot: Any
    data: Any
    records: Records
    place: Place


def account(stack: Stack) -> Account:
    """That of a stack. Raises BadConfig, Unavailable."""
    made = {name: client(name, region_name=stack.region) for name in ("iot", "iot-data")}
    endpoint = stack.iot_endpoint
    if not endpoint:
        found = Service(made["iot"], "IoT Core's endpoint").ask("describe_endpoint", endpointType=DATA)
        endpoint = found["endpointAddress"]
    place = Place(
        fleet=stack.fleet, policy=stack.outputs["DevicePolicy"], group=stack.outputs["ThingGroup"],
        endpoint=endpoint,
    )  # fmt: skip
    return Account(made["iot"], made["iot-data"], records(stack.table, stack.region), place)


def enroll(iot: Any, records: Records, place: Place, device: str, now: float, csr: str = "") -> Bundle:
    """Make the device one of the fleet. `iot`: boto3's client of that name. `csr`: the device's signing
    request; without, its key is made here. What it had before counts no more. Raises BadConfig."""
    request, key = (_checked(csr), "") if csr else signing_request(_thing_name(device))
    thing = Service(iot, f"thing {_thing_name(device)}")
    _make(thing, place, device)
    try:
        made = thing.ask("create_certificate_from_csr", expected=[_WRONG], certificateSigningRequest=request)
    except Declined as declined:
        said = declined.answer["Error"].get("Message", "")
        raise BadConfig(f"IoT Core does not sign the request: {said}", next="fleetfold agent csr") from None
    id, arn = made["certificateId"], made["certificateArn"]  # inactive, until all else is done
    thing.ask("attach_thing_principal", thingName=device, principal=arn, thingPrincipalType="EXCLUSIVE_THING")
    thing.ask("attach_policy", policyName=place.policy, target=arn)
    fresh = Credential(device=device, id=id, issued_at=now)
    _enlist(records, device)
    credential = change(records, device, lambda old: replace(fresh, past=_spent(old)))
    thing.ask("update_certificate", certificateId=id, newStatus="ACTIVE")
    if newest(records, device) != credential:
        thing.ask("update_certificate", certificateId=id, newStatus="INACTIVE")
        raise Unavailable(f"{device} was enrolled from elsewhere at the same time", next=_AGAIN)
    _void(thing, place, device, keep=id)
    close_box(records, device)
    return Bundle(
        fleet=place.fleet, device=device, brokers=place.brokers, authority=ROOTS.read_text(),
        certificate=made["certificatePem"], key=key,
    )  # fmt: skip


def enroll_polling(records: Records, signer: Signer, place: Place, device: str, now: float) -> Bundle:
    """Make a device one of the fleet that has no connection: it looks for mail at a signed address. `signer`:
    of the bucket, whose credentials say for how long the first address is good. Raises BadConfig."""
    checked_name(device, "device")
    known = newest(records, device)
    if known is not None and known.counts and known.kind != "poll":
        raise BadConfig(
            f"{device} has a connection, by a certificate", next=f"fleetfold revoke {device} --aws"
        )
    _enlist(records, device)
    life, number = open_box(records, device)
    fresh = Credential(device=device, id=life, kind="poll", issued_at=now)
    change(records, device, lambda old: replace(fresh, past=_spent(old)))
    return Bundle(
        fleet=place.fleet, device=device, brokers=(), authority="", certificate="",
        poll=(
            signer.to_fetch(layout.mail(device, life, number), device, LONGEST),
            signer.to_deliver(layout.words(device, life, number), device, LONGEST, LIMIT),
        ),
    )  # fmt: skip


def revoke(iot: Any, data: Any, records: Records, place: Place, device: str, now: float) -> str:
    """Cut the device off, for good unless it is enrolled anew. `data`: boto3's client `iot-data`. → what
    became of its connection. Raises BadConfig if it never belonged."""
    thing, known = Service(iot, f"thing {checked_name(device, 'device')}"), newest(records, device)
    there = not (known and known.kind == "poll") and _is_own(thing, place, _thing_name(device))
    if not there and known is None:
        raise BadConfig(f"device {device!r} was never enrolled", next="fleetfold devices")

    def revoked(old: Credential | None) -> Credential:
        known = old or Credential(device=device)
        return replace(known, revoked_at=now) if known.counts else known

    change(records, device, revoked)
    close_box(records, device)
    said = Presence(device=device, online=False, available=False, reason=REVOKED)
    Ledger(records, alone=False).amend([device], lambda entry: heard(entry, said, now))
    if known and known.kind == "poll":
        return "and not heard any more; an update that it is at may still be put there for an hour"
    if there:
        _void(thing, place, device)
    return _part(data, device)


def clear(iot: Any, records: Records, place: Place) -> list[str]:
    """Remove all things of the fleet with their certificates, of which the records know the older ones. →
    their names. What somebody else has put into the fleet's group stays."""
    removed = []
    group = Service(iot, f"thing group {place.group}")
    for name in _pages(group, "list_things_in_thing_group", "things", thingGroupName=place.group):
        if _attributes(Service(iot, f"thing {name}"), name).get(FLEET) == place.fleet:
            remove(iot, records, place, name)
            removed.append(name)
    return removed


def remove(iot: Any, records: Records, place: Place, device: str) -> None:
    """Remove one of the fleet's things, with its certificates."""
    thing = Service(iot, f"thing {device}")
    past = _void(thing, place, device) | set(_spent(newest(records, device)))
    for id in sorted(past):
        _ask_away(thing, "delete_certificate", certificateId=id, forceDelete=True)
    _ask_away(thing, "delete_thing", thingName=device)


def newest(records: Records, device: str) -> Credential | None:
    """The device's newest credential, whether it counts or not; None for one that came by a claim."""
    record = records.get(CREDENTIALS + device)
    return None if record is None else _CREDENTIAL.decode(record.value)


def credentials(records: Records) -> list[Credential]:
    """The newest one of each device that was enrolled by name."""
    return [_CREDENTIAL.decode(record.value) for _, record in records.scan(CREDENTIALS)]


def change(records: Records, device: str, how: Callable[[Credential | None], Credential]) -> Credential:
    while True:
        record = records.get(CREDENTIALS + device)
        old = _CREDENTIAL.decode(record.value) if record else None
        new = how(old)
        if new == old or records.swap(CREDENTIALS + device, encode(new), record.version if record else 0):
            return new


# Keys


def signing_request(name: str) -> tuple[str, str]:
    """A signing request, and the key that it is for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return signed.public_bytes(Encoding.PEM).decode(), secret.decode()


def _checked(csr: str) -> str:
    """What IoT Core refuses it tells in its own words; this much is seen here."""
    try:
        if x509.load_pem_x509_csr(csr.encode()).is_signature_valid:
            return csr
    except ValueError:
        pass
    raise BadConfig("this is no signing request in PEM, signed by its own key", next="fleetfold agent csr")


# Things


def _thing_name(device: str) -> str:
    if not _THING.fullmatch(checked_name(device, "device")):
        raise BadConfig(
            f"device {device!r}: IoT Core's things have letters, digits, '_' and '-' in their names"
        )
    return device


def _make(thing: Service, place: Place, device: str) -> None:
    """Have the thing, in the fleet's group."""
    if not _is_own(thing, place, device):
        about = {"attributes": {FLEET: place.fleet}}
        with suppress(Declined):  # somebody else was first: with the same attributes, or it is found below
            thing.ask("create_thing", expected=[_THERE], thingName=device, attributePayload=about)
        _is_own(thing, place, device)
    thing.ask("add_thing_to_thing_group", thingName=device, thingGroupName=place.group)


def _is_own(thing: Service, place: Place, device: str) -> bool:
    """Whether there is such a thing. Raises BadConfig for one that is not of this fleet."""
    try:
        of = _attributes(thing, device).get(FLEET)
    except Declined:
        return False
    if of != place.fleet:
        whose = f"is of fleet {of}" if of else "is of no fleet"
        raise BadConfig(
            f"there is a thing {device} in this account already, which {whose}: it is left as it is",
            next="fleetfold enroll ANOTHER_NAME --aws",
        )
    return True


def _attributes(thing: Service, device: str) -> dict[str, str]:
    """Raises Declined if there is none."""
    found = thing.ask("describe_thing", expected=[_ABSENT], thingName=device)
    attributes: dict[str, str] = found.get("attributes", {})
    return attributes


def _void(thing: Service, place: Place, device: str, keep: str = "") -> set[str]:
    """Have no certificate of the thing count but `keep`. → the ids of the others. The thing is detached last:
    by it they are found again."""
    others = set()
    for arn in _pages(thing, "list_thing_principals", "principals", thingName=device):
        id = arn.rpartition("cert/")[2]
        if id not in (arn, keep):
            _ask_away(thing, "update_certificate", certificateId=id, newStatus="INACTIVE")
            _ask_away(thing, "detach_policy", policyName=place.policy, target=arn)
            _ask_away(thing, "detach_thing_principal", thingName=device, principal=arn)
            others.add(id)
    return others


def _ask_away(thing: Service, operation: str, **about: Any) -> None:
    """What is not there (any more) is well so."""
    with suppress(Declined):
        thing.ask(operation, expected=[_ABSENT], **about)


def _pages(of: Service, operation: str, member: str, **about: str) -> list[str]:
    found: list[str] = []
    page = of.ask(operation, **about)
    while True:
        found += page.get(member, [])
        if not page.get("nextToken"):
            return found
        page = of.ask(operation, **about, nextToken=page["nextToken"])


def _part(data: Any, device: str) -> str:
    """End the device's connection, if there is one; no last will is published for it. Without this IoT Core
    does it too, within minutes of the certificate's end."""
    connection = Service(data, f"the connection of {device}", tries=2)
    about = {"clientId": device, "cleanSession": True, "preventWillMessage": True}
    try:
        connection.ask("delete_connection", expected=[_ABSENT], **about)
    except Declined:
        return "it was not connected"
    except Unavailable as error:
        return f"its connection, if it has one, ends within minutes: {error.sentence}"
    return "and cut off"


def _enlist(records: Records, device: str) -> None:
    ledger = Ledger(records, alone=False)
    there = Presence(device=device, online=False)
    ledger.register(Device(name=device, says=there))

    def back(entry: Device) -> Device:
        return replace(entry, says=there) if entry.says and entry.says.reason == REVOKED else entry

    ledger.amend([device], back)


def _spent(old: Credential | None) -> tuple[str, ...]:
    """Ids of certificates."""
    return (*old.past, *([old.id] if old.id and old.kind == "mqtt" else [])) if old else ()
