"""The device's way to objects: it brings what was meant, whatever the wire, the disk or the hub do."""

import hashlib
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from fleetfold import Device
from fleetfold.adapters import disk, https
from fleetfold.adapters.doors import context, proxy_for
from fleetfold.adapters.https import SignedTransfer
from fleetfold.adapters.memory import MemoryBus, MemoryRecords
from fleetfold.agent.journal import Journal
from fleetfold.agent.loop import Agent
from fleetfold.bundle import Bundle
from fleetfold.errors import BadConfig, BadUpdate, Unavailable
from fleetfold.fold.difference import encode
from fleetfold.fold.tensors import read, write
from fleetfold.messages import Ask, Grant, Task
from tests.hub.pki_transfer import Authority
from tests.hub.small_door import Door, Proxy, cut, endless, lost, says, silent, status
from tests.world import Walk

MODEL, UPDATE = b"the model " * 20, b"an update " * 10
LONG = 1 << 20


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def bundle(authority: Authority) -> Bundle:
    return authority.bundle("d0", "mqtts://127.0.0.1:8883")


@pytest.fixture
def door(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Door(authority.server("127.0.0.1", "hub.test"), authority)
    made.objects["model"] = MODEL
    yield made
    made.stop()


class Device0:
    """A device with its folder; it starts again with each `transfer()`."""

    def __init__(self, folder: Path, bundle: Bundle, door: Door) -> None:
        self.folder, self.bundle, self.door = folder, bundle, door
        self.asked: list[Ask] = []
        self.waited: list[int] = []
        self.sent = self.received = 0
        self.steps: list[tuple[str, int, int]] = []
        self.at_once = 99  # addresses in one grant
        self.refused = ""

    def transfer(self, **options: object) -> SignedTransfer:
        return SignedTransfer(
            self.folder, self.bundle, self.ask, self.waited.append, spent=self.spent,
            progress=lambda *step: self.steps.append(step), **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def spent(self, sent: int, received: int) -> None:
        self.sent, self.received = self.sent + sent, self.received + received

    def ask(self, ask: Ask) -> Grant:
        self.asked.append(ask)
        keys = [f"update.{n}" for n in range(ask.first, ask.parts)][: self.at_once] or ["update"]
        until = self.door.now + 500
        return Grant(
            **msgspec.structs.asdict(ask),
            model=self.door.address("model", "GET", until),
            updates=tuple(self.door.address(key, "PUT", until) for key in keys),
            reason=self.refused,
        )

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(self.folder / folder))


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, door: Door) -> Device0:
    return Device0(tmp_path / "home", bundle, door)


def task(door: Door, content: bytes = MODEL, round: int = 1, **more: object) -> Task:
    fields: dict[str, object] = {
        "run": "r", "round": round, "kind": "train", "device": "d0", "seed": 1, "deadline": 0.0,
        "model": door.address("model", "GET"), "digest": sha(content), "size": len(content),
        "update": door.address("update", "PUT"), "most": 1 << 30,
    }  # fmt: skip
    return Task(**(fields | more))  # type: ignore[arg-type]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# The model


def test_a_model_is_fetched_once_and_is_there_after_a_restart(device: Device0, door: Door) -> None:
    assert bytes(device.transfer().fetch(task(door))) == MODEL
    assert bytes(device.transfer().fetch(task(door))) == MODEL
    assert door.methods() == ["GET"]
    assert (device.received, device.steps[-1]) == (len(MODEL), ("download", len(MODEL), len(MODEL)))
    assert device.names("cache") == [sha(MODEL)]


def test_a_connection_that_breaks_at_any_byte_is_gone_on_with_from_there(device: Device0, door: Door) -> None:
    for at in range(len(MODEL)):
        device.folder = device.folder.with_name(f"home{at}")
        door.seen.clear()
        door.trouble("GET", cut(at))
        assert bytes(device.transfer().fetch(task(door))) == MODEL
        assert [seen.get("range") for seen in door.seen] == [None, f"bytes={at}-" if at else None]


def test_a_link_that_brings_a_little_each_time_brings_it_all(device: Device0, door: Door) -> None:
    door.trouble("GET", *[cut(10)] * 19)
    assert bytes(device.transfer().fetch(task(door))) == MODEL
    assert device.waited == [0] * 19, "what came further is no failure"
    assert device.received == len(MODEL)


