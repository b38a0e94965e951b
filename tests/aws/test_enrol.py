"""Things, certificates and records of a fleet, over moto's IoT: an emulator. It proves neither policies nor
that a certificate lets anybody in, and signs what has another key than the request."""

import json
import ssl
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from moto import mock_aws

from fleetfold import bundle
from fleetfold.adapters.memory import MemoryRecords
from fleetfold.aws import claims
from fleetfold.aws.enrol import ROOTS, Account, Place, clear, enroll, newest, revoke
from fleetfold.aws.policies import device_policy
from fleetfold.device import keys
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.ledger import Ledger
from fleetfold.messages import Presence
from fleetfold.round.fleet import heard

PLACE = Place(
    fleet="main", policy="main-device", group="main", endpoint="x-ats.iot.eu-central-1.amazonaws.com"
)
REGION, ACCOUNT = "eu-central-1", "123456789012"
A_KEY = rsa.generate_private_key(65537, 2048)


class Connections:
    """Of devices, at boto3's client `iot-data`, which in moto has none."""

    def __init__(self, *there: str) -> None:
        self.there, self.asked = set(there), list[dict[str, Any]]()

    def delete_connection(self, **asked: Any) -> None:
        self.asked.append(asked)
        if asked["clientId"] not in self.there:
            raise ClientError({"Error": {"Code": "ResourceNotFoundException"}}, "DeleteConnection")
        self.there.remove(asked["clientId"])


class Dies(Exception):
    pass


class Mortal:
    """A client whose process dies at call `at`, before it has an effect or right after."""

    def __init__(self, client: Any, at: int, *, after: bool) -> None:
        self._client, self._left, self._after = client, at, after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*what: Any, **about: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Dies
            try:
                return getattr(self._client, name)(*what, **about)
            finally:
                if self._left == 0:
                    raise Dies

        return call


@pytest.fixture
def iot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    # The emulator makes a key of its own for each certificate; one will do.
    monkeypatch.setattr("moto.iot.models.rsa.generate_private_key", lambda **_: A_KEY)
    with mock_aws():
        client = boto3.Session().client("iot", region_name=REGION)
        client.create_policy(
            policyName=PLACE.policy, policyDocument=json.dumps(device_policy(REGION, ACCOUNT, PLACE.fleet))
        )
        client.create_thing_group(thingGroupName=PLACE.group)
        yield client
        client.close()


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords()


def counting(iot: Any) -> list[str]:
    """Ids of the certificates that let somebody in."""
    found = iot.list_certificates()["certificates"]
    return [each["certificateId"] for each in found if each["status"] == "ACTIVE"]


def of_thing(iot: Any, device: str) -> list[str]:
    arns = iot.list_thing_principals(thingName=device)["principals"]
    return [arn.rpartition("/")[2] for arn in arns]


def with_policy(iot: Any) -> list[str]:
    arns = iot.list_targets_for_policy(policyName=PLACE.policy)["targets"]
    return [arn.rpartition("/")[2] for arn in arns]


def right(iot: Any, records: MemoryRecords, device: str = "press-7") -> bool:
    """Whether exactly one certificate counts, all that it needs is attached, and the record names it."""
    known = newest(records, device)
    assert known is not None
    assert known.counts
    assert counting(iot) == of_thing(iot, device) == with_policy(iot) == [known.id]
    assert [entry.name for entry in Ledger(records).fleet()] == [device]
    group = iot.list_things_in_thing_group(thingGroupName=PLACE.group)["things"]
    return bool(group == [device])


def test_a_device_is_enrolled_as_a_thing_with_a_certificate_for_a_key_that_aws_never_sees(
    iot: Any, records: MemoryRecords
) -> None:
    given = enroll(iot, records, PLACE, "press-7", now=1000.0)
    assert right(iot, records)
    assert iot.describe_thing(thingName="press-7")["attributes"] == {"fleet": "main"}
    assert (given.fleet, given.device, given.door) == ("main", "press-7", "")
    assert given.brokers == (f"mqtts://{PLACE.endpoint}:8883", f"mqtts://{PLACE.endpoint}:443")
    assert load_pem_private_key(given.key.encode(), None)
    assert "Root CA" in given.authority
    assert "BEGIN CERTIFICATE" in given.certificate


def test_a_key_that_was_made_on_the_device_stays_there(
    iot: Any, records: MemoryRecords, tmp_path: Path
) -> None:
    keys.request("press-7", tmp_path / "press-7.csr")
    given = enroll(iot, records, PLACE, "press-7", 1000.0, (tmp_path / "press-7.csr").read_text())
    assert given.key == ""
    assert right(iot, records)
    for wrong in ("", "nothing", (tmp_path / "press-7.key").read_text()):
        if wrong:
            with pytest.raises(BadConfig, match="no signing request"):
                enroll(iot, records, PLACE, "press-8", 1000.0, wrong)


