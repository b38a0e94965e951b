"""The bus on IoT Core. The endpoint is an emulator of our own (tests/aws/iot_double.py), and so is the
device's end: what devices say does not come this way at all, but as letters from a queue."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from fleetfold.adapters import boto
from fleetfold.adapters.iot import LONGEST, IotBus
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.messages import LIMIT, Command, Grant, Task
from fleetfold.ports import Control, Letter
from tests.aws import moto_double
from tests.aws.iot_double import Iot, Published, serving
from tests.aws.weather import LOST, UNREACHED, Weather, refused
from tests.contract.bus import BusContract, report, task

NOW = 4e9 - 90.5
"""Ninety seconds and a half before the tasks' deadline."""


@pytest.fixture(scope="module")
def server() -> Iterator[Iot]:
    with serving() as server:
        yield server


@pytest.fixture
def iot(server: Iot) -> Iot:
    server.clear()
    return server


@pytest.fixture
def client(iot: Iot, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in moto_double.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    client = boto.client("iot-data", endpoint_url=iot.url)
    yield client
    client.close()


@pytest.fixture
def weather(client: Any) -> Weather:
    return Weather(client)


class Plain:
    """Addresses that are keys."""

    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return key

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        return key


class Noted:
    """Addresses that say what they were asked for."""

    def to_fetch(self, key: str, device: str, seconds: float) -> str:
        return f"https://store/{key}?GET&{device}&{seconds:.0f}"

    def to_deliver(self, key: str, device: str, seconds: float, most: int) -> str:
        return f"https://store/{key}?PUT&{device}&{seconds:.0f}&{most}"


class Ears:
    """A device's end that hears retained tasks alone."""

    def __init__(self, iot: Iot, devices: Sequence[str]) -> None:
        self._iot, self._devices, self._seen = iot, devices, dict[str, int]()

    def tasks(self) -> list[Task]:
        fresh = []
        for topic in (f"fleetfold/f/{device}/task" for device in self._devices):
            number, payload = self._iot.retained.get(topic, (0, b""))
            if number > self._seen.get(topic, 0):
                self._seen[topic] = number
                fresh.append(msgspec.json.decode(payload, type=Task))
        return fresh


@pytest.fixture
def bus(client: Any) -> IotBus:
    return IotBus(client, "f", Noted(), lambda: NOW, sleep=lambda seconds: None)


class TestIotBus(BusContract):
    @pytest.fixture
    def control(self, client: Any) -> Control:
        return IotBus(client, "f", Plain(), lambda: NOW)

    @pytest.fixture
    def links(self, iot: Iot) -> Callable[[Sequence[str]], Ears]:
        return lambda devices: Ears(iot, devices)

    def test_a_report_comes_until_it_is_acknowledged(self, control: Control, links: object) -> None:
        """Within the invocation that it woke; after that it is the queue's to bring it again."""


def test_letters_are_those_that_woke_this_invocation_until_they_are_acknowledged(client: Any) -> None:
    letters = [Letter("1", report("a")), Letter("2", report("b"))]
    bus = IotBus(client, "f", Noted(), lambda: NOW, letters)
    assert bus.letters() == letters
    bus.acknowledge(["1", "never heard of"])
    bus.acknowledge(["1"])
    assert bus.letters() == letters[1:]
    assert bus.done == {"1"}


def test_a_task_is_retained_until_its_deadline_with_addresses_instead_of_keys(bus: IotBus, iot: Iot) -> None:
    bus.invite([task("a", 1)])
    (published,) = iot.published
    assert published._replace(payload=b"") == Published(
        "fleetfold/f/a/task", b"", qos=1, retain=True, expiry=91, response="", correlation=b""
    )
    told = msgspec.json.decode(published.payload, type=Task)
    assert told.model == "https://store/m?GET&a&3600"
    assert told.difference == ""
    assert told.update == "https://store/u?PUT&a&3600&0"


def test_a_withdrawn_task_is_an_empty_retained_message(bus: IotBus, iot: Iot) -> None:
    bus.invite([task("a", 1)])
    bus.withdraw(["a"])
    assert iot.published[-1] == Published("fleetfold/f/a/task", b"", 1, True, None, "", b"")
    assert iot.retained == {}


def test_a_command_says_where_its_answer_goes_and_is_not_retained(bus: IotBus, iot: Iot) -> None:
    bus.command(Command(id="c1", device="a", what="cancel"))
    bus.grant(Grant(run="r", round=1, kind="train", device="a", reason="over"))
    command, grant = iot.published
    assert command._replace(payload=b"") == Published(
        "fleetfold/f/a/command", b"", 1, False, 60, "fleetfold/f/a/answer", b"c1"
    )
    assert grant._replace(payload=b"") == Published("fleetfold/f/a/grant", b"", 1, False, 30, "", b"")
    assert msgspec.json.decode(grant.payload, type=Grant).reason == "over"


def test_many_are_invited_and_each_gets_its_own(bus: IotBus, iot: Iot) -> None:
    bus.invite([task(f"d{k}", 1) for k in range(100)])
    assert len(iot.published) == 100
    for topic, (_, payload) in iot.retained.items():
        assert topic.split("/")[2] == msgspec.json.decode(payload, type=Task).device


def test_no_message_outlives_what_iot_core_keeps_and_none_is_dead_when_it_is_sent(
    client: Any, iot: Iot
) -> None:
    for now in (0.0, 4e9 + 1000):
        IotBus(client, "f", Noted(), lambda now=now: now).invite([task("a", 1)])
    assert [message.expiry for message in iot.published] == [LONGEST, 1]


def test_a_task_that_no_message_holds_is_told_before_it_is_sent(bus: IotBus, iot: Iot) -> None:
    large = msgspec.structs.replace(task("a", 1), settings={"note": "x" * LIMIT})
    with pytest.raises(
        BadConfig, match=r"the task for a has \d+ bytes, a message at most 131072\n  next: make"
    ):
        bus.invite([large])
    assert iot.published == []
    room = LIMIT - len(msgspec.json.encode(msgspec.json.decode(_sent(bus, iot, task("a", 1)))))
    fits = msgspec.structs.replace(task("a", 1), settings={"epochs": 3, "n": "x" * (room - 7)})
    assert len(_sent(bus, iot, fits)) == LIMIT


def _sent(bus: IotBus, iot: Iot, task: Task) -> bytes:
    bus.invite([task])
    return iot.published[-1].payload


@pytest.mark.parametrize(
    "fate", [refused("ThrottlingException", 429), refused("InternalFailureException", 500), UNREACHED, LOST]
)
def test_a_message_that_was_not_taken_is_sent_again(
    fate: Any, bus: IotBus, iot: Iot, weather: Weather
) -> None:
    """One of which the answer was lost comes twice: devices take the same task for one."""
    weather.ahead = {"Publish": [fate] * 3}
    bus.invite([task("a", 1)])
    assert weather.asked["Publish"] == 4
    assert len(set(iot.published)) == 1


def test_if_one_of_many_cannot_be_told_who_asked_hears_of_it_and_asks_again(
    bus: IotBus, iot: Iot, weather: Weather
) -> None:
    weather.ahead = {"Publish": [refused("UnauthorizedException", 401)]}
    devices = [f"d{k}" for k in range(20)]
    with pytest.raises(Unavailable, match="AWS IoT is denied: it takes leave for Publish"):
        bus.withdraw(devices)
    assert len(iot.published) < 20
    bus.withdraw(devices)
    assert {message.topic for message in iot.published} == {f"fleetfold/f/{d}/task" for d in devices}