def test_a_download_whose_process_died_at_any_byte_is_gone_on_with(device: Device0, door: Door) -> None:
    for at in range(len(MODEL) + 1):
        device.folder = device.folder.with_name(f"home{at}")
        device.received = 0
        device.transfer()
        (device.folder / "cache" / f"{sha(MODEL)}.part").write_bytes(MODEL[:at])
        assert bytes(device.transfer().fetch(task(door))) == MODEL
        assert device.received == len(MODEL) - at


@pytest.mark.parametrize(
    "left", [bytes(50), bytes(len(MODEL)), b"x" * 500], ids=["zeros", "all zeros", "too long"]
)
def test_what_a_power_cut_left_of_a_download_is_thrown_away(device: Device0, door: Door, left: bytes) -> None:
    device.transfer()
    (device.folder / "cache" / f"{sha(MODEL)}.part").write_bytes(left)
    assert bytes(device.transfer().fetch(task(door))) == MODEL
    assert device.names("cache") == [sha(MODEL)]


def test_a_model_that_was_damaged_on_the_disk_is_fetched_again(device: Device0, door: Door) -> None:
    for damaged in (MODEL[:7], b"", bytes(len(MODEL))):
        device.transfer().fetch(task(door))
        (device.folder / "cache" / sha(MODEL)).write_bytes(damaged)
        assert bytes(device.transfer().fetch(task(door))) == MODEL


def test_a_door_that_knows_no_ranges_is_heard_from_the_beginning(device: Device0, door: Door) -> None:
    door.trouble("GET", cut(50), says(MODEL))
    assert bytes(device.transfer().fetch(task(door))) == MODEL


@pytest.mark.parametrize(
    "other",
    [
        says(b"x" * 150, 206, Content_Range="bytes 50-199/201"),
        says(b"x" * 150, 206, Content_Range="bytes 49-198/200"),
        says(b"x" * 150, 206),
        says(b"", 416, Content_Range="bytes */40"),
        says(b"x" * 150, 206, Content_Range="bytes 50-199/200"),
    ],
    ids=["length", "place", "no place", "shorter", "bytes"],
)
def test_a_file_that_has_become_another_is_fetched_from_the_beginning(
    device: Device0, door: Door, other: Callable[..., bool]
) -> None:
    door.trouble("GET", cut(50), other)
    assert bytes(device.transfer().fetch(task(door))) == MODEL
    assert "range" not in door.seen[-1]


def test_wrong_bytes_are_fetched_three_times_and_leave_nothing(device: Device0, door: Door) -> None:
    door.objects["model"] = MODEL[::-1]
    with pytest.raises(Unavailable, match="is not the model"):
        device.transfer().fetch(task(door))
    assert door.methods() == ["GET"] * 3
    assert device.names("cache") == []


@pytest.mark.parametrize("more", [endless, says(MODEL + b"!")], ids=["endless", "promised"])
def test_more_bytes_than_the_task_says_are_refused_at_once(
    device: Device0, door: Door, more: Callable[..., bool]
) -> None:
    door.trouble("GET", more)
    with pytest.raises(BadUpdate, match=f"{len(MODEL)}"):
        device.transfer().fetch(task(door))
    assert device.names("cache") == []
    assert door.methods() == ["GET"]
    assert device.received <= 64 << 10


def test_a_door_that_is_busy_is_asked_later_and_not_for_ever(device: Device0, door: Door) -> None:
    door.trouble("GET", status(503), status(429), status(500))
    assert bytes(device.transfer().fetch(task(door))) == MODEL
    assert device.waited == [0, 1, 2]
    device.folder = device.folder.with_name("other")
    door.trouble("GET", *[status(503, b"a pause")] * https.TRIES)
    with pytest.raises(Unavailable, match="503: a pause"):
        device.transfer().fetch(task(door))
    assert len(device.waited) == 3 + https.TRIES - 1


def test_a_door_that_is_not_there_is_unavailable(device: Device0, door: Door) -> None:
    gone = door.base.replace(str(door.server_address[1]), "1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 does not answer"):
        device.transfer().fetch(task(door, model=f"{gone}/objects/model?method=GET&until=2000"))


def test_a_door_that_falls_silent_is_tried_again(device: Device0, door: Door) -> None:
    door.trouble("GET", silent)
    assert bytes(device.transfer(timeout=0.2).fetch(task(door))) == MODEL


