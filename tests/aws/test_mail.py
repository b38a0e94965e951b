"""What queues bring, by whoever: what it means, and that nobody can make it mean anything else."""

import base64
import json
import random
from functools import reduce
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfold import layout
from fleetfold.adapters.memory import MemoryObjects
from fleetfold.adapters.parted import Parted
from fleetfold.aws import mail
from fleetfold.aws.mail import Message
from fleetfold.messages import Presence, Report, encode
from fleetfold.round.fleet import Device, Sighting, sighted

KEY = layout.update(layout.round("r", 3, "train"), "d 1".replace(" ", "-"))


def created(*keys: str, objects: Any = None) -> tuple[list[Report], list[str]]:
    ignored: list[str] = []
    events = [{"eventName": "ObjectCreated:Put", "s3": {"object": {"key": key}}} for key in keys]
    messages = [Message("m", json.dumps({"Records": events}), 0.0)]
    letters = mail.created(messages, objects or MemoryObjects(), ignored.append)
    assert {mail.message_of(letter) for letter in letters} <= {"m"}
    assert len({letter.receipt for letter in letters}) == len(letters)
    return [letter.report for letter in letters], ignored


def test_an_update_that_was_put_is_as_good_as_reported() -> None:
    evaluated = layout.update(layout.round("r", 12, "evaluate"), "d")
    reports, ignored = created(KEY, evaluated)
    assert [(r.run, r.round, r.kind, r.device, r.state) for r in reports] == [
        ("r", 3, "train", "d-1", "delivered"), ("r", 12, "evaluate", "d", "delivered"),
    ]  # fmt: skip
    assert ignored == []


def test_keys_are_quoted_as_in_a_form() -> None:
    assert len(created(KEY.replace("-", "%2D").replace("/", "%2F"))[0]) == 1
    assert created(KEY.replace("-", "+"))[0] == [], "a space is in no name"


@pytest.mark.parametrize(
    "key",
    [
        layout.model("r", 3),
        layout.cohort(layout.round("r", 3, "train"), "abc"),
        layout.quarantine(layout.round("r", 3, "train"), "d"),
        "runs/r/rounds/3/updates/d.safetensors",
        "runs/r/rounds/0000003/updates/d.safetensors",
        "runs/r/rounds/000003/updates/a/b.safetensors",
        "runs/../rounds/000003/updates/d.safetensors",
        "runs/r/rounds/000003-evaluate-evaluate/updates/d.safetensors",
        "runs/r/rounds/000003/updates/d.safetensors\n",
        "commands/1.d.safetensors",
        "",
    ],
)
def test_what_is_no_update_is_nothing_to_report(key: str) -> None:
    assert created(key) == ([], ["an object that is no update"])


def test_an_update_in_parts_is_there_with_the_last_of_them_whichever_that_is() -> None:
    keys = [layout.part(KEY, n, 3) for n in range(3)]
    for order in permutations(keys):
        memory = MemoryObjects()
        objects = Parted(memory, part=4)
        found = []
        for key in order:
            memory.put(key, [b"last" if key != keys[2] else b"l"])
            found.append(len(created(key, objects=objects)[0]))
        assert found == [0, 0, 1]
        assert len(created(*keys, objects=objects)[0]) == 3, "each says so; the first one counts"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "1", '{"Records": 1}', '{"Records": [{}]}', "[" * 10_000, "\ud800"]
)
def test_what_is_no_notification_is_counted_and_does_not_come_again(body: str) -> None:
    ignored: list[str] = []
    assert mail.created([Message("m", body, 0.0)], MemoryObjects(), ignored.append) == []
    assert len(ignored) == 1


def test_the_test_event_of_a_bucket_is_nothing() -> None:
    ignored: list[str] = []
    body = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"})
    assert mail.created([Message("m", body, 0.0)], MemoryObjects(), ignored.append) == []
    assert ignored == []


def test_objects_that_are_deleted_are_nothing_to_report() -> None:
    event = {"eventName": "ObjectRemoved:Delete", "s3": {"object": {"key": KEY}}}
    ignored: list[str] = []
    body = json.dumps({"Records": [event]})
    assert mail.created([Message("m", body, 0.0)], MemoryObjects(), ignored.append) == []
    assert ignored == ["notification of ObjectRemoved:Delete"]


def test_a_batch_is_read_as_a_queue_gives_it() -> None:
    record = {"messageId": "1", "receiptHandle": "x", "body": "b", "attributes": {"SentTimestamp": "1500"}}
    event = {"Records": [record, {"messageId": "2", "body": ""}]}
    assert mail.batch(event) == [Message("1", "b", 1.5), Message("2", "", 0.0)]


# What devices say


def told(**about: Any) -> tuple[mail.Said, list[str]]:
    ignored: list[str] = []
    return mail.said([Message("m", json.dumps(about), 7.0)], ignored.append), ignored


