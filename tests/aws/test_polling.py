"""What the functions do with devices that have no connection, and with those that nobody enrolled by name."""

import base64
import json
from typing import Any

import msgspec
import pytest

from fleetfold import layout
from fleetfold.adapters.memory import MemoryObjects, MemoryRecords
from fleetfold.adapters.poll_bus import PollBus, open_box
from fleetfold.aws import steps
from fleetfold.aws.mail import Message
from fleetfold.errors import Unavailable
from fleetfold.ledger import Ledger
from fleetfold.messages import Mail, Presence, Words, encode
from fleetfold.round.fleet import Device
from fleetfold.wiring.aws import Cloud


class Keys:
    """Addresses that are the keys."""

    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return key

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        return key


class Site:
    def __init__(self) -> None:
        self.records, self.objects = MemoryRecords(), MemoryObjects()
        self.ignored: list[str] = []
        self.troubled: list[str] = []
        self.cloud = self.with_records(self.records)
        self.ledger = Ledger(self.records)

    def with_records(self, records: Any) -> Cloud:
        nobody: Any = None
        return Cloud(
            records=records, objects=self.objects, uploads=nobody, signer=Keys(), alarm=nobody,
            workflow=nobody, bus=nobody, clock=lambda: 1000.0, ignored=self.ignored.append,
            troubled=self.troubled.append,
            polled=PollBus(records, self.objects, Keys(), lambda: 1000.0),
        )  # fmt: skip

    def enroll(self, device: str) -> str:
        self.ledger.register(Device(name=device))
        return open_box(self.records, device)[0]

    def put(self, key: str, *said: tuple[str, bytes]) -> Message:
        words = Words(said=tuple((word, payload.decode()) for word, payload in said))
        self.objects.put(key, [encode(words)])
        event = {"eventName": "ObjectCreated:Put", "s3": {"object": {"key": key}}}
        return Message("m1", json.dumps({"Records": [event]}), 900.0)


@pytest.fixture
def site() -> Site:
    return Site()


THERE = Presence(device="meter-1", battery=0.5)


def test_what_a_polling_device_puts_there_is_heard_and_brings_its_next_addresses(site: Site) -> None:
    life = site.enroll("meter-1")
    message = site.put(layout.words("meter-1", life, 1), ("presence", encode(THERE)), ("nonsense", b"{}"))
    assert steps.collect(site.cloud, [message]) == []
    (entry,) = site.ledger.fleet()
    assert entry.says == THERE
    mail = msgspec.json.decode(site.objects._data[layout.mail("meter-1", life, 1)], type=Mail)
    assert mail.say == layout.words("meter-1", life, 2)
    assert mail.heard
    assert [why for why in site.ignored if "nonsense" in why]
    assert not [why for why in site.ignored if "no update" in why]
    assert steps.collect(site.cloud, [message]) == [], "the same again changes nothing that matters"


def test_words_that_cannot_be_taken_now_come_again_before_they_are_acknowledged(site: Site) -> None:
    life = site.enroll("meter-1")
    message = site.put(layout.words("meter-1", life, 1), ("presence", encode(THERE)))

    class Busy:
        def __getattr__(self, name: str) -> Any:
            return getattr(site.records, name)

        def swap(self, key: str, value: bytes, expect: int) -> bool:
            raise Unavailable("the table is busy")

    assert steps.collect(site.with_records(Busy()), [message]) == ["m1"]
    assert layout.mail("meter-1", life, 1) not in site.objects._data
    assert steps.collect(site.cloud, [message]) == []
    assert site.ledger.fleet()[0].says == THERE


def test_nobody_speaks_for_another_by_mail(site: Site) -> None:
    life = site.enroll("meter-1")
    site.enroll("meter-2")
    message = site.put(
        layout.words("meter-1", life, 1), ("presence", encode(Presence(device="meter-2", battery=0.1)))
    )
    steps.collect(site.cloud, [message])
    assert not [entry for entry in site.ledger.fleet() if entry.says]
    assert [why for why in site.ignored if "in the name of another" in why]


def said(device: str, presence: Presence) -> Message:
    body = {"device": device, "word": "presence", "said": base64.b64encode(encode(presence)).decode()}
    return Message("m1", json.dumps(body), 900.0)


def test_who_came_by_a_claim_is_in_the_registry_when_it_says_that_it_is_there(site: Site) -> None:
    there = Presence(device="press-9", battery=0.5)
    assert steps.status(site.cloud, [said("press-9", there)]) == []
    assert [(entry.name, entry.says) for entry in site.ledger.fleet()] == [("press-9", there)]
    assert not site.ignored


def test_who_only_came_or_left_by_the_brokers_word_may_be_anybody_of_the_account(site: Site) -> None:
    about = {"clientId": "press-9", "eventType": "connected", "timestamp": 900_000, "versionNumber": 0}
    steps.status(site.cloud, [Message("m1", json.dumps({"lifecycle": about}), 900.0)])
    steps.status(site.cloud, [said("press-8", Presence(device="press-8", online=False))])
    assert not site.ledger.fleet()
    assert len([why for why in site.ignored if "does not belong" in why]) == 2
