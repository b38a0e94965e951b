"""The bus over a real Mosquitto with mutual TLS: the contract of every bus, and what only a wire has."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.mqtt_bus import MqttBus
from fleetfold.adapters.mqtt_link import MqttLink
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.hub.broker import Broker
from fleetfold.messages import LIMIT, Answer, Ask, Command, Grant, Presence, Task, encode
from fleetfold.ports import Control, Link
from tests.contract.bus import BusContract, report, task
from tests.hub.conftest import DEVICES, Enrolled
from tests.hub.wire import Settled, bus_at, connection_of, link_at, soon

FAR = 4e9
"""A deadline that is not near."""


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def bus(site: Enrolled, broker: Broker, log: list[str]) -> Iterator[MqttBus]:
    """The hub's end, with nothing left of an earlier test."""
    made = bus_at(site, log)
    made.withdraw(DEVICES)
    made.acknowledge([letter.receipt for letter in made.letters()])
    yield made
    made._connection.close()


@pytest.fixture
def open_link(site: Enrolled, broker: Broker) -> Iterator[Callable[[str], MqttLink]]:
    made: dict[str, MqttLink] = {}

    def opened(device: str) -> MqttLink:
        if device in made:
            made[device].close()
        made[device] = link_at(site, device)
        return made[device]

    yield opened
    for link in made.values():
        link.close()


class TestMqttBus(BusContract):
    @pytest.fixture
    def links(self, bus: MqttBus, open_link: Callable[[str], MqttLink]) -> Callable[[list[str]], Link]:
        everybody: dict[str, MqttLink] = {}

        def opened(devices: list[str]) -> Link:
            mine = {device: open_link(device) for device in devices if device != "nobody"}
            everybody.update(mine)
            self.everybody = everybody
            return Settled(bus, mine)

        self.everybody = everybody
        return opened

    @pytest.fixture
    def control(self, bus: MqttBus) -> Control:
        test = self

        class All(Settled):
            def letters(self):  # type: ignore[no-untyped-def]
                self._links = test.everybody
                return super().letters()

        return All(bus, {})


def test_a_report_that_was_not_acknowledged_comes_again_to_the_next_hub(
    site: Enrolled, bus: MqttBus, open_link: Callable[[str], MqttLink]
) -> None:
    open_link("a").report(report("a"))
    soon(bus.letters)
    bus._connection._client.socket().close()  # as a kill does: no goodbye  # type: ignore[union-attr]
    bus._connection.close()
    after = bus_at(site)
    soon(after.letters)
    letters = after.letters()
    assert [letter.report for letter in letters] == [report("a")]
    after.acknowledge([letter.receipt for letter in letters])
    after._connection.close()


def test_who_is_lost_is_said_to_be_gone_by_its_last_will(
    bus: MqttBus, open_link: Callable[[str], MqttLink]
) -> None:
    heard: dict[str, Presence] = {}

    def listen(device: str, online: bool) -> bool:
        heard.update({presence.device: presence for presence in bus.presences()})
        return device in heard and heard[device].online is online

    link = open_link("a")
    link.say(Presence(device="a", battery=0.5, link="metered"))
    soon(lambda: listen("a", True))
    assert heard["a"] == Presence(device="a", battery=0.5, link="metered")
    connection = link._connection
    connection._closing.set()
    connection._client.socket().close()  # type: ignore[union-attr]
    soon(lambda: listen("a", False))


def test_who_comes_back_says_again_that_it_is_there(
    bus: MqttBus, open_link: Callable[[str], MqttLink]
) -> None:
    link = open_link("b")
    link.say(Presence(device="b", examples=7))
    soon(lambda: any(p.examples == 7 for p in bus.presences()))
    link._connection._client.socket().close()  # type: ignore[union-attr]
    soon(lambda: any(p.examples == 7 for p in bus.presences()))


def test_a_device_that_was_off_finds_the_task_until_the_deadline(
    bus: MqttBus, open_link: Callable[[str], MqttLink]
) -> None:
    bus.invite([replace(task("a", 1), deadline=FAR)])
    link = open_link("a")
    soon(lambda: [t.round for t in link.tasks()] == [1])
    bus.invite([replace(task("b", 1), deadline=1.0)])  # long past: it lives for a second
    late = open_link("b")
    soon(lambda: late._current is None or late.withdrawn())


def test_a_task_that_is_taken_back_while_the_device_is_at_it_says_so_once(
    bus: MqttBus, open_link: Callable[[str], MqttLink]
) -> None:
    link = open_link("a")
    bus.invite([replace(task("a", 1), deadline=FAR)])
    soon(link.tasks)
    assert not link.withdrawn()
    bus.withdraw(["a"])
    soon(link.withdrawn)
    assert not link.withdrawn()


def test_fresh_addresses_are_asked_for_and_given(bus: MqttBus, open_link: Callable[[str], MqttLink]) -> None:
    link = open_link("a")
    ask = Ask(run="r", round=1, kind="train", device="a", parts=3, first=1)
    granted = Grant(run="r", round=1, kind="train", device="a", parts=3, first=1, updates=("x", "y"))

    def answer() -> bool:
        for each in bus.asks():
            assert each == ask
            bus.grant(replace(granted, round=9))  # of something else
            bus.grant(granted)
            return True
        return False

    import threading

    hub = threading.Thread(target=soon, args=(answer,))
    hub.start()
    assert link.ask(ask, 20.0) == granted
    hub.join()
    with pytest.raises(Unavailable, match="no answer"):
        link.ask(ask, 0.1)


