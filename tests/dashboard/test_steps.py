"""What devices are at that have not answered: by their journals here, on a hub by what they told last."""

from pathlib import Path

import pytest
from bench.ledgers import Written

from fleetfold import layout
from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.agent.journal import Journal
from fleetfold.dashboard.steps import Steps
from fleetfold.messages import Kind, Report, State, Task, encode
from fleetfold.wiring import hub as wiring
from fleetfold.wiring import local


def task(device: str, round: int) -> Task:
    return Task(
        run="r",
        round=round,
        kind="train",
        device=device,
        model="m",
        digest="",
        update="u",
        seed=1,
        deadline=9.0,
    )


def report(device: str, state: State, reason: str = "", round: int = 1, kind: Kind = "train") -> Report:
    return Report(run="r", round=round, kind=kind, device=device, state=state, reason=reason)


def test_on_this_machine_a_promise_that_is_not_settled_is_being_worked_on(home: Path) -> None:
    written = Written(home, "r", devices=4, cohort=4, rounds=9)
    round = written.open(4)
    assert Steps(written.place).of(round, written.names) == {}, "before any device has begun"
    records = SqliteRecords(written.place.folder / "devices.db")
    at_work, done, earlier, _ = written.names
    for device, number in ((at_work, 1), (done, 1), (earlier, 0)):
        Journal(records, device, "life").promise(task(device, number))
    Journal(records, done, "life").settle(task(done, 1), report(done, "delivered"))
    assert Steps(written.place).of(round, written.names) == {at_work: "training"}


@pytest.mark.parametrize(
    ("said", "step"),
    [
        (report("device-00000", "accepted"), "downloading"),
        (report("device-00000", "progress", "fetching"), "downloading"),
        (report("device-00000", "progress", "training"), "training"),
        (report("device-00000", "progress", "evaluating"), "training"),
        (report("device-00000", "progress", "delivering"), "uploading"),
        (report("device-00000", "progress", "waiting: plugged is required"), None),
        (report("device-00000", "progress", "<script>"), None),
        (report("device-00000", "progress", "training", round=2), None),
        (report("device-00000", "progress", "training", kind="evaluate"), None),
    ],
)
def test_of_a_hubs_devices_it_is_what_they_told_last_of_this_very_round(
    said: Report, step: str | None, home: Path
) -> None:
    records = wiring.records(home)
    written = Written(home, "r", devices=2, cohort=2, rounds=9)
    round = written.open(2)
    (local.hub_folder(home) / "hub.json").write_text("{}")
    wiring.attach(written.place)
    records.put_many([(layout.doing(said.device), encode(said))])
    assert Steps(written.place).of(round, written.names) == ({said.device: step} if step else {})
