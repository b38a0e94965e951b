"""A device's end of the bus through a nucleus, over a double of its IPC (nucleus.py)."""

import time
from collections.abc import Iterator

import msgspec
import pytest

from fleetfold import layout
from fleetfold.adapters.greengrass_link import Ipc
from fleetfold.adapters.mqtt_link import MqttLink
from fleetfold.messages import Answer, Command, Presence, Report, encode
from tests.contract.bus import report, task
from tests.device.nucleus import Nucleus
from tests.hub.wire import QUICK, soon


def topic(word: str) -> str:
    return layout.topic("main", "core-1", word)


@pytest.fixture
def nucleus() -> Nucleus:
    return Nucleus()


@pytest.fixture
def link(nucleus: Nucleus) -> Iterator[MqttLink]:
    made = link_to(nucleus)
    yield made
    made.close()


def link_to(nucleus: Nucleus) -> MqttLink:
    made = MqttLink(
        Ipc(nucleus.open, pauses=QUICK),
        "main",
        "core-1",
        time.monotonic,
    )
    made.start()
    return made


def said(nucleus: Nucleus, word: str) -> list[bytes]:
    return [each.payload for each in nucleus.said if each.topic_name == topic(word)]


def test_a_task_is_taken_and_answered_through_the_nucleus(nucleus: Nucleus, link: MqttLink) -> None:
    soon(lambda: link.connected)
    nucleus.deliver(topic("task"), encode(task("core-1", 1)), retain=True)
    assert [each.round for each in link.tasks()] == [1]
    link.report(report("core-1"))
    soon(lambda: said(nucleus, "status"))
    assert msgspec.json.decode(said(nucleus, "status")[0], type=Report) == report("core-1")
    nucleus.deliver(topic("task"), b"", retain=True)
    assert link.withdrawn()


def test_a_task_that_was_given_while_the_component_was_off_is_found(nucleus: Nucleus) -> None:
    nucleus.deliver(topic("task"), encode(task("core-1", 3)), retain=True)
    link = link_to(nucleus)
    soon(lambda: [each.round for each in link.tasks()] == [3])
    link.close()


def test_a_task_that_has_expired_is_not_wanted_any_more(nucleus: Nucleus) -> None:
    now = [0.0]
    link = MqttLink(
        Ipc(nucleus.open, pauses=QUICK),
        "main",
        "core-1",
        lambda: now[0],
    )
    link.start()
    soon(lambda: link.connected)
    nucleus.deliver(topic("task"), encode(task("core-1", 1)), expires=60)
    assert link.tasks()
    assert not link.withdrawn()
    now[0] = 100.0
    assert link.withdrawn()
    link.close()


def test_what_is_said_before_there_is_a_nucleus_is_said_when_there_is(nucleus: Nucleus) -> None:
    nucleus.there = False
    link = link_to(nucleus)
    link.report(report("core-1"))
    soon(lambda: "no socket" in link.why)
    nucleus.there = True
    soon(lambda: said(nucleus, "status"))
    link.close()


def test_a_nucleus_that_starts_again_is_found_again_and_told_again_who_is_there(
    nucleus: Nucleus, link: MqttLink
) -> None:
    soon(lambda: link.connected)
    link.forgotten()
    link.say(Presence(device="core-1", examples=3))
    soon(lambda: len(said(nucleus, "presence")) == 1)
    nucleus.stop()
    soon(lambda: not link.connected)
    nucleus.there = True
    soon(lambda: link.connected)
    assert link.forgotten(), "what was answered last is told again"
    soon(lambda: len(said(nucleus, "presence")) == 2)
    nucleus.deliver(topic("command"), encode(Command(id="1", device="core-1", what="cancel")))
    assert [each.id for each in link.commands()] == ["1"]
    time.sleep(0.1)
    assert len(nucleus.clients) == 1, "streams of the old client that end late end no new one"


def test_without_a_way_to_iot_core_it_is_not_connected_and_what_it_says_is_the_nucleus_s_to_keep(
    nucleus: Nucleus, link: MqttLink
) -> None:
    soon(lambda: link.connected)
    nucleus.connect(False)
    assert not link.connected
    assert "IoT Core" in link.why
    link.report(report("core-1"))
    soon(lambda: said(nucleus, "status"))
    nucleus.connect(True)
    assert link.connected


def test_a_nucleus_that_tells_nothing_of_its_connection_is_taken_to_have_one() -> None:
    nucleus = Nucleus(tells=False)
    link = link_to(nucleus)
    soon(lambda: link.connected)
    link.close()


def test_an_answer_names_its_command_and_who_leaves_says_so(nucleus: Nucleus) -> None:
    link = link_to(nucleus)
    soon(lambda: link.connected)
    link.answer(Answer(id="7", device="core-1", state="done"))
    link.close()
    assert [each.correlation_data for each in nucleus.said if each.topic_name == topic("answer")] == [b"7"]
    gone = msgspec.json.decode(said(nucleus, "presence")[-1], type=Presence)
    assert not gone.online
    assert nucleus.said[-1].retain
    assert not nucleus.clients