def test_a_command_is_answered_under_its_own_id(bus: MqttBus, open_link: Callable[[str], MqttLink]) -> None:
    link = open_link("c")
    bus.command(Command(id="7", device="c", what="evaluate"))
    found: list[Command] = []
    soon(lambda: found.extend(link.commands()) or found)  # type: ignore[func-returns-value]
    assert found[0].what == "evaluate"
    link.answer(Answer(id="7", device="c", state="done", metrics={"loss": 1.0}))
    soon(lambda: [a.metrics for a in bus.answers() if a.id == "7"] == [{"loss": 1.0}])


NONSENSE = [
    ("status", b"{", "status that is none"),
    ("status", b"\xff\xfe", "status that is none"),
    ("status", b"[" * 50_000, "status of more than"),
    ("status", b"[" * 30_000, "status that is none"),
    ("status", encode(replace(report("a"), v=99)), "version 99"),
    ("status", encode(report("b")), "in the name of another"),
    ("presence", b"1", "presence that is none"),
    ("answer", b"null", "answer that is none"),
    ("ask", b'{"v": 1}', "ask that is none"),
    ("status", b"x" * (LIMIT - 100), "status of more than"),
]


def test_what_means_nothing_is_counted_logged_once_and_ignored(
    bus: MqttBus, open_link: Callable[[str], MqttLink], log: list[str], site: Enrolled
) -> None:
    link = open_link("a")
    for _ in range(2):
        for word, payload, _reason in NONSENSE:
            link._connection.publish(layout.topic(site.place.fleet, "a", word), payload, False)
    link.report(report("a"))
    soon(bus.letters)
    assert [letter.report for letter in bus.letters()] == [report("a")]
    for _word, _payload, reason in NONSENSE:
        counted = [n for why, n in bus.ignored.counts.items() if reason in why]
        assert counted, f"not counted: {reason}"
        assert all(n >= 2 for n in counted)
    assert len(log) == len(set(log)) == len(bus.ignored.counts)


def test_a_task_that_does_not_fit_a_message_is_the_users_to_mend(bus: MqttBus) -> None:
    with pytest.raises(BadConfig, match="at most"):
        bus.invite([replace(task("a", 1), deadline=FAR, settings={"x": "y" * LIMIT})])


def test_a_broker_that_forgets_is_noticed_at_both_ends_and_both_come_back(
    site: Enrolled, broker: Broker, bus: MqttBus, open_link: Callable[[str], MqttLink]
) -> None:
    link = open_link("a")
    link.say(Presence(device="a", examples=3))
    bus.forgotten(), link.forgotten()
    assert broker._process is not None
    broker._process.kill()
    broker._process.wait()
    soon(lambda: not link.connected)
    with pytest.raises(Unavailable):
        bus.invite([replace(task("a", 5), deadline=FAR)])
    broker.restart()
    soon(lambda: bus.forgotten())
    soon(lambda: link.forgotten())
    soon(lambda: any(p.examples == 3 for p in bus.presences()))
    bus.invite([replace(task("a", 5), deadline=FAR)])
    soon(lambda: [t.round for t in link.tasks()] == [5])


def test_connections_without_a_thread_are_driven_by_one_loop_and_spoken_by_from_any(
    bus: MqttBus, site: Enrolled, open_link: Callable[[str], MqttLink]
) -> None:
    made = {device: connection_of(site, device) for device in DEVICES}
    links = {d: MqttLink(c, site.place.fleet, d, time.monotonic) for d, c in made.items()}
    wanting: queue.SimpleQueue[str] = queue.SimpleQueue()
    standing = dict[str, bool]()

    def turned() -> bool:
        with suppress(queue.Empty):
            while True:
                made[wanting.get_nowait()].turn()
        for device, connection in made.items():
            standing[device] = connection.turn()
        return True

    for device, connection in made.items():
        connection.wanting = partial(wanting.put, device)
        connection.open()
    soon(lambda: turned() and all(link.connected for link in links.values()))
    bus.invite([task(device, 1) for device in DEVICES])
    taken = dict[str, list[Task]]()
    soon(lambda: turned() and all(taken.get(d) or taken.update({d: links[d].tasks()}) for d in DEVICES))
    assert {device: found[0].device for device, found in taken.items()} == {d: d for d in DEVICES}
    threads = [threading.Thread(target=links[d].report, args=(report(d),)) for d in DEVICES]
    for thread in threads:
        thread.start()
    soon(lambda: turned() and {letter.report.device for letter in bus.letters()} == set(DEVICES))
    other = open_link("a")  # the same device from elsewhere: the connection that was here is closed
    soon(lambda: turned() and not standing["a"])
    assert not links["a"].connected
    other.close()
    made["a"].open()
    soon(lambda: turned() and links["a"].connected)
    for connection in made.values():
        connection.close()