def test_an_address_that_has_expired_is_asked_for_anew_also_in_the_middle(
    device: Device0, door: Door
) -> None:
    door.trouble("GET", cut(30), status(410), cut(30), status(403))
    assert bytes(device.transfer().fetch(task(door))) == MODEL
    assert len(device.asked) == 2
    assert device.received == len(MODEL)


def test_fresh_addresses_that_are_no_better_are_asked_for_a_few_times(device: Device0, door: Door) -> None:
    door.now = 10_000
    device.ask = lambda ask: (
        device.asked.append(ask)
        or Grant(  # type: ignore[func-returns-value, method-assign]
            **msgspec.structs.asdict(ask), model=door.address("model", "GET"), updates=("u",)
        )
    )
    with pytest.raises(Unavailable, match="410: the address has expired"):
        device.transfer().fetch(task(door))
    assert len(device.asked) == https.ASKS


def test_when_the_hub_says_why_there_are_no_addresses_the_task_is_given_up(
    device: Device0, door: Door
) -> None:
    door.now, device.refused = 10_000, "round 1 is over"
    with pytest.raises(BadUpdate, match="round 1 is over"):
        device.transfer().fetch(task(door))
    with pytest.raises(BadUpdate, match="round 1 is over"):
        device.transfer().deliver(task(door), UPDATE)


def test_the_newest_two_models_are_kept(device: Device0, door: Door) -> None:
    models = [f"model {n}".encode() * 9 for n in range(4)]
    for n, model in enumerate(models):
        door.objects["model"] = model
        device.transfer().fetch(task(door, model, round=n))
        stamp = 1_000_000_000 * (n + 1)
        os.utime(device.folder / "cache" / sha(model), ns=(stamp, stamp))
    assert device.names("cache") == sorted(map(sha, models[2:]))
    assert disk.newest(device.folder) == sha(models[3])


def test_a_model_that_the_disk_has_no_room_for_is_refused_before_it_comes(
    device: Device0, door: Door
) -> None:
    with pytest.raises(BadUpdate, match="no room on the disk"):
        device.transfer().fetch(task(door, size=1 << 60))
    assert door.seen == []


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63])
def test_a_digest_that_is_none_names_no_file(device: Device0, door: Door, digest: str) -> None:
    with pytest.raises(BadUpdate):
        device.transfer().fetch(task(door, digest=digest))
    assert device.names("cache") == []


# The difference


def change(old: bytes, new: bytes) -> bytes:
    def of(data: bytes) -> Callable[[int, memoryview], int]:
        def read(offset: int, into: memoryview) -> int:
            part = data[offset : offset + len(into)]
            into[: len(part)] = part
            return len(part)

        return read

    return b"".join(encode(of(old), of(new), len(new)))


@pytest.fixture
def second(device: Device0, door: Door) -> Task:
    """A device that has the first model, and the task of the second."""
    chance = np.random.default_rng(0)
    old = write({"w": chance.normal(size=30_000).astype(np.float32)})
    new = old[:-400] + chance.bytes(400)
    door.objects |= {"model": old, "difference": change(old, new)}
    device.transfer().fetch(task(door, old))
    door.objects["model"] = new
    device.received = 0
    door.seen.clear()
    return task(door, new, known=sha(old), difference=door.address("difference", "GET"))


def test_who_has_the_model_before_fetches_the_difference_alone(
    device: Device0, door: Door, second: Task
) -> None:
    door.trouble("GET", cut(100))
    assert sha(bytes(device.transfer().fetch(second))) == second.digest
    assert {seen["key"] for seen in door.seen} == {"difference"}
    assert device.received == len(door.objects["difference"]) < second.size / 10
    assert device.names("cache") == sorted([second.known, second.digest])


@pytest.mark.parametrize("at", range(0, 200, 10))
def test_a_difference_whose_process_died_is_gone_on_with(
    device: Device0, door: Door, second: Task, at: int
) -> None:
    found = door.objects["difference"]
    have = at * len(found) // 190
    (device.folder / "cache" / f"{second.digest}.difference").write_bytes(found[:have])
    assert sha(bytes(device.transfer().fetch(second))) == second.digest
    assert device.received == len(found) - have
    assert device.names("cache") == sorted([second.known, second.digest])


