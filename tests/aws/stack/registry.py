"""The control plane of an emulated IoT Core: things, groups, certificates by signing request, policies, and
what is attached to what. What CloudFormation makes there comes in by `stand_in`.

It does not show: rates, names of other accounts, jobs, shadows, versions of policies other than the newest.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fleetfold.hub.authority import FIRST, LAST, Authority
from tests.aws.stack.broker import username
from tests.aws.stack.rest import Refused

KINDS = {
    "AWS::IoT::TopicRule": ["RuleName", "arn:aws:iot:{region}:{account}:rule/{name}"],
    "AWS::IoT::Policy": ["PolicyName", "arn:aws:iot:{region}:{account}:policy/{name}"],
    "AWS::IoT::ThingGroup": ["ThingGroupName", "arn:aws:iot:{region}:{account}:thinggroup/{name}"],
    "AWS::IoT::ThingType": ["ThingTypeName", "arn:aws:iot:{region}:{account}:thingtype/{name}"],
    "AWS::IoT::RoleAlias": ["RoleAlias", "arn:aws:iot:{region}:{account}:rolealias/{name}"],
    "AWS::IoT::ProvisioningTemplate": [
        "TemplateName", "arn:aws:iot:{region}:{account}:provisioningtemplate/{name}",
    ],
}  # fmt: skip
"""Kinds of CloudFormation's that are made here: the property that is their name, and the form of the ARN."""


