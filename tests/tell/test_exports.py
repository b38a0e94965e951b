"""What other programs are given of a run: read back by themselves, and hostile text harms none of them."""

import csv
import io
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfold.ledger import Ledger
from fleetfold.round.run import Run, RunState
from fleetfold.settings import Settings
from fleetfold.tell import exports, to_mlflow
from fleetfold.tell.exports import event_file, event_name, plain, series, to_csv
from fleetfold.tell.journal import NAME, Journal
from fleetfold.view import Row, rows
from tests.tell.hostile import SCRIPT, TEXTS, row
from tests.world import World

ROWS = [row(1), row(2, credited=2, late=1), row(3, phase="failed", metrics={}, loss=None, accuracy=None)]
OPEN = row(4, phase="open", ended_at=0.0)


# CSV


def test_a_csv_has_a_line_for_each_round_that_has_ended_and_a_cell_for_each_number() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv("r-1", [*ROWS, OPEN]))))
    assert [line["round"] for line in lines] == ["1", "2", "3"]
    assert (lines[1]["devices_used"], lines[1]["late"], lines[1]["devices/f1"]) == ("5", "1", "0.25")
    assert (lines[2]["phase"], lines[2]["loss"], lines[2]["devices/f1"]) == ("failed", "", "")
    assert float(lines[0]["reported_loss"]) == 0.5


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_no_text_of_a_device_is_a_formula_or_a_command_in_a_csv(text: str) -> None:
    hostile = row(reason=text, metrics={"devices": {text[:64]: 0.5, "=2+3": 1.0}})
    told = to_csv(text, [hostile])
    told.encode()
    assert all(c.isprintable() or c == "\n" for c in told)
    header, line = csv.reader(io.StringIO(told))
    assert len(header) == len(line)
    assert not any(cell.startswith(("=", "+", "@")) for cell in (*header, *line))
    assert all(len(cell) <= 501 for cell in line)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", ".", "", "a/b", "a\\b", "\x00", SCRIPT, "ü" * 300]
)
def test_a_name_is_one_part_of_a_path_and_no_way_out(name: str) -> None:
    made = plain(name)
    assert 0 < len(made) <= 64
    assert not set(made) & set("/\\<>\x00:")
    assert made not in (".", "..")


# metrics.jsonl


