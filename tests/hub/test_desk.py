"""What lies at the hub's desk, who writes it twice or at once, and what is kept of what devices say."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from fleetfold import layout
from fleetfold.adapters.memory import MemoryBus, MemoryObjects, MemoryRecords
from fleetfold.adapters.parted import Parted
from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.coordinator.registrar import EVERY, WORDS, Registrar
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.fold.tensors import write
from fleetfold.hub import desk, driver
from fleetfold.hub.driver import Hearing, Stored
from fleetfold.hub.scorer import Scorer
from fleetfold.ledger import Ledger
from fleetfold.messages import Answer, Command, Presence, Report
from fleetfold.ports import Record
from fleetfold.round.fleet import Device

KEY = layout.update(layout.round("r", 3, "train"), "a")


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords()


def names(records: MemoryRecords) -> list[str]:
    return [waiting.run for waiting in desk.queued(records)]


# The queue


def test_runs_are_driven_in_the_order_in_which_they_came(records: MemoryRecords) -> None:
    for at, run in ((3.0, "c"), (2.0, "a"), (1.0, "b")):
        desk.queue(records, run, at)
    assert names(records) == ["c", "a", "b"], "no clock puts one before another"
    desk.leave(records, desk.queued(records)[1])
    assert names(records) == ["c", "b"]


def test_a_run_that_is_given_more_to_do_keeps_its_place(records: MemoryRecords) -> None:
    desk.queue(records, "at work", 1.0)
    desk.queue(records, "next", 2.0)
    desk.queue(records, "at work", 3.0)
    assert names(records) == ["at work", "next"]


def test_a_run_that_ended_as_it_was_given_more_to_do_stays(records: MemoryRecords) -> None:
    desk.queue(records, "r", 1.0)
    ended = desk.queued(records)[0]
    desk.queue(records, "r", 2.0)
    desk.leave(records, ended)
    assert names(records) == ["r"]
    desk.leave(records, desk.queued(records)[0])
    desk.leave(records, ended)
    assert names(records) == []


def test_the_queue_holds_what_waits_and_nothing_else(records: MemoryRecords) -> None:
    for number in range(200):
        desk.queue(records, f"r-{number}", float(number))
        desk.leave(records, desk.queued(records)[0])
    assert [key for key, _ in records.scan("hub/")] == [desk.QUEUE]
    found = records.get(desk.QUEUE)
    assert found
    assert found.value == b"[]"


def test_of_many_who_queue_and_order_at_once_none_is_lost(tmp_path: Path) -> None:
    def put(number: int) -> None:
        own = SqliteRecords(tmp_path / "hub.db")
        desk.queue(own, f"r-{number}", 0.0)
        desk.order(own, Command(id=str(number), device="a", what="cancel"), 0.0, 9.0)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = SqliteRecords(tmp_path / "hub.db")
    assert sorted(waiting.run for waiting in desk.queued(records)) == sorted(f"r-{n}" for n in range(12))
    assert {command.id for command in desk.ordered(records, 1.0)} == {str(n) for n in range(12)}


def test_where_another_always_writes_first_it_is_said() -> None:
    class Lost(MemoryRecords):
        def swap(self, key: str, value: bytes, expect: int) -> bool:
            return False

    with pytest.raises(Unavailable, match="compare-and-sets on hub/queue"):
        desk.queue(Lost(), "r", 1.0)


# Commands


def ordered(records: MemoryRecords, id: str, device: str = "a", until: float = 10.0) -> Command:
    command = Command(id=id, device=device, what="get", upload=f"commands/{id}.{device}.safetensors")
    desk.order(records, command, 0.0, until)
    return command


def test_an_answer_is_found_by_who_waits_for_it_and_no_other_device_gives_it(records: MemoryRecords) -> None:
    command = ordered(records, "1")
    forged, real = (Answer(id="1", device=device, state="done") for device in ("b", "a"))
    assert desk.answered(records, [forged]) == [forged]
    assert desk.ordered(records, 1.0) == [command]
    assert desk.answer(records, "1") is None
    late = Answer(id="1", device="a", state="failed")
    assert desk.answered(records, [real, late]) == [late], "the first one counts"
    assert desk.answer(records, "1") == real
    assert desk.ordered(records, 1.0) == []
    desk.done(records, "1")
    assert desk.answer(records, "1") is None


def test_answers_that_nobody_waits_for_leave_nothing(records: MemoryRecords) -> None:
    ordered(records, "1")
    before = records.get(desk.COMMANDS)
    strays = [Answer(id=str(n), device="a", state="done", reason="x" * 1000) for n in range(2, 500)]
    assert desk.answered(records, strays) == strays
    assert records.get(desk.COMMANDS) == before


def test_nobody_waits_for_ever_and_what_nobody_waits_for_is_forgotten(records: MemoryRecords) -> None:
    command = ordered(records, "1", until=10.0)
    assert desk.ordered(records, 9.9) == [command]
    assert desk.ordered(records, 10.0) == []
    assert desk.expired(records, 9.0) == []
    assert desk.expired(records, 11.0) == [command]
    assert desk.files(command) == [command.upload]
    assert desk.expired(records, 11.0) == []


def test_commands_that_wait_are_bounded(records: MemoryRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "MOST", 3)
    for id in "123":
        ordered(records, id)
    with pytest.raises(BadConfig, match="waiting for answers already"):
        ordered(records, "4")
    desk.order(records, Command(id="5", device="a", what="cancel"), 20.0, 30.0)
    assert [command.id for command in desk.ordered(records, 21.0)] == ["5"]
    found = records.get(desk.COMMANDS)
    assert found
    assert found.value.count(b'"command"') == 1, "those for which nobody waits gave way"


def test_a_model_of_a_run_is_no_file_of_a_command() -> None:
    command = Command(id="1", device="a", what="evaluate", model=layout.model("r", 1))
    assert desk.files(command) == []


# The registry


def there(ledger: Ledger, name: str = "a") -> Device:
    (found,) = ledger.devices([name])
    return found


@pytest.fixture
def ledger(records: MemoryRecords) -> Ledger:
    made = Ledger(records)
    made.save_devices([Device(name="a"), Device(name="b")])
    return made


def test_what_a_device_says_is_kept_at_once_and_who_only_was_heard_every_few_seconds(ledger: Ledger) -> None:
    registrar = Registrar(ledger)
    registrar.take([Presence(device="a", battery=0.5)], ["b"], 100.0)
    assert there(ledger).says == Presence(device="a", battery=0.5)
    assert there(ledger, "b").last_seen == 100.0
    registrar.take([], ["b"], 101.0)
    assert there(ledger, "b").last_seen == 100.0
    registrar.take([], [], 100.0 + EVERY)
    assert there(ledger, "b").last_seen == 101.0


def test_a_last_will_is_not_a_sign_of_life(ledger: Ledger) -> None:
    registrar = Registrar(ledger)
    registrar.take([Presence(device="a")], [], 100.0)
    registrar.take([Presence(device="a", online=False)], [], 200.0)
    assert (there(ledger).last_seen, there(ledger).says) == (100.0, Presence(device="a", online=False))


def test_who_is_in_no_registry_is_not_put_there(ledger: Ledger) -> None:
    Registrar(ledger).take([Presence(device="mallory")], ["mallory", "eve"], 100.0)
    assert [device.name for device in ledger.fleet()] == ["a", "b"]


def test_what_a_device_says_in_words_is_short_and_can_be_printed(ledger: Ledger) -> None:
    long = "\x1b[31m" + "x" * 30_000
    Registrar(ledger).take([Presence(device="a", reason=long, model=long, agent=long)], [], 1.0)
    says = there(ledger).says
    assert says
    for word in (says.reason, says.model, says.agent):
        assert word.isprintable()
        assert len(word) == WORDS


def test_what_could_not_be_written_is_written_later(records: MemoryRecords, ledger: Ledger) -> None:
    class Full(MemoryRecords):
        full = True

        def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
            return records.get_many(keys)

        def put_many(self, values):  # type: ignore[no-untyped-def]
            if self.full:
                raise Unavailable("no space left")
            records.put_many(values)

    disk = Full()
    registrar = Registrar(Ledger(disk))
    with pytest.raises(Unavailable):
        registrar.take([Presence(device="a", battery=0.5)], ["b"], 100.0)
    disk.full = False
    registrar.take([], [], 101.0)
    assert there(ledger).says == Presence(device="a", battery=0.5)
    assert there(ledger, "b").last_seen == 100.0


def test_when_the_broker_has_forgotten_nobody_is_there_until_it_says_so(ledger: Ledger) -> None:
    registrar = Registrar(ledger)
    registrar.take([Presence(device="a", examples=3)], [], 100.0)
    registrar.all_gone()
    assert there(ledger).says == Presence(device="a", examples=3, online=False)
    assert there(ledger, "b").says is None


# Updates that nobody reports


@pytest.fixture
def objects() -> Parted:
    return Parted(MemoryObjects(), part=4)


def report(device: str = "a", round: int = 3) -> Report:
    return Report(run="r", round=round, kind="train", device=device, state="delivered")


def hearing(stored: Stored, objects: Parted, bus: MemoryBus | None = None) -> Hearing:
    return Hearing("r", bus or MemoryBus(), stored, objects)


def test_an_update_that_nobody_reports_counts_as_reported_after_a_while_and_once(
    objects: Parted, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Stored()
    heard = hearing(stored, objects)
    objects.put(KEY, [b"update"])
    stored.add(KEY)
    assert heard.letters() == [], "its device is about to say so"
    monkeypatch.setattr(driver, "SILENT", -1.0)
    letters = heard.letters()
    assert [letter.report for letter in letters] == [report()]
    assert heard.letters() == letters, "until it has been taken care of"
    heard.acknowledge([letter.receipt for letter in letters])
    assert heard.letters() == []


def test_what_its_device_reports_is_not_reported_twice(
    objects: Parted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SILENT", -1.0)
    stored, bus = Stored(), MemoryBus()
    objects.put(KEY, [b"update"])
    stored.add(KEY)
    bus.post(report())
    assert [letter.report for letter in hearing(stored, objects, bus).letters()] == [report()]


def test_an_evaluation_is_reported_as_one(objects: Parted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SILENT", -1.0)
    stored = Stored()
    key = layout.update(layout.round("r", 3, "evaluate"), "a")
    objects.put(key, [b"update"])
    stored.add(key)
    assert [letter.report.kind for letter in hearing(stored, objects).letters()] == ["evaluate"]


def test_an_update_in_parts_counts_when_all_are_there_and_not_before(
    objects: Parted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SILENT", -1.0)
    stored = Stored()
    heard = hearing(stored, objects)
    for number, data in enumerate((b"1234", b"12")):
        assert heard.letters() == []
        part = layout.part(KEY, number, 2)
        objects.put(part, [data])
        stored.add(part)
    assert [letter.report for letter in heard.letters()] == [report()]


def test_what_came_for_other_runs_or_is_no_update_is_not_kept(
    objects: Parted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SILENT", -1.0)
    stored = Stored()
    other = layout.update(layout.round("over", 1, "train"), "a")
    for key in (other, "commands/1.a.safetensors"):
        objects.put(key, [b"x"])
        stored.add(key)
    assert hearing(stored, objects).letters() == []
    assert stored._at == {}


# The scorer

APP = """
import os
from pathlib import Path
import numpy as np
class T:
    def init(self, seed): return {"w": np.zeros(2, np.float32)}
    def train(self, model, work): raise NotImplementedError
    TEST