class Registry:
    """`changed(certificate's id)`: called when what a certificate may do is another. `endpoint`: what devices
    are told."""

    def __init__(
        self, authority: Authority, region: str, account: str, endpoint: str, changed: Callable[[str], None]
    ) -> None:
        self._authority, self._endpoint, self._changed = authority, endpoint, changed
        self._arn = f"arn:aws:iot:{region}:{account}"
        self.lock = threading.RLock()
        self.made: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self.things: dict[str, dict[str, Any]] = {}
        self.certificates: dict[str, dict[str, Any]] = {}
        self.members: dict[str, set[str]] = {}

    # What the emulator asks

    def by_username(self, name: str) -> dict[str, Any] | None:
        with self.lock:
            return next((one for one in self.certificates.values() if one["username"] == name), None)

    def document(self, certificate: dict[str, Any]) -> dict[str, Any]:
        """What an active certificate's policies say together; nothing for one that is not."""
        with self.lock:
            made = self.made["AWS::IoT::Policy"]
            names = certificate["policies"] if certificate["status"] == "ACTIVE" else []
            return {"Statement": [s for name in names if name in made for s in _statements(made[name])]}

    def rules(self) -> list[dict[str, Any]]:
        with self.lock:
            return list(self.made["AWS::IoT::TopicRule"].values())

    def left(self) -> dict[str, list[str]]:
        """Everything that is there, by kind."""
        with self.lock:
            found = {kind: sorted(made) for kind, made in self.made.items() if made}
            found |= {"things": sorted(self.things)} if self.things else {}
            return found | ({"certificates": sorted(self.certificates)} if self.certificates else {})

    # What CloudFormation makes

    def stand_in(self, method: str, words: list[str], body: bytes) -> dict[str, Any]:
        kind, name = words
        with self.lock:
            if method == "DELETE":
                if kind == "AWS::IoT::Policy" and any(
                    name in c["policies"] for c in self.certificates.values()
                ):
                    raise RuntimeError(f"DeleteConflictException: policy {name} is attached")
                self.made[kind].pop(name, None)
                self.members.pop(name, None)
            else:
                self.made[kind][name] = json.loads(body)
            ids = list(self.certificates) if kind == "AWS::IoT::Policy" else []
        for id in ids:
            self._changed(id)
        return {}

    # The API

    def describe_endpoint(self, endpoint_type: str = "") -> dict[str, Any]:
        return {"endpointAddress": self._endpoint}

    def create_policy(self, policy_name: str, policy_document: str, tags: Any = None) -> dict[str, Any]:
        with self.lock:
            if policy_name in self.made["AWS::IoT::Policy"]:
                raise Refused(409, "ResourceAlreadyExistsException", policy_name)
            made = {"PolicyName": policy_name, "PolicyDocument": json.loads(policy_document)}
            self.made["AWS::IoT::Policy"][policy_name] = made
        return {"policyName": policy_name, "policyArn": f"{self._arn}:policy/{policy_name}"}

    def get_policy(self, policy_name: str) -> dict[str, Any]:
        found = self._found(self.made["AWS::IoT::Policy"], policy_name)
        return {"policyName": policy_name, "policyDocument": json.dumps(found["PolicyDocument"])}

    def create_thing(
        self,
        thing_name: str,
        attribute_payload: Any = None,
        thing_type_name: str = "",
        billing_group_name: str = "",
    ) -> dict[str, Any]:
        attributes = (attribute_payload or {}).get("attributes", {})
        with self.lock:
            known = self.things.get(thing_name)
            if known is not None and known["attributes"] != attributes:
                raise Refused(409, "ResourceAlreadyExistsException", thing_name)
            self.things[thing_name] = {"attributes": attributes, "version": 1}
        return {"thingName": thing_name, "thingArn": f"{self._arn}:thing/{thing_name}"}

    def describe_thing(self, thing_name: str) -> dict[str, Any]:
        return {"thingName": thing_name, "thingArn": f"{self._arn}:thing/{thing_name}"} | self._found(
            self.things, thing_name
        )

    def delete_thing(self, thing_name: str, expected_version: int = 0) -> None:
        with self.lock:
            if any(thing_name in one["things"] for one in self.certificates.values()):
                raise Refused(400, "InvalidRequestException", "principals are attached to the thing")
            self.things.pop(thing_name, None)
            for members in self.members.values():
                members.discard(thing_name)

    def list_things(self, **how: Any) -> dict[str, Any]:
        with self.lock:
            name, value = how.get("attribute_name"), how.get("attribute_value")
            things = [
                {"thingName": thing, "thingArn": f"{self._arn}:thing/{thing}"} | about
                for thing, about in sorted(self.things.items())
                if name is None or about["attributes"].get(name) == value
            ]
        return {"things": things}

    def create_thing_group(self, thing_group_name: str, **more: Any) -> dict[str, Any]:
        with self.lock:
            self.made["AWS::IoT::ThingGroup"].setdefault(
                thing_group_name, {"ThingGroupName": thing_group_name}
            )
        return {"thingGroupName": thing_group_name}

    def add_thing_to_thing_group(self, thing_name: str, thing_group_name: str, **more: Any) -> None:
        with self.lock:
            self._found(self.things, thing_name)
            self._found(self.made["AWS::IoT::ThingGroup"], thing_group_name)
            self.members.setdefault(thing_group_name, set()).add(thing_name)

    def remove_thing_from_thing_group(self, thing_name: str, thing_group_name: str, **more: Any) -> None:
        with self.lock:
            self.members.get(thing_group_name, set()).discard(thing_name)

    def list_things_in_thing_group(self, thing_group_name: str, **more: Any) -> dict[str, Any]:
        with self.lock:
            self._found(self.made["AWS::IoT::ThingGroup"], thing_group_name)
            return {"things": sorted(self.members.get(thing_group_name, ()))}

    def create_certificate_from_csr(
        self, certificate_signing_request: str, set_as_active: bool = False
    ) -> dict[str, Any]:
        request = x509.load_pem_x509_csr(certificate_signing_request.encode())
        if not request.is_signature_valid:
            raise Refused(400, "InvalidRequestException", "the signing request's signature is wrong")
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name, serial = str(names[0].value) if names else "", x509.random_serial_number()
        made = self._signed(request, name, serial)
        id = hashlib.sha256(made.public_bytes(Encoding.DER)).hexdigest()
        with self.lock:
            self.certificates[id] = {
                "id": id, "arn": f"{self._arn}:cert/{id}", "username": username(f"{serial:x}", name),
                "serial": f"{serial:x}", "status": "ACTIVE" if set_as_active else "INACTIVE",
                "pem": made.public_bytes(Encoding.PEM).decode(), "policies": [], "things": [],
                "at": time.time(),
            }  # fmt: skip
            one = self.certificates[id]
        return {"certificateId": id, "certificateArn": one["arn"], "certificatePem": one["pem"]}

    def describe_certificate(self, certificate_id: str) -> dict[str, Any]:
        one = self._found(self.certificates, certificate_id)
        about = {"certificateId": one["id"], "certificateArn": one["arn"], "status": one["status"]}
        return {"certificateDescription": about | {"certificatePem": one["pem"]}}

    def list_certificates(self, **how: Any) -> dict[str, Any]:
        with self.lock:
            return {
                "certificates": [
                    {"certificateId": one["id"], "certificateArn": one["arn"], "status": one["status"]}
                    for one in self.certificates.values()
                ]
            }

    def update_certificate(self, certificate_id: str, new_status: str) -> None:
        self._found(self.certificates, certificate_id)["status"] = new_status
        self._changed(certificate_id)

    def delete_certificate(self, certificate_id: str, force_delete: bool = False) -> None:
        with self.lock:
            one = self._found(self.certificates, certificate_id)
            if one["status"] == "ACTIVE":
                raise Refused(409, "CertificateStateException", "the certificate is active")
            if one["things"] or (one["policies"] and not force_delete):
                raise Refused(409, "DeleteConflictException", "something is attached to the certificate")
            one["policies"] = []
        self._changed(certificate_id)
        with self.lock:
            del self.certificates[certificate_id]

    def attach_policy(self, policy_name: str, target: str) -> None:
        with self.lock:
            self._found(self.made["AWS::IoT::Policy"], policy_name)
            one = self._by_arn(target)
            one["policies"] = sorted({*one["policies"], policy_name})
        self._changed(one["id"])

    def detach_policy(self, policy_name: str, target: str) -> None:
        with self.lock:
            one = self._by_arn(target)
            one["policies"] = [name for name in one["policies"] if name != policy_name]
        self._changed(one["id"])

    def list_attached_policies(self, target: str, **how: Any) -> dict[str, Any]:
        return {"policies": [{"policyName": name} for name in self._by_arn(target)["policies"]]}

    def list_targets_for_policy(self, policy_name: str, **how: Any) -> dict[str, Any]:
        with self.lock:
            return {"targets": [c["arn"] for c in self.certificates.values() if policy_name in c["policies"]]}

    def attach_thing_principal(self, thing_name: str, principal: str, thing_principal_type: str = "") -> None:
        with self.lock:
            self._found(self.things, thing_name)
            one = self._by_arn(principal)
            if one["things"] and one["things"] != [thing_name]:
                raise Refused(409, "ResourceConflictException", "the certificate is of another thing")
            one["things"] = [thing_name]
        self._changed(one["id"])

    def detach_thing_principal(self, thing_name: str, principal: str) -> None:
        with self.lock:
            one = self._by_arn(principal)
            one["things"] = [thing for thing in one["things"] if thing != thing_name]
        self._changed(one["id"])

    def list_thing_principals(self, thing_name: str, **how: Any) -> dict[str, Any]:
        with self.lock:
            self._found(self.things, thing_name)
            return {"principals": [c["arn"] for c in self.certificates.values() if thing_name in c["things"]]}

    def list_principal_things(self, principal: str, **how: Any) -> dict[str, Any]:
        return {"things": self._by_arn(principal)["things"]}

    # Inside

    def _found(self, among: dict[str, Any], name: str) -> Any:
        with self.lock:
            if name not in among:
                raise Refused(404, "ResourceNotFoundException", name)
            return among[name]

    def _by_arn(self, arn: str) -> dict[str, Any]:
        found: dict[str, Any] = self._found(self.certificates, arn.rpartition("cert/")[2])
        return found

    def _signed(self, request: x509.CertificateSigningRequest, name: str, serial: int) -> x509.Certificate:
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, name),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:x}"),
            ]
        )
        builder = x509.CertificateBuilder(
            self._authority.certificate.subject, subject, request.public_key(), serial, FIRST, LAST
        )
        return builder.sign(self._authority.key, hashes.SHA256())


def _statements(policy: dict[str, Any]) -> list[dict[str, Any]]:
    found = policy["PolicyDocument"]["Statement"]
    return found if isinstance(found, list) else [found]
