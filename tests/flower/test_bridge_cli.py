"""`fleetfold flower bridge`: what a person is told."""

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fleetfold.cli.flower_bridge import rows_table
from fleetfold.cli.main import main
from fleetfold.flower.bridge import Row
from fleetfold.flower.bridge_keeper import Standing
from fleetfold.hub import authority
from fleetfold.hub.enrol import enroll
from fleetfold.wiring import hub
from tests.hub.conftest import free_port

Told = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """What the command complains of with those words, in one line."""
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path / "home"))

    def complaint(*words: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["flower", "bridge", *words])
        assert left.value.code in (1, 2)
        return re.sub(r"\s+", " ", capsys.readouterr().err)

    return complaint


@pytest.fixture
def with_hub(tmp_path: Path) -> None:
    """A hub to whose fleet press-1 belongs."""
    place = authority.Site(hosts=("localhost",), mqtt=free_port(), door=free_port())
    authority.create(hub.folder(tmp_path / "home"), place)
    enroll(hub.records(tmp_path / "home"), hub.folder(tmp_path / "home"), "press-1", 1_000.0)


def test_without_a_hub_the_next_command_makes_one(told: Told) -> None:
    said = told("--superlink", "127.0.0.1:9092", "press-1")
    assert "next: fleetfold hub init" in said


def test_a_device_that_does_not_belong_is_to_be_enrolled(told: Told, with_hub: None) -> None:
    said = told("--superlink", "127.0.0.1:9092", "press-1", "press-2")
    assert "press-2 does not belong to this hub's fleet" in said
    assert "next: fleetfold enroll press-2" in said


def test_without_devices_there_is_nothing_to_bridge(told: Told, with_hub: None) -> None:
    assert "next: fleetfold devices" in told("--superlink", "127.0.0.1:9092")


def test_a_superlink_that_does_not_answer_is_told_before_anything_is_started(
    told: Told, with_hub: None, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert f"no SuperLink answers at {address}" in told("--superlink", address, "--insecure", "press-1")
    assert not (tmp_path / "home" / "bridges").exists()


def test_keys_need_tls(told: Told, with_hub: None) -> None:
    said = told("--superlink", "127.0.0.1:9092", "--insecure", "--keys", "keys", "press-1")
    assert "without TLS takes no keys" in said


@pytest.mark.parametrize("config", ["press-2: a=1", "a=1"])
def test_a_node_config_is_of_a_device_that_is_named(told: Told, with_hub: None, config: str) -> None:
    said = told("--superlink", "127.0.0.1:9092", "--node-config", config, "press-1")
    assert "not DEVICE: key=value" in said


def test_a_time_that_is_none_is_told(told: Told, with_hub: None) -> None:
    said = told("--superlink", "127.0.0.1:9092", "--away", "soon", "press-1")
    assert "--away" in said
    assert "90s" in said


def test_of_simulated_devices_those_are_known_that_there_are(told: Told) -> None:
    app = str(Path(__file__).parent / "apps" / "digits")
    said = told("--superlink", "127.0.0.1:9092", "--app", app, "--count", "3", "press-1")
    assert "they are device-000 to device-002" in said


def test_the_table_says_of_each_device_whether_it_is_connected_what_it_does_and_what_failed() -> None:
    rows = [
        Row(
            device="press-1", doing="train", since=100.0, forwarded=3,
            standing=Standing(device="press-1", state="connected", at=1.0, node="42"),
        ),
        Row(
            device="press-2", forwarded=2, failed=1, why="press-2 did not answer within 60 s",
            standing=Standing(device="press-2", state="connected", at=1.0),
        ),
        Row(
            device="press-3",
            standing=Standing(device="press-3", state="waiting", at=1.0, why="it was killed"),
        ),
    ]  # fmt: skip
    console = Console(width=120, record=True, file=StringIO())
    console.print(rows_table(rows, now=112.0))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["press-1", "connected", "train,", "12", "s", "3", "0"]
    assert lines[2][:5] == ["press-2", "connected", "idle", "2", "1"]
    assert "did not answer within 60 s" in text
    assert lines[3] == ["press-3", "waiting", "idle", "0", "0", "it", "was", "killed"]