def device_said(device: str, word: str, message: Any) -> tuple[mail.Said, list[str]]:
    return told(device=device, word=word, said=base64.b64encode(encode(message)).decode())


def test_a_failure_is_a_letter_and_a_delivery_only_a_sign_of_life() -> None:
    for state, letters in (("failed", 1), ("refused", 1), ("delivered", 0), ("progress", 0)):
        report = Report(run="r", round=1, kind="train", device="d", state=state)  # type: ignore[arg-type]
        said, ignored = device_said("d", "status", report)
        assert len(said.letters) == letters
        assert said.sightings == (("m", Sighting(device="d", at=7.0)),)
        assert ignored == []


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"device": "../x", "word": "status", "said": ""},
        {"device": "d", "word": "task", "said": ""},
        {"device": "d", "word": "status", "said": "no base64!"},
        {"device": "d", "word": "status", "said": base64.b64encode(b"{}").decode()},
        {"device": "d", "word": "presence", "said": base64.b64encode(encode(Presence(device="e"))).decode()},
        {"lifecycle": {"clientId": "a/b", "timestamp": 1, "eventType": "connected"}},
        {"lifecycle": {"clientId": "d", "timestamp": -1, "eventType": "connected"}},
        {"lifecycle": {"clientId": "d", "timestamp": 1e300, "eventType": "connected"}},
        {"lifecycle": {"clientId": "d", "timestamp": 1, "eventType": "subscribed"}},
        {"lifecycle": {"clientId": "d", "timestamp": 1, "eventType": "connected", "versionNumber": 1 << 60}},
    ],
)
def test_what_nobody_can_have_said_is_counted_and_passed_over(about: dict[str, Any]) -> None:
    said, ignored = told(**about)
    assert said == mail.Said()
    assert len(ignored) == 1


@settings(max_examples=300, deadline=None)
@given(body=st.one_of(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["Records", "s3", "object", "key", "lifecycle", "clientId", "timestamp", "eventType", "device", "word", "said", "eventName"]), x)).map(json.dumps)))  # fmt: skip  # noqa: E501
def test_whatever_comes_is_understood_or_ignored(body: str) -> None:
    ignored: list[str] = []
    mail.created([Message("m", body, 0.0)], MemoryObjects(), ignored.append)
    mail.said([Message("m", body, 0.0)], ignored.append)


# Who is there


def came(at: float, session: int) -> Sighting:
    return Sighting(device="d", at=at, session=session)


def left(at: float, session: int) -> Sighting:
    return Sighting(device="d", at=at, session=session, online=False)


def spoke(at: float, *, online: bool = True) -> Sighting:
    return Sighting(device="d", at=at, online=online, says=Presence(device="d", online=online, examples=5))


def after(*sightings: Sighting) -> Device:
    return reduce(sighted, sightings, Device(name="d"))


def is_there(device: Device) -> bool:
    assert device.says is not None
    return device.says.online


def test_a_device_whose_connection_was_replaced_is_there_in_whatever_order_that_is_told() -> None:
    story = [came(100.0, 4), spoke(100.1), came(200.0, 5), left(200.2, 4), spoke(200.1)]
    for order in permutations(story):
        assert is_there(after(*order)), order


def test_a_device_that_left_is_gone_in_whatever_order_that_is_told() -> None:
    story = [came(100.0, 4), spoke(100.1), left(300.0, 4), spoke(299.9, online=False)]
    for order in permutations(story):
        assert not is_there(after(*order)), order


@given(seed=st.integers(0, 1 << 32))
def test_what_is_told_twice_is_told_once(seed: int) -> None:
    chance = random.Random(seed)
    story = [came(100.0, 4), spoke(100.1), left(150.0, 4), came(200.0, 5), left(200.2, 4), spoke(200.1)]
    order = [chance.choice(story) for _ in range(20)] + chance.sample(story, len(story))
    assert is_there(after(*order))


def test_the_broker_counts_anew_for_a_device_that_was_away_for_long() -> None:
    gone = after(came(100.0, 17), left(200.0, 17))
    assert is_there(sighted(gone, came(5_000.0, 0)))
    assert not is_there(after(came(100.0, 17), left(200.0, 17), came(5_000.0, 0), left(5_100.0, 0)))


def test_a_last_will_counts_where_no_broker_tells() -> None:
    assert not is_there(after(spoke(1.0), spoke(2.0, online=False)))
    assert is_there(after(spoke(2.0), spoke(1.0, online=False))), "an older one does not"


def test_a_sign_of_life_is_written_down_once_a_minute() -> None:
    seen = after(Sighting(device="d", at=1_000.0))
    assert seen.last_seen == 1_000.0
    assert sighted(seen, Sighting(device="d", at=1_050.0)) is seen
    assert sighted(seen, Sighting(device="d", at=1_061.0)).last_seen == 1_061.0


def test_what_is_known_of_a_device_fits_a_record() -> None:
    assert msgspec.json.decode(encode(after(came(1e11, (1 << 53) - 1))), type=Device).life > 0
