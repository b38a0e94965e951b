"""Devices without a connection: their mail in a small S3 (an emulator that checks signatures and times)."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.memory import MemoryRecords
from fleetfold.adapters.poll_bus import Divided, PollBus, close_box
from fleetfold.adapters.poll_link import PollLink
from fleetfold.adapters.stores import StoreObjects, open_store
from fleetfold.aws.enrol import Place, enroll_polling, newest, revoke
from fleetfold.bundle import Bundle, save
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.fold.tensors import read, write
from fleetfold.ledger import Ledger
from fleetfold.messages import Answer, Ask, Command, Grant, Presence, understood
from tests.contract.bus import report, task
from tests.hub.wire import soon
from tests.s3 import BUCKET, S3, serving

PLACE = Place(fleet="main", policy="p", group="g", endpoint="e")
QUICK = (0.02, 0.05)
HOUR = 3600.0


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serving() as made:
        yield made


class Site:
    """The coordinator's side: `turn` does what the functions do with what has come since."""

    def __init__(self, server: S3, store: StoreObjects) -> None:
        self.server, self.store, self.records = server, store, MemoryRecords()
        self.bus = PollBus(self.records, store, store, time.time)
        self.said: list[tuple[str, Any]] = []
        self._seen: dict[str, bytes] = {}

    def enroll(self, device: str = "meter-1") -> Bundle:
        return enroll_polling(self.records, self.store, PLACE, device, 1000.0)

    def turn(self) -> None:
        for key, data in list(self.server.objects.items()):
            if key.endswith(".said.json") and self._seen.get(key) != data:
                self._seen[key] = data
                self.collect(key)

    def collect(self, key: str) -> str:
        heard = self.bus.hear(key)
        if isinstance(heard, str):
            return heard
        self.said += [(word, understood(heard.device, word, payload)) for word, payload in heard.said]
        self.bus.renew(heard)
        return ""

    def heard(self, word: str) -> list[Any]:
        self.turn()
        return [said for other, said in self.said if other == word]