@pytest.mark.parametrize("wrong", ["damaged", "another's", "gone", "expired", "too large", "model gone"])
def test_without_the_difference_the_whole_is_fetched(
    device: Device0, door: Door, second: Task, wrong: str
) -> None:
    found = door.objects["difference"]
    match wrong:
        case "damaged":
            door.objects["difference"] = found[:-1]
        case "another's":
            door.objects["difference"] = change(bytes(second.size), bytes(second.size - 1) + b"x")
        case "gone":
            del door.objects["difference"]
        case "expired":
            second = msgspec.structs.replace(second, difference=door.address("difference", "GET", 500))
        case "too large":
            door.objects["difference"] = found + bytes(second.size)
        case "model gone":
            (device.folder / "cache" / second.known).unlink()
    assert sha(bytes(device.transfer().fetch(second))) == second.digest
    assert door.seen[-1]["key"] == "model"
    assert not [name for name in device.names("cache") if "." in name]


# The update


def test_an_update_arrives_with_its_digest_and_is_sent_once(device: Device0, door: Door) -> None:
    device.transfer().deliver(task(door), UPDATE)
    assert door.objects["update"] == UPDATE
    assert "content-digest" in door.seen[-1]
    assert device.transfer().delivered(task(door))
    assert door.methods() == ["PUT"]
    assert (device.sent, device.steps[-1]) == (len(UPDATE), ("upload", len(UPDATE), len(UPDATE)))


def test_what_was_never_made_is_not_delivered(device: Device0, door: Door) -> None:
    device.transfer().deliver(task(door), UPDATE)
    assert not device.transfer().delivered(task(door, round=2))
    assert not device.transfer().delivered(task(door, kind="evaluate"))
    assert not device.transfer().delivered(task(door, run="r-1"))


def test_an_update_in_the_spool_is_sent_after_a_restart_also_if_its_address_has_expired(
    device: Device0, door: Door
) -> None:
    door.trouble("PUT", *[status(503)] * https.TRIES)
    with pytest.raises(Unavailable):
        device.transfer().deliver(task(door), UPDATE)
    door.now = 10_000
    assert device.transfer().delivered(task(door))
    assert door.objects["update"] == UPDATE
    assert len(device.asked) == 1


def test_an_update_whose_answer_was_lost_is_not_sent_twice(device: Device0, door: Door) -> None:
    door.trouble("PUT", lost)
    device.transfer().deliver(task(door), UPDATE)
    assert door.methods() == ["PUT", "HEAD"]


def test_other_bytes_that_lie_there_stand(device: Device0, door: Door) -> None:
    door.objects["update"] = b"of an earlier life"
    device.transfer().deliver(task(door), UPDATE)
    assert door.objects["update"] == b"of an earlier life"
    assert device.transfer().delivered(task(door))


@pytest.mark.parametrize("code", [400, 411, 413, 422])
def test_an_update_that_the_door_refuses_is_given_up_with_its_words(
    device: Device0, door: Door, code: int
) -> None:
    door.trouble("PUT", status(code, b"no: too large\x1b[31m"))
    with pytest.raises(BadUpdate, match=rf"{code}: no: too large\\x1b"):
        device.transfer().deliver(task(door), UPDATE)
    assert door.methods() == ["PUT"]


def test_a_long_update_is_not_sent_to_an_address_that_has_expired(device: Device0, door: Door) -> None:
    door.now = 10_000
    device.transfer().deliver(task(door), bytes(LONG + 1))
    assert door.methods() == ["HEAD", "HEAD", "PUT"]
    assert device.sent == LONG + 1


def test_an_update_larger_than_the_task_allows_is_not_sent(device: Device0, door: Door) -> None:
    with pytest.raises(BadUpdate, match="the task allows 5"):
        device.transfer().deliver(task(door, most=5), UPDATE)
    assert door.seen == []
    assert device.names("spool") == []


def test_a_run_whose_name_leads_elsewhere_is_refused(device: Device0, door: Door) -> None:
    with pytest.raises(BadUpdate, match="no name"):
        device.transfer().deliver(task(door, run="../../x"), UPDATE)