def told(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / NAME).read_text().splitlines()
    return [(line["round"], line["kind"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def lived() -> World:
    world = World(devices=2, rounds=2, evaluate="cohort")
    world.live()
    return world


ALL = [(1, "train"), (1, "evaluate"), (2, "train"), (2, "evaluate")]


class Kept(Journal):
    """A journal with the ledger that its rows come from."""

    def __init__(self, folder: Path, world: World) -> None:
        super().__init__(folder, "r")
        self._world = world

    def keep(self) -> list[Row]:
        return self.add(rows(Ledger(self._world.records), self._world.objects, "r", self._world.now))


def test_every_round_has_its_line_when_it_ends_and_no_other(tmp_path: Path) -> None:
    world = World(devices=2, rounds=2, evaluate="cohort")
    for step in range(1, 400, 5):
        world.live(step)
        kept = Kept(tmp_path, world)
        kept.keep()
        assert kept.keep() == []
        if world.run().state is not RunState.RUNNING:
            break
        now = told(tmp_path) if (tmp_path / NAME).exists() else []
        assert now == ALL[: len(now)]
    assert told(tmp_path) == ALL


def test_a_death_in_the_middle_of_a_line_neither_loses_nor_doubles_a_round(
    tmp_path: Path, lived: World
) -> None:
    Kept(tmp_path, lived).keep()
    path = tmp_path / NAME
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        Kept(tmp_path, lived).keep()
        assert path.read_bytes() == whole, f"cut at byte {cut}"


def test_what_is_no_line_or_stands_there_twice_is_taken_out(tmp_path: Path, lived: World) -> None:
    Kept(tmp_path, lived).keep()
    path = tmp_path / NAME
    whole = path.read_bytes()
    path.write_bytes(b"\xff\xfe\n" + whole[:100] + b"\n" + whole + whole + b"{}\n[1")
    Kept(tmp_path, lived).keep()
    assert path.read_bytes() == whole


def test_a_disk_that_is_full_ends_no_run_and_the_line_is_written_later(tmp_path: Path, lived: World) -> None:
    folder = tmp_path / "not-yet"
    kept = Kept(folder, lived)
    assert kept.keep() == []
    folder.mkdir()
    assert len(kept.keep()) == len(ALL)
    assert told(folder) == ALL


# TensorBoard


def records(data: bytes) -> Iterator[bytes]:
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_an_event_file_has_a_record_for_each_round_and_the_same_rows_give_the_same_bytes() -> None:
    data = event_file([*ROWS, OPEN])
    assert data == event_file([*ROWS, OPEN])
    assert len(list(records(data))) == 1 + len(ROWS)
    assert data.startswith(event_file(ROWS[:2])), "a run that goes on only adds to it"
    assert event_name("r-1", ROWS).startswith("events.out.tfevents.")


@pytest.mark.tools
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_every_number_at_its_round(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluation = row(2, kind="evaluate", metrics={"devices": {"accuracy": 0.75, "=1+1": 1e300}})
    hostile = row(3, metrics={"devices": {text[:64]: 0.5 for text in TEXTS}})
    told = [ROWS[0], ROWS[1], evaluation, hostile]
    folder = tmp_path / "r-1"
    folder.mkdir()
    (folder / event_name("r-1", told)).write_bytes(event_file(told))
    read = EventAccumulator(str(folder))
    read.Reload()
    for each in told:
        for name, value in series(each).items():
            [found] = [event for event in read.Scalars(name) if event.step == each.round]
            assert found.wall_time == each.ended_at
            assert math.isclose(found.value, value, rel_tol=1e-6) or (
                value == 1e300 and math.isinf(found.value)
            )
    assert {"reported_accuracy", "evaluate/reported_accuracy"} <= set(read.Tags()["scalars"])


# MLflow

RUN = Run(
    name="digits-1", app="app.py", settings=Settings(rounds=3), started_at=1_000.0, state=RunState.DONE,
    ended_at=1_040.0,
)  # fmt: skip


@pytest.mark.tools
@pytest.mark.filterwarnings("ignore")  # of MLflow's own libraries, about each other
def test_mlflow_reads_every_number_at_its_round_and_a_second_export_adds_what_is_new(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    going_on = Run(name=RUN.name, app=RUN.app, settings=RUN.settings, started_at=RUN.started_at)
    to_mlflow.export(going_on, ROWS[:1], store)
    hostile = row(4, metrics={"devices": {text[:64]: 0.5 for text in TEXTS} | {"../../up": 1.0, "..": 2.0}})
    for _ in range(2):
        to_mlflow.export(RUN, [*ROWS, hostile], store)
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["rounds"]) == ("digits-1", "FINISHED", "3")
    for each in (*ROWS, hostile):
        for name, value in series(each).items():
            [found] = [m for m in client.get_metric_history(run.info.run_id, name) if m.step == each.round]
            assert (found.value, found.timestamp) == (value, int(each.ended_at * 1000))


def test_an_exchange_of_messages_stands_at_the_apps_own_round_under_its_label() -> None:
    train = row(6, kind="message", label="train", turn=3)
    evaluate = row(7, kind="message", label="evaluate", turn=3)
    query = row(8, kind="message", label="../query", metrics={})
    assert [exports.step(each) for each in (train, evaluate, query)] == [3, 3, 8]
    assert "reported_loss" in series(train)
    assert "evaluate/reported_loss" in series(evaluate)
    assert all(name.startswith("_query/") for name in series(query))


def test_what_mlflow_is_told_has_names_that_it_takes() -> None:
    hostile: Row = row(metrics={"devices": {text[:64]: 0.5 for text in TEXTS}})
    assert all(part.strip(" ._") or part == "_" for name in series(hostile) for part in name.split("/"))
    assert exports.ended([OPEN]) == []