def test_who_is_enrolled_again_comes_in_by_the_new_certificate_alone(
    iot: Any, records: MemoryRecords
) -> None:
    enroll(iot, records, PLACE, "press-7", 1000.0)
    first = newest(records, "press-7")
    enroll(iot, records, PLACE, "press-7", 2000.0)
    assert right(iot, records)
    second = newest(records, "press-7")
    assert first
    assert second
    assert second.past == (first.id,)


def test_who_is_revoked_is_cut_off_and_not_invited_any_more(iot: Any, records: MemoryRecords) -> None:
    enroll(iot, records, PLACE, "press-7", 1000.0)
    connections = Connections("press-7")
    assert revoke(iot, connections, records, PLACE, "press-7", 2000.0) == "and cut off"
    assert counting(iot) == of_thing(iot, "press-7") == with_policy(iot) == []
    assert connections.asked == [{"clientId": "press-7", "cleanSession": True, "preventWillMessage": True}]
    (entry,) = Ledger(records).fleet()
    assert entry.says == Presence(device="press-7", online=False, available=False, reason="revoked")
    assert "not connected" in revoke(iot, connections, records, PLACE, "press-7", 3000.0)
    known = newest(records, "press-7")
    assert known
    assert known.revoked_at == 2000.0
    enroll(iot, records, PLACE, "press-7", 4000.0)
    assert right(iot, records)
    (entry,) = Ledger(records).fleet()
    assert entry.says == Presence(device="press-7", online=False)


def test_a_device_that_came_by_a_claim_can_be_revoked_though_no_record_names_its_certificate(
    iot: Any, records: MemoryRecords
) -> None:
    iot.create_thing(thingName="press-9", attributePayload={"attributes": {"fleet": "main"}})
    made = iot.create_keys_and_certificate(setAsActive=True)
    iot.attach_policy(policyName=PLACE.policy, target=made["certificateArn"])
    iot.attach_thing_principal(thingName="press-9", principal=made["certificateArn"])
    revoke(iot, Connections(), records, PLACE, "press-9", 2000.0)
    assert counting(iot) == of_thing(iot, "press-9") == []


def test_who_was_never_enrolled_cannot_be_revoked(iot: Any, records: MemoryRecords) -> None:
    with pytest.raises(BadConfig, match="never enrolled"):
        revoke(iot, Connections(), records, PLACE, "press-7", 1000.0)


@pytest.mark.parametrize("attributes", [{}, {"fleet": "other"}])
def test_a_thing_that_is_not_of_the_fleet_is_left_as_it_is(
    iot: Any, records: MemoryRecords, attributes: dict[str, str]
) -> None:
    iot.create_thing(thingName="press-7", attributePayload={"attributes": attributes})
    made = iot.create_keys_and_certificate(setAsActive=True)
    iot.attach_thing_principal(thingName="press-7", principal=made["certificateArn"])
    for trial in (
        lambda: enroll(iot, records, PLACE, "press-7", 1000.0),
        lambda: revoke(iot, Connections("press-7"), records, PLACE, "press-7", 1000.0),
    ):
        with pytest.raises(BadConfig, match="left as it is"):
            trial()
    assert counting(iot) == of_thing(iot, "press-7") == [made["certificateId"]]
    assert not Ledger(records).fleet()