trainer = T()
"""
MODEL, LARGE = write({}), write({"w": np.zeros(1 << 20, np.float32)})


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Callable[[str], Scorer]]:
    """Of an app with that line."""
    with ExitStack() as stack:

        def made(line: str) -> Scorer:
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            folder.mkdir()
            (folder / "app.py").write_text(APP.replace("TEST", line))
            log = stack.enter_context((tmp_path / "scorer.log").open("ab"))
            return stack.enter_context(closing(Scorer(str(folder / "app.py"), log)))

        yield made


def test_a_model_is_scored_in_another_process_whatever_the_app_prints(
    scorer: Callable[[str], Scorer], tmp_path: Path
) -> None:
    line = "def test(self, model): os.system('echo loud'); print('said'); return {'pid': os.getpid()}"
    warm = scorer(line)
    assert warm.score(MODEL) == warm.score(MODEL), "the same process, kept warm"
    assert (tmp_path / "scorer.log").read_text().count("loud") == 2


def test_an_app_without_a_test_set_scores_nothing(scorer: Callable[[str], Scorer]) -> None:
    made = scorer("pass")
    assert [made.score(MODEL), made.score(MODEL)] == [{}, {}]


def test_what_the_users_test_raises_is_told_with_its_line(scorer: Callable[[str], Scorer]) -> None:
    made = scorer("def test(self, model): raise ValueError('no test set here')")
    for _ in range(2):
        with pytest.raises(BadConfig, match=r"test\(\): app.py line 8, ValueError: no test set here"):
            made.score(MODEL)


def test_an_app_that_is_broken_is_told(scorer: Callable[[str], Scorer]) -> None:
    with pytest.raises(BadConfig, match="nothing_of_that_name"):
        scorer("import nothing_of_that_name").score(MODEL)


def test_a_scorer_that_dies_at_it_is_told_and_one_that_was_killed_between_is_started_again(
    scorer: Callable[[str], Scorer],
) -> None:
    with pytest.raises(BadConfig, match="the process that scores models has died"):
        scorer("def test(self, model): os._exit(3)").score(LARGE)
    killed = scorer("def test(self, model): return {'n': 1.0}")
    assert killed.score(MODEL) == {"n": 1.0}
    assert killed._process
    killed._process.kill()
    killed._process.wait()
    assert killed.score(MODEL) == {"n": 1.0}