# Parts


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Pieces of an update that goes in five parts."""
    monkeypatch.setattr(disk, "PART", 1000)
    return [bytes([n]) * 1000 for n in range(4)] + [b"end"]


def arrived(door: Door) -> list[bytes]:
    return [door.objects[f"update.{n}"] for n in range(5)]


def test_a_large_update_goes_in_parts_by_addresses_that_come_a_few_at_a_time(
    device: Device0, door: Door, parts: list[bytes]
) -> None:
    device.at_once = 2
    device.transfer().deliver(task(door), b"".join(parts))
    assert arrived(door) == parts
    assert [(ask.parts, ask.first) for ask in device.asked] == [(5, 0), (5, 2), (5, 4)]
    assert device.steps[-1] == ("upload", 4003, 4003)


def test_each_part_is_tried_again_by_itself(device: Device0, door: Door, parts: list[bytes]) -> None:
    door.trouble("PUT", lambda visit: False, status(503), lambda visit: False, lost)
    device.transfer().deliver(task(door), b"".join(parts))
    assert arrived(door) == parts
    assert device.waited == [0, 0]
    assert sorted(device.steps)[-1] == ("upload", 4003, 4003)


def test_addresses_of_parts_that_expire_underway_are_asked_for_from_there(
    device: Device0, door: Door, parts: list[bytes]
) -> None:
    door.trouble("PUT", lambda visit: False, lambda visit: False, status(410))
    device.transfer().deliver(task(door), b"".join(parts))
    assert arrived(door) == parts
    assert [ask.first for ask in device.asked] == [0, 2]


@pytest.mark.parametrize("forgotten", [False, True])
def test_parts_that_are_there_are_not_sent_after_a_restart(
    device: Device0, door: Door, parts: list[bytes], forgotten: bool
) -> None:
    door.trouble("PUT", *[lambda visit: False] * 3, *[status(503)] * https.TRIES)
    with pytest.raises(Unavailable):
        device.transfer().deliver(task(door), b"".join(parts))
    if forgotten:
        next((device.folder / "spool").glob("*.sent")).unlink()
    door.seen.clear()
    assert device.transfer().delivered(task(door))
    assert arrived(door) == parts
    sent = [seen["key"] for seen in door.seen if seen["method"] == "PUT"]
    assert sent == ["update.3", "update.4"]


def test_a_part_of_another_length_is_not_taken_for_it(
    device: Device0, door: Door, parts: list[bytes]
) -> None:
    door.trouble("PUT", *[status(503)] * https.TRIES)
    with pytest.raises(Unavailable):
        device.transfer().deliver(task(door), b"".join(parts))
    door.objects["update.0"] = b"half of it"
    door.seen.clear()
    assert device.transfer().delivered(task(door))
    assert [seen["method"] for seen in door.seen if seen["key"] == "update.0"] == ["HEAD", "PUT"]


# The spool


def test_an_update_cut_off_at_any_byte_by_a_power_cut_is_as_if_it_were_not_there(
    device: Device0, door: Door
) -> None:
    device.transfer().deliver(task(door), UPDATE)
    place = next((device.folder / "spool").glob("*.safetensors"))
    door.objects.clear()
    for damaged in [UPDATE[:at] for at in range(len(UPDATE))] + [bytes(len(UPDATE)), UPDATE + b"!"]:
        place.write_bytes(damaged)
        assert not device.transfer().delivered(task(door))
        assert not place.exists()
    assert door.objects == {}


def test_a_note_of_what_arrived_outlives_no_other_update(device: Device0, door: Door) -> None:
    device.transfer().deliver(task(door), UPDATE)
    next((device.folder / "spool").glob("*.safetensors")).write_bytes(b"")
    del door.objects["update"]
    device.transfer().deliver(task(door), UPDATE[::-1])
    assert door.objects["update"] == UPDATE[::-1]
    assert len(device.names("spool")) == 2


def test_updates_that_nobody_will_ask_for_are_removed(device: Device0, door: Door) -> None:
    door.trouble("PUT", *[status(503)] * https.TRIES)
    with pytest.raises(Unavailable):
        device.transfer().deliver(task(door, run="waits"), UPDATE)
    for run, round in (("r", 1), ("r", 2), ("r-2", 1), ("r", 3)):
        device.transfer().deliver(task(door, run=run, round=round), UPDATE)
    kept = [name.partition(".")[0] for name in device.names("spool") if name.endswith(".safetensors")]
    assert kept == ["r-3-train", "waits-1-train"]


def test_half_written_files_are_swept(device: Device0, door: Door) -> None:
    device.transfer()
    (device.folder / "spool" / "123.staged").write_bytes(b"half")
    (device.folder / "cache" / f"{sha(MODEL)}.rebuilt").write_bytes(b"half")
    device.transfer()
    assert device.names("spool") == device.names("cache") == []


def test_a_spool_on_a_full_disk_says_so(device: Device0, door: Door) -> None:
    transfer = device.transfer()
    (device.folder / "spool" / f"{os.getpid()}.staged").symlink_to("/dev/full")
    with pytest.raises(BadUpdate, match="no room on the disk"):
        transfer.deliver(task(door), UPDATE)


@pytest.mark.parametrize("way", ["difference", "whole"])
def test_killed_at_any_step_it_ends_as_if_it_had_not_been(
    device: Device0, door: Door, bundle: Bundle, way: str
) -> None:
    old, new = MODEL[::-1] * 20, MODEL * 20
    door.objects |= {"model": new, "old": old, "difference": change(old, new)}
    given = task(door, new)
    if way == "difference":
        given = task(door, new, known=sha(old), difference=door.address("difference", "GET"))
    first = task(door, old, model=door.address("old", "GET"))
    orders = [msgspec.json.encode(what).decode() for what in (bundle, first, given)]
    script = [sys.executable, "-m", "tests.hub.dying", str(device.folder), *orders]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as dying:
        assert dying.stdin is not None
        assert dying.stdout is not None
        step, ended = 0, False
        while not ended:
            door.objects.pop("update", None)
            dying.stdin.write(f"{step}\n")
            dying.stdin.flush()
            ended = dying.stdout.readline() == "lived\n"
            home = device.folder / str(step)
            device.folder, folder = home, device.folder
            transfer = device.transfer()
            assert bytes(transfer.fetch(given)) == new
            if not transfer.delivered(given):
                transfer.deliver(given, UPDATE)
            device.folder = folder
            assert door.objects["update"] == UPDATE
            assert sorted(os.listdir(home / "cache")) == sorted([sha(old), sha(new)])
            assert len(os.listdir(home / "spool")) == 2
            step += 1
        dying.stdin.close()
    assert step > 15


# Whom it trusts


def test_a_door_of_another_authority_is_told_nothing(device: Device0, authority: Authority) -> None:
    false = Door(Authority().server("127.0.0.1"), None)
    try:
        with pytest.raises(Unavailable, match="not known by the right certificate"):
            device.transfer().fetch(task(false))
        assert false.seen == []
        assert device.waited == [], "it would not become another by waiting"
    finally:
        false.stop()


def test_a_door_by_another_name_than_its_certificate_has_is_told_nothing(
    device: Device0, authority: Authority
) -> None:
    other = Door(authority.server("hub.test"), authority)
    try:
        with pytest.raises(Unavailable, match="not known by the right certificate"):
            device.transfer().fetch(task(other))
    finally:
        other.stop()


def test_another_host_never_sees_the_device_and_is_trusted_by_the_system_alone(
    device: Device0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = Authority("of the world")
    store = Door(worlds.server("localhost"), None, "localhost")
    store.objects["model"] = MODEL
    try:
        with pytest.raises(Unavailable, match="not known by the right certificate"):
            device.transfer().fetch(task(store))
        (tmp_path / "world.pem").write_text(worlds.pem)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "world.pem"))
        transfer = device.transfer()
        assert bytes(transfer.fetch(task(store))) == MODEL
        transfer.deliver(task(store), UPDATE)
        assert store.objects["update"] == UPDATE
        assert store.methods() == ["GET", "PUT"]
        assert not any("content-digest" in seen for seen in store.seen)
    finally:
        store.stop()


def test_a_store_that_has_other_bytes_underway_is_tried_again(device: Device0) -> None:
    store = Door(None, None)
    try:
        store.trouble("PUT", status(409), status(400, b"<Code>ExpiredToken</Code>"))
        device.door = store
        device.transfer(plain=True).deliver(task(store), UPDATE)
        assert (store.objects["update"], len(device.asked), device.waited) == (UPDATE, 1, [0])
    finally:
        store.stop()


def test_nothing_goes_in_plain_text_but_to_this_machine_where_that_is_allowed(device: Device0) -> None:
    store = Door(None, None)
    store.objects["model"] = MODEL
    try:
        with pytest.raises(BadUpdate, match="plain text"):
            device.transfer().fetch(task(store))
        with pytest.raises(BadUpdate, match="plain text"):
            device.transfer(plain=True).fetch(task(store, model="http://192.0.2.1/objects/model"))
        assert bytes(device.transfer(plain=True).fetch(task(store))) == MODEL
    finally:
        store.stop()


@pytest.mark.parametrize(
    "address",
    ["", "model", "file:///etc/passwd", "ftp://127.0.0.1/x", "https://", "https://[::1", "https://h:99999/x",
     "https://127.0.0.1:1/a b", "https://127.0.0.1:1/\r\nX: y", "https://" + "a." * 200 + "/x", "https://ü/é"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_and_not_gone_to(
    device: Device0, door: Door, address: str
) -> None:
    with pytest.raises((BadUpdate, Unavailable)):
        device.transfer().fetch(task(door, model=address))
    assert door.seen == []


def test_a_redirection_is_not_followed(device: Device0, door: Door) -> None:
    door.trouble("GET", says(b"", 307, Location=door.address("model", "GET")))
    with pytest.raises(Unavailable, match="307"):
        device.transfer().fetch(task(door))
    assert len(door.seen) == 1


def test_a_bundle_without_a_key_of_its_own_is_the_users_to_mend(bundle: Bundle, authority: Authority) -> None:
    other = authority.bundle("d1", "mqtts://h")
    for wrong in ({"key": ""}, {"key": other.key}, {"authority": "x"}, {"certificate": ""}):
        with pytest.raises(BadConfig, match="cannot be used"):
            context(msgspec.structs.replace(bundle, **wrong))


def test_a_key_under_a_password_is_refused_and_nobody_is_asked_for_it(bundle: Bundle) -> None:
    key = load_pem_private_key(bundle.key.encode(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    with pytest.raises(BadConfig, match="cannot be used"):
        context(msgspec.structs.replace(bundle, key=locked.decode()))


def test_the_key_is_written_nowhere(device: Device0, door: Door, bundle: Bundle) -> None:
    device.transfer().fetch(task(door))
    assert door.seen[0]["certificate"] == "True"
    files = [path for path in device.folder.rglob("*") if path.is_file()]
    assert not any(bundle.key.splitlines()[1].encode() in path.read_bytes() for path in files)
    assert context(bundle).verify_mode is ssl.CERT_REQUIRED


# By a proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy("someone:p@ss")
    yield made
    made.stop()


def test_it_goes_by_the_proxy_of_the_environment_with_its_credentials(
    device: Device0, door: Door, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.base = door.base.replace("127.0.0.1", "hub.test")
    monkeypatch.setenv("HTTPS_PROXY", f"http://someone:p%40ss@127.0.0.1:{proxy.port}")
    transfer = device.transfer(hosts=["hub.test"])
    assert bytes(transfer.fetch(task(door))) == MODEL
    transfer.deliver(task(door), UPDATE)
    assert door.objects["update"] == UPDATE
    assert {asked.split()[1] for asked in proxy.asked} == {f"hub.test:{door.server_address[1]}"}
    assert [seen["certificate"] for seen in door.seen] == ["True"] * 2


def test_a_proxy_that_refuses_is_named(
    device: Device0, door: Door, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.base = door.base.replace("127.0.0.1", "hub.test")
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
    with pytest.raises(Unavailable, match="407"):
        device.transfer(hosts=["hub.test"]).fetch(task(door))


def test_which_hosts_go_by_the_proxy_is_the_environments_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "near.example")
    found = proxy_for("far.example", 443)
    assert found == ("proxy.example", 3128, {})
    assert proxy_for("a.near.example", 443) is None
    assert proxy_for("localhost", 8443) is None
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example")
    with pytest.raises(BadConfig, match="HTTPS_PROXY"):
        proxy_for("far.example", 443)


# The agent


def test_an_agent_trains_what_lies_in_the_cache_and_answers_a_round_that_is_over(
    device: Device0, door: Door
) -> None:
    trainer, bus = Walk(), MemoryBus()
    model = write(trainer.init(0))
    door.objects["model"] = model
    journal = Journal(MemoryRecords(), "d0", "life")
    agent = Agent(Device(name="d0"), trainer, journal, device.transfer(), bus.link(["d0"]), lambda: 0.0)
    agent.handle(task(door, model))
    door.now, device.refused = 10_000, "round 2 is over"
    agent.handle(task(door, model, round=2))
    said = [(letter.report.state, letter.report.reason) for letter in bus.letters()]
    assert said == [("delivered", ""), ("refused", "round 2 is over")]
    assert trainer.trained == [("d0", 1), ("d0", 2)]
    assert read(door.objects["update"])[0]["steps"] == 1
