"""What a certificate allows its holder at IoT Core. One document serves all devices: their own name is in it
as a variable, which the broker fills in from the connection, never from what a client says of itself.

device   connect as itself · publish its own four topics · subscribe to and receive its own three
claim    connect under a name that no device can have · ask for a certificate · be provisioned by one template
"""

from typing import Any

from fleetfold.errors import BadConfig
from fleetfold.layout import FROM_DEVICE, TO_DEVICE, topic

THING = "${iot:Connection.Thing.ThingName}"
"""The name of the thing that the certificate is attached to. In CloudFormation's Fn::Sub: `${!iot:…`."""
VERSION = "2012-10-17"
LONGEST = 32
"""Characters of a fleet's name on AWS: a policy has room for 2,048, and names the fleet in every topic."""
RETAINED = ("presence",)
"""Of what a device says, what the broker keeps."""
CLAIM = "claim:"
"""What the client ids of those begin with who have no name yet: a colon is in no device's name, so that
nobody with a claim can take a device's place at the broker."""
REQUEST = "$aws/certificates/create-from-csr/json"
"""The topic for a signing request; answers come on the same with /accepted or /rejected behind it."""
Document = dict[str, Any]


def device_policy(
    region: str, account: str, fleet: str, partition: str = "aws", *, thing: str = THING
) -> Document:
    """Of every device of the fleet. A certificate that is attached to no thing is allowed nothing. Raises
    BadConfig."""
    if len(fleet) > LONGEST:
        raise BadConfig(f"the fleet's name has {len(fleet)} characters, on AWS it may have {LONGEST}")

    def own(kind: str, words: tuple[str, ...]) -> list[str]:
        return [f"{_arn(region, account, partition)}:{kind}/{topic(fleet, thing, word)}" for word in words]

    return _document(
        _allow("iot:Connect", [f"{_arn(region, account, partition)}:client/{thing}"])
        | {"Condition": {"Bool": {"iot:Connection.Thing.IsAttached": ["true"]}}},
        _allow("iot:Publish", own("topic", FROM_DEVICE)),
        _allow("iot:RetainPublish", own("topic", RETAINED)),
        _allow("iot:Subscribe", own("topicfilter", TO_DEVICE)),
        _allow("iot:Receive", own("topic", TO_DEVICE)),
    )


def claim_policy(region: str, account: str, fleet: str, template: str, partition: str = "aws") -> Document:
    """Of the certificate that many new devices share until each has its own. `template`: the name of the
    provisioning template."""
    arn = _arn(region, account, partition)
    asks = (REQUEST, provision(template))
    answers = [f"{ask}/{how}" for ask in asks for how in ("accepted", "rejected")]
    return _document(
        _allow("iot:Connect", [f"{arn}:client/{CLAIM}{fleet}:*"]),  # each makes up its own
        _allow("iot:Publish", [f"{arn}:topic/{ask}" for ask in asks]),
        _allow("iot:Subscribe", [f"{arn}:topicfilter/{answer}" for answer in answers]),
        _allow("iot:Receive", [f"{arn}:topic/{answer}" for answer in answers]),
    )


def provision(template: str) -> str:
    """The topic on which a device asks to be provisioned."""
    return f"$aws/provisioning-templates/{template}/provision/json"


def provisioning_template(fleet: str, group: str, policy: str) -> Document:
    """The body of the template: a thing of the name that the device asks for, in the fleet's thing group,
    with the fleet's policy. A name that is taken stays taken: a claim makes new devices, and no device
    another's twin."""
    return {
        "Parameters": {"Device": {"Type": "String"}, "AWS::IoT::Certificate::Id": {"Type": "String"}},
        "Resources": {
            "thing": {
                "Type": "AWS::IoT::Thing",
                "Properties": {
                    "ThingName": {"Ref": "Device"},
                    "AttributePayload": {"fleet": fleet},
                    "ThingGroups": [group],
                },
                "OverrideSettings": {"AttributePayload": "FAIL", "ThingGroups": "FAIL"},
            },
            "certificate": {
                "Type": "AWS::IoT::Certificate",
                "Properties": {"CertificateId": {"Ref": "AWS::IoT::Certificate::Id"}, "Status": "Active"},
            },
            "policy": {"Type": "AWS::IoT::Policy", "Properties": {"PolicyName": policy}},
        },
    }


def _arn(region: str, account: str, partition: str) -> str:
    return f"arn:{partition}:iot:{region}:{account}"


def _allow(action: str, resources: list[str]) -> Document:
    return {"Effect": "Allow", "Action": action, "Resource": resources}


def _document(*statements: Document) -> Document:
    return {"Version": VERSION, "Statement": list(statements)}
