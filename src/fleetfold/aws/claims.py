"""Claims: what many new devices share until each has a certificate of its own. Whoever holds one may become a
device of the fleet under any name that is free, and nothing else; revoke them when the devices are all in.

claim ─▶ certificate, inactive ─▶ the claims' policy ─▶ active ─▶ file          revoke ─▶ all of them void
"""

from contextlib import suppress
from typing import Any

from fleetfold.adapters.boto import Declined, Service
from fleetfold.aws.enrol import ROOTS, Account, signing_request
from fleetfold.aws.stack import Stack
from fleetfold.bundle import Claim
from fleetfold.errors import BadConfig

_ABSENT = "ResourceNotFoundException"
POLICY, TEMPLATE = "ClaimPolicy", "ProvisioningTemplate"
"""Outputs of a stack: the names of both."""


def names(stack: Stack) -> tuple[str, str]:
    """Of the claims' policy and of the provisioning template. Raises BadConfig."""
    if not all(stack.outputs.get(name) for name in (POLICY, TEMPLATE)):
        raise BadConfig(f"stack {stack.name} has nothing for claims", next="fleetfold aws deploy")
    return stack.outputs[POLICY], stack.outputs[TEMPLATE]


def claim(account: Account, policy: str, template: str) -> Claim:
    """A new one. Its key is made here, and never goes to AWS."""
    service, place = Service(account.iot, "the claim"), account.place
    request, key = signing_request("claim")
    made = service.ask("create_certificate_from_csr", certificateSigningRequest=request)
    service.ask("attach_policy", policyName=policy, target=made["certificateArn"])
    service.ask("update_certificate", certificateId=made["certificateId"], newStatus="ACTIVE")
    return Claim(
        fleet=place.fleet, template=template, brokers=place.brokers, authority=ROOTS.read_text(),
        certificate=made["certificatePem"], key=key,
    )  # fmt: skip


def revoke(iot: Any, policy: str) -> int:
    """Have no claim count any more, and delete them. Devices that came by one stay. → how many there were."""
    service = Service(iot, "the claims")
    arns, page = list[str](), service.ask("list_targets_for_policy", policyName=policy)
    while True:
        arns += [arn for arn in page.get("targets", []) if ":cert/" in arn]
        if not page.get("nextMarker"):
            break
        page = service.ask("list_targets_for_policy", policyName=policy, marker=page["nextMarker"])
    for arn in arns:
        id = arn.rpartition("/")[2]
        for operation, about in (
            ("update_certificate", {"certificateId": id, "newStatus": "INACTIVE"}),
            ("detach_policy", {"policyName": policy, "target": arn}),
            ("delete_certificate", {"certificateId": id, "forceDelete": True}),
        ):
            with suppress(Declined):
                service.ask(operation, expected=[_ABSENT], **about)
    return len(arns)