@pytest.fixture
def site(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    server.clear()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield Site(server, open_store(f"s3://{BUCKET}"))
    server.ahead = 0.0


@pytest.fixture
def open_link(tmp_path: Path) -> Iterator[Callable[..., PollLink]]:
    made: list[PollLink] = []

    def opened(own: Bundle, **more: Any) -> PollLink:
        link = PollLink(
            own, tmp_path / f"{own.device}.json", time.monotonic, plain=True, pauses=QUICK, **more
        )
        made.append(link)
        link.start()
        return link

    yield opened
    for link in made:
        link.close()


Open = Callable[..., PollLink]


def tasks(link: PollLink) -> list[int]:
    return [each.round for each in link.tasks()]


def test_a_task_is_found_by_mail_and_taken_back_by_mail(site: Site, open_link: Open) -> None:
    link = open_link(site.enroll())
    soon(lambda: link.connected)
    site.bus.invite([replace(task("meter-1", 1), model="runs/r/m", update="runs/r/u")])
    soon(lambda: link._fresh)
    (found,) = link.tasks()
    assert found.model.startswith(site.server.url)
    assert "X-Amz-Signature" in found.update
    site.bus.withdraw(["meter-1"])
    soon(link.withdrawn)
    assert not link.withdrawn()


def test_a_device_that_was_off_finds_the_newest_task_alone(site: Site, open_link: Open) -> None:
    own = site.enroll()
    for round in (1, 2, 3):
        site.bus.invite([task("meter-1", round)])
    link = open_link(own)
    found: list[int] = []
    soon(lambda: found.extend(tasks(link)) or found[-1:] == [3])


def test_what_is_said_is_put_there_until_it_was_heard(site: Site, open_link: Open) -> None:
    link = open_link(site.enroll())
    link.report(replace(report("meter-1"), state="refused", reason="no power"))
    link.say(Presence(device="meter-1", battery=0.5))
    soon(lambda: site.heard("status") and site.heard("presence"))
    assert site.heard("status")[0].reason == "no power"
    soon(lambda: site.turn() or not link._words)
    puts = len([1 for method, _ in site.server.asked if method == "PUT"])
    link.answer(Answer(id="1", device="meter-1", state="done"))
    soon(lambda: site.heard("answer"))
    assert len([1 for m, _ in site.server.asked if m == "PUT"]) >= puts + 1
    assert len({encoded(each) for each in site.heard("status")}) == 1, "at least once, and nothing else"


def encoded(said: Any) -> bytes:
    return msgspec.json.encode(said)


def test_a_command_comes_once_and_a_grant_is_waited_for(site: Site, open_link: Open) -> None:
    link = open_link(site.enroll())
    command = Command(id="7", device="meter-1", what="cancel")
    site.bus.command(command)
    site.bus.invite([task("meter-1", 1)])  # whose mail has the command in it again
    found: list[Command] = []
    soon(lambda: (found.extend(link.commands()), tasks(link))[1])
    assert [each.id for each in [*found, *link.commands()]] == ["7"]
    ask = Ask(run="r", round=1, kind="train", device="meter-1")

    def answer() -> None:
        soon(lambda: site.heard("ask"))
        site.bus.grant(Grant(run="r", round=1, kind="train", device="meter-1", updates=("u",)))

    hub = threading.Thread(target=answer)
    hub.start()
    assert link.ask(ask, 20.0).updates == ("u",)
    hub.join()
    with pytest.raises(Unavailable, match="by mail"):
        link.ask(replace(ask, round=2), 0.05)


def test_a_device_that_starts_again_goes_on_where_it_was(site: Site, open_link: Open) -> None:
    own = site.enroll()
    link = open_link(own)
    site.bus.invite([task("meter-1", 1)])
    soon(lambda: tasks(link))
    link.close()
    again = open_link(own)
    site.bus.invite([task("meter-1", 2)])
    soon(lambda: tasks(again) == [2])
    asked = [key for _, key in site.server.asked if key.endswith("00000001.json")]
    assert len(asked) < len(site.server.asked)


def test_what_it_says_now_and_then_keeps_its_addresses_alive(site: Site, open_link: Open) -> None:
    link = open_link(site.enroll(), alive=0.2)
    soon(lambda: len(site.heard("presence")) > 3)
    assert link.connected
    soon(lambda: layout.mail("meter-1", newest(site.records, "meter-1").id, 1) not in site.server.objects)  # type: ignore[union-attr]


def test_mail_that_led_to_dead_addresses_is_written_again_for_who_asks_at_the_ones_before(
    site: Site, open_link: Open
) -> None:
    """It was given a task, and looked two hours later: its first address is good for days."""
    own = site.enroll()
    site.bus.invite([task("meter-1", 1)])
    site.server.ahead = 2 * HOUR
    link = open_link(own)
    soon(lambda: tasks(link) == [1])
    soon(lambda: "died" in link.why)
    # The emulator's clock goes ahead of ours: what is signed now would be dead at once; it is set back.
    site.server.ahead = 0.0
    soon(lambda: site.turn() or link.connected)
    site.bus.invite([task("meter-1", 2)])
    soon(lambda: tasks(link) == [2])


def test_who_was_away_for_longer_than_any_address_lives_is_told_to_be_enrolled_anew(
    site: Site, open_link: Open
) -> None:
    own = site.enroll()
    site.server.ahead = 8 * 24 * HOUR
    link = open_link(own)
    soon(lambda: "enroll DEVICE --aws --poll" in link.why)
    assert not link.connected


def test_the_words_of_who_was_revoked_or_enrolled_anew_are_not_heard(site: Site, open_link: Open) -> None:
    old = site.enroll()
    first = newest(site.records, "meter-1")
    assert first
    site.store.put(layout.words("meter-1", first.id, 1), [b'{"v":1,"said":[]}'])
    assert site.collect(layout.words("meter-1", first.id, 1)) == ""
    site.enroll()
    assert "no device that polls" in site.collect(layout.words("meter-1", first.id, 1))
    second = newest(site.records, "meter-1")
    assert second
    how = revoke(None, None, site.records, PLACE, "meter-1", 2000.0)
    assert "not heard any more" in how
    assert "no device that polls" in site.collect(layout.words("meter-1", second.id, 1))
    before = dict(site.server.objects)
    site.bus.invite([task("meter-1", 1)])
    assert site.server.objects == before, "nothing is told to it either"
    (entry,) = Ledger(site.records).fleet()
    assert entry.says
    assert entry.says.reason == "revoked"
    assert old.poll[0]


@pytest.mark.parametrize(
    "data", [b"{", b'{"v":1}', b'{"v":9,"said":[]}', b"x" * 200_000, b"[" * 90_000, b'{"said":[["status"]]}']
)
def test_words_that_are_none_mean_nothing(site: Site, data: bytes) -> None:
    site.enroll()
    life = newest(site.records, "meter-1")
    assert life
    key = layout.words("meter-1", life.id, 1)
    site.store.put(key, [data])
    assert "words" in site.collect(key)


@pytest.mark.parametrize(
    "key", ["poll/x", "poll/../0123456789abcdef/00000001.said.json", "runs/r", "poll/a/b/c"]
)
def test_a_key_that_is_nobodys_words_means_nothing(site: Site, key: str) -> None:
    assert "no device" in site.collect(key)


def test_two_who_tell_a_device_something_at_once_tell_it_both(site: Site, open_link: Open) -> None:
    own = site.enroll()
    told = [
        threading.Thread(target=site.bus.command, args=(Command(id=str(n), device="meter-1", what="cancel"),))
        for n in range(6)
    ]
    for thread in told:
        thread.start()
    for thread in told:
        thread.join()
    link = open_link(own)
    found: set[str] = set()
    soon(lambda: found.update(each.id for each in link.commands()) or len(found) == 6)


def test_a_bus_of_two_kinds_tells_each_device_in_its_own_way(site: Site, open_link: Open) -> None:
    class Others:
        def __init__(self) -> None:
            self.told: list[str] = []

        def invite(self, tasks: Any) -> None:
            self.told += [f"task {each.device}" for each in tasks]

        def withdraw(self, devices: Any) -> None:
            self.told += [f"back {each}" for each in devices]

        def grant(self, grant: Grant) -> None:
            self.told.append(f"grant {grant.device}")

        def command(self, command: Command) -> None:
            self.told.append(f"command {command.device}")

        def letters(self) -> list[Any]:
            return []

        def acknowledge(self, receipts: Any) -> None:
            self.told += receipts

    link = open_link(site.enroll())
    others = Others()
    bus = Divided(others, site.bus)
    bus.invite([task("meter-1", 1), task("press-7", 1)])
    soon(lambda: tasks(link) == [1])
    bus.withdraw(["meter-1", "press-7"])
    soon(link.withdrawn)
    bus.command(Command(id="1", device="press-7", what="cancel"))
    bus.grant(Grant(run="r", round=1, kind="train", device="press-7"))
    bus.acknowledge(["r1"])
    assert others.told == ["task press-7", "back press-7", "command press-7", "grant press-7", "r1"]
    close_box(site.records, "meter-1")
    assert site.bus.polls(["meter-1"]) == set()


def test_who_has_a_certificate_does_not_poll_beside_it(site: Site) -> None:
    from fleetfold.aws.enrol import Credential, change

    change(site.records, "press-7", lambda old: Credential(device="press-7", id="x", issued_at=1.0))
    with pytest.raises(BadConfig, match="by a certificate"):
        site.enroll("press-7")


@pytest.mark.fleet
def test_the_agent_itself_trains_without_a_connection(site: Site, tmp_path: Path) -> None:
    own = site.enroll()
    save(own, tmp_path / "meter-1.bundle")
    model = write({"w": np.zeros(8, np.float32)})
    site.store.put("runs/r/m", [model])
    environment = {
        **os.environ, "FLEETFOLD_AGENT_PLAIN": "1", "STAGE": str(tmp_path),
        "FLEETFOLD_AGENT_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    app = str(Path(__file__).parents[1] / "hub/small_app.py")
    with (tmp_path / "log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "fleetfold", "join", str(tmp_path / "meter-1.bundle"), "--app", app],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        site.bus.invite([
            replace(
                task("meter-1", 1), model="runs/r/m", digest=hashlib.sha256(model).hexdigest(),
                size=len(model), update="runs/r/u", most=1 << 20,
            )
        ])  # fmt: skip
        give_up = time.monotonic() + 120
        while "runs/r/u" not in site.server.objects:
            assert time.monotonic() < give_up, (tmp_path / "log").read_text()
            site.turn()
            time.sleep(0.05)
        assert read(site.server.objects["runs/r/u"])[0]["w"].tolist() == [1.0] * 8
        assert any(each.state == "accepted" for each in site.heard("status"))
        assert site.heard("presence")
    finally:
        agent.terminate()
        agent.wait(60)