@pytest.mark.parametrize("name", ["a.b", "../x", "", "x" * 65])
def test_a_name_that_no_thing_can_have_is_refused_before_anything_is_made(
    iot: Any, records: MemoryRecords, name: str
) -> None:
    with pytest.raises(BadConfig, match="name"):
        enroll(iot, records, PLACE, name, 1000.0)
    assert not iot.list_things()["things"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("known", [False, True], ids=["new", "again"])
def test_an_enrolment_that_dies_at_any_step_is_right_when_it_is_run_again(
    iot: Any, records: MemoryRecords, after: bool, known: bool
) -> None:
    for mortal in ("iot", "records"):
        for at in range(1, 100):
            if known:
                enroll(iot, records, PLACE, "press-7", 900.0)
            try:
                clients = [Mortal(c, at, after=after) if mortal == name else c
                           for name, c in (("iot", iot), ("records", records))]  # fmt: skip
                enroll(clients[0], clients[1], PLACE, "press-7", 1000.0)
            except Dies:
                assert len(set(counting(iot)) & set(with_policy(iot))) <= 2
                enroll(iot, records, PLACE, "press-7", 1100.0)
                assert right(iot, records)
                clear(iot, records, PLACE)
                records.__init__()  # type: ignore[misc]
                continue
            break
        assert at > 4


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_revocation_that_dies_at_any_step_is_right_when_it_is_run_again(
    iot: Any, records: MemoryRecords, after: bool
) -> None:
    for at in range(1, 100):
        enroll(iot, records, PLACE, "press-7", 900.0)
        try:
            revoke(Mortal(iot, at, after=after), Connections(), records, PLACE, "press-7", 1000.0)
        except Dies:
            revoke(iot, Connections(), records, PLACE, "press-7", 1100.0)
            assert counting(iot) == of_thing(iot, "press-7") == with_policy(iot) == []
            continue
        break
    assert at > 4


def test_of_two_enrolments_at_once_one_counts_and_the_other_is_told(iot: Any, records: MemoryRecords) -> None:
    class Between:
        """Somebody else enrols the same device when this one's certificate is about to be activated."""

        done = False

        def __getattr__(self, name: str) -> Any:
            if name == "update_certificate" and not self.done:
                self.done = True
                enroll(iot, records, PLACE, "press-7", 1000.0)
            return getattr(iot, name)

    with pytest.raises(Unavailable, match="at the same time"):
        enroll(Between(), records, PLACE, "press-7", 1000.0)
    assert right(iot, records)


def test_what_the_registry_knows_of_a_device_outlives_its_enrolment(iot: Any, records: MemoryRecords) -> None:
    enroll(iot, records, PLACE, "press-7", 1000.0)
    ledger, said = Ledger(records), Presence(device="press-7", battery=0.5)
    ledger.amend(["press-7"], lambda entry: heard(entry, said, 1500.0))
    enroll(iot, records, PLACE, "press-7", 2000.0)
    assert [(entry.last_seen, entry.says) for entry in ledger.fleet()] == [(1500.0, said)]


def test_when_all_is_cleared_nothing_of_the_fleet_is_left_and_nothing_else_is_gone(
    iot: Any, records: MemoryRecords
) -> None:
    for at, device in enumerate(("a", "b", "a", "c")):
        enroll(iot, records, PLACE, device, float(at))
    revoke(iot, Connections(), records, PLACE, "c", 9.0)
    iot.create_thing(thingName="other")
    iot.add_thing_to_thing_group(thingName="other", thingGroupName=PLACE.group)
    assert clear(iot, records, PLACE) == ["a", "b", "c"]
    assert iot.list_certificates()["certificates"] == []
    assert [thing["thingName"] for thing in iot.list_things()["things"]] == ["other"]


def test_a_claim_has_the_claims_policy_and_no_more_and_all_are_revoked_at_once(
    iot: Any, records: MemoryRecords
) -> None:
    iot.create_policy(policyName="claims", policyDocument="{}")
    enroll(iot, records, PLACE, "press-7", 1000.0)
    account = Account(iot, None, records, PLACE)
    made = [claims.claim(account, "claims", "main-join") for _ in range(2)]
    assert made[0].key != made[1].key
    assert (made[0].template, made[0].brokers) == ("main-join", PLACE.brokers)
    assert len(counting(iot)) == 3
    assert len(iot.list_targets_for_policy(policyName="claims")["targets"]) == 2
    assert claims.revoke(iot, "claims") == 2
    assert claims.revoke(iot, "claims") == 0
    assert right(iot, records)


PUBLISHED = {
    "Amazon Root CA 1": "fbe3018031f9586bcbf41727e417b7d1c45c2f47f93be372a17b96b50757d5a2",
    "Amazon Root CA 2": "7f4296fc5b6a4e3b35d3c369623e364ab1af381d8fa7121533c9d6c633ea2461",
    "Amazon Root CA 3": "36abc32656acfc645c61b71613c4bf21c787f5cabbee48348d58597803d7abc9",
    "Amazon Root CA 4": "f7ecded5c66047d28ed6466b543c40e0743abe81d109254dcf845d4c2c7853c5",
}
"""SHA-256 of the roots' public keys, as https://www.amazontrust.com/repository/ has them."""


def test_the_roots_in_the_package_are_those_that_amazon_publishes() -> None:
    found = {}
    for certificate in x509.load_pem_x509_certificates(ROOTS.read_bytes()):
        der = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        found[certificate.subject.rdns[-1].rfc4514_string().removeprefix("CN=")] = sha256(der).hexdigest()
    assert found == PUBLISHED
    assert len(ssl.create_default_context(cadata=ROOTS.read_text()).get_ca_certs()) == 4


def test_a_bundle_is_read_as_it_was_written(iot: Any, records: MemoryRecords, tmp_path: Path) -> None:
    given = enroll(iot, records, PLACE, "press-7", 1000.0)
    bundle.save(given, tmp_path / "press-7.bundle")
    assert bundle.load(tmp_path / "press-7.bundle") == given
