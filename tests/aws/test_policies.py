"""What the policies of devices and of claims allow, by a matcher of ours: the real broker was not asked."""

import json

import pytest

from fleetfold.aws.policies import (
    CLAIM,
    LONGEST,
    claim_policy,
    device_policy,
    provision,
    provisioning_template,
)
from fleetfold.errors import BadConfig
from fleetfold.layout import FROM_DEVICE, TO_DEVICE, topic, valid_name
from tests.aws.iot_policy import allows

DEVICE = device_policy("eu-central-1", "123456789012", "main")
OF_CLAIM = claim_policy("eu-central-1", "123456789012", "main", "main-join")


def as_thing(name: str) -> dict[str, str]:
    """What the broker knows of a connection by a certificate that is attached to that thing."""
    return {"iot:Connection.Thing.ThingName": name, "iot:Connection.Thing.IsAttached": "true"}


def can(name: str, action: str, resource: str) -> bool:
    return allows(DEVICE, f"iot:{action}", resource, as_thing(name))


def test_a_device_connects_under_its_own_name_alone() -> None:
    assert can("press-7", "Connect", "client/press-7")
    assert not can("press-7", "Connect", "client/press-8")
    assert not allows(DEVICE, "iot:Connect", "client/press-7", {"iot:Connection.Thing.IsAttached": "false"})
    unattached = {**as_thing("press-7"), "iot:Connection.Thing.IsAttached": "false"}
    assert not allows(DEVICE, "iot:Connect", "client/press-7", unattached)


@pytest.mark.parametrize("word", FROM_DEVICE)
def test_a_device_says_what_it_has_to_say_on_its_own_topics_alone(word: str) -> None:
    assert can("press-7", "Publish", f"topic/{topic('main', 'press-7', word)}")
    assert not can("press-7", "Publish", f"topic/{topic('main', 'press-8', word)}")
    assert not can("press-7", "Publish", f"topic/{topic('other', 'press-7', word)}")
    assert can("press-7", "RetainPublish", f"topic/{topic('main', 'press-7', word)}") == (word == "presence")


@pytest.mark.parametrize("word", TO_DEVICE)
def test_a_device_hears_what_is_said_to_it_alone(word: str) -> None:
    for action, kind in (("Subscribe", "topicfilter"), ("Receive", "topic")):
        assert can("press-7", action, f"{kind}/{topic('main', 'press-7', word)}")
        for other in ("press-8", "+", "#"):
            assert not can("press-7", action, f"{kind}/{topic('main', other, word)}")
    assert not can("press-7", "Publish", f"topic/{topic('main', 'press-7', word)}")
    assert not can("press-7", "Subscribe", "topicfilter/#")


def test_a_name_with_a_wildcard_in_it_would_be_no_wildcard() -> None:
    assert not can("*", "Publish", f"topic/{topic('main', 'press-7', 'status')}")


def test_a_claim_asks_for_a_certificate_and_a_name_and_can_do_nothing_else() -> None:
    def claim(action: str, resource: str) -> bool:
        return allows(OF_CLAIM, f"iot:{action}", resource, {})

    assert claim("Connect", f"client/{CLAIM}main:0123")
    assert not claim("Connect", "client/press-7")
    for ask in ("$aws/certificates/create-from-csr/json", provision("main-join")):
        assert claim("Publish", f"topic/{ask}")
        for how in ("accepted", "rejected"):
            assert claim("Subscribe", f"topicfilter/{ask}/{how}")
            assert claim("Receive", f"topic/{ask}/{how}")
    assert not claim("Publish", f"topic/{provision('another')}")
    assert not claim("Publish", "topic/$aws/certificates/create/json"), "that one makes keys at AWS"
    assert not any(claim("Publish", f"topic/{topic('main', 'press-7', word)}") for word in FROM_DEVICE)


def test_no_device_can_have_the_client_id_of_a_claim() -> None:
    assert not valid_name(f"{CLAIM}main:0123")


def test_a_claim_makes_no_second_device_of_a_name_that_is_taken() -> None:
    thing = provisioning_template("main", "fleet-main", "fleet-main-device")["Resources"]["thing"]
    assert set(thing["OverrideSettings"].values()) == {"FAIL"}


def test_the_documents_are_within_what_iot_core_takes() -> None:
    long = "f" * LONGEST
    for document in (
        device_policy("ap-southeast-4", "123456789012", long, "aws-us-gov"),
        claim_policy("ap-southeast-4", "123456789012", long, "t" * 36, "aws-us-gov"),
    ):
        assert len(json.dumps(document, separators=(",", ":"))) <= 2048
    with pytest.raises(BadConfig, match="33 characters"):
        device_policy("eu-central-1", "123456789012", long + "f")
    assert len(json.dumps(provisioning_template(long, "g" * 128, "p" * 128))) <= 10_240
