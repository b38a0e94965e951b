"""The hub as a whole, with devices that come, go, fail, lie and are cut off: every part a real process."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fleetfold import layout
from fleetfold.bundle import load, save
from fleetfold.coordinator import errands
from fleetfold.fold.tensors import read, write
from fleetfold.hub import desk
from fleetfold.messages import Report
from fleetfold.round.run import RunState
from fleetfold.wiring import hub as wiring
from tests.hub.fleet import Fleet
from tests.hub.proxy import Proxy
from tests.hub.weather import Weather
from tests.hub.wire import connected_link
from tests.s3 import BUCKET, S3, serving

pytestmark = pytest.mark.fleet

APP = Path(__file__).with_name("small_app.py")
THREE = ("device-000", "device-001", "device-002")
SPARE = ("device-003", "device-004", "device-005")
"""Devices that belong and join in a test of their own."""
OF_THREE = "name == 'device-000' or name == 'device-001' or name == 'device-002'"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="module")
def weather() -> Iterator[Weather]:
    with closing(Weather()) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, stage: Path, weather: Weather) -> Iterator[Fleet]:
    """Three devices that are there, and three that belong."""
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(
        folder, APP, devices=6, started=3, through=weather.to, environment={"STAGE": str(stage)}
    ) as made:
        made.until(lambda: all(made.is_online(name) for name in THREE))
        yield made


@pytest.fixture(autouse=True)
def _nobody_is_held(stage: Path) -> Iterator[None]:
    yield
    for path in stage.iterdir():
        path.unlink()


def begin(
    fleet: Fleet, *settings: str, where: str = OF_THREE, there: int = 3, app: Path | None = None, **more: str
) -> str:
    """A run on some of the devices. `more`: of its environment."""
    before, fleet.environment = fleet.environment, fleet.environment | more
    try:
        return fleet.begin(
            "--where", where, "--available", str(there), "--deadline", "120s", *settings, app=app
        )
    finally:
        fleet.environment = before


def only(*names: str) -> str:
    return " or ".join(f"name == '{name}'" for name in names)


def test_runs_are_driven_one_after_another_and_a_second_hub_is_told_no(fleet: Fleet, stage: Path) -> None:
    (stage / "hold device-001").touch()
    first = begin(fleet, "--rounds", "2")
    second = begin(fleet, "--rounds", "1")
    fleet.until(lambda: (stage / "begun device-001 1").exists())
    assert "held by process" in fleet.command("hub", code=2)
    assert fleet.rounds(second) == []
    (stage / "hold device-001").unlink()
    before, after = fleet.finished(first), fleet.finished(second)
    assert fleet.rounds(second)[0].opened_at >= before.ended_at > 0
    assert after.version == 1
    assert [len(round.arrived) for round in fleet.rounds(first)] == [3, 3]
    assert first in fleet.command("runs")
    fleet.until(lambda: desk.queued(wiring.records(fleet.home)) == ())


def test_a_run_that_was_queued_and_never_opened_holds_nobody_up(fleet: Fleet) -> None:
    """Its opener died in between."""
    records = wiring.records(fleet.home)
    desk.queue(records, "never-opened", time.time())
    desk.queue(records, "older", time.time() - 3600)
    run = begin(fleet, "--rounds", "1")
    fleet.finished(run)
    assert [waiting.run for waiting in desk.queued(records) if waiting.run != run] == ["never-opened"]
    desk.leave(records, desk.queued(records)[0])


def test_a_hub_that_is_killed_goes_on_with_the_queue(fleet: Fleet, stage: Path) -> None:
    (stage / "hold device-000").touch()
    first, second = begin(fleet, "--rounds", "1"), begin(fleet, "--rounds", "1")
    fleet.until(lambda: (stage / "begun device-000 1").exists())
    fleet.kill("hub")
    (stage / "hold device-000").unlink()
    fleet.start("hub")
    assert (fleet.finished(first).version, fleet.finished(second).version) == (1, 1)
    assert len(fleet.rounds(first)[0].arrived) == 3


def test_a_stopped_run_gives_its_devices_to_the_next_and_goes_on_when_it_is_resumed(
    fleet: Fleet, stage: Path
) -> None:
    (stage / "begun device-000 1").unlink(missing_ok=True)
    (stage / "hold device-000").touch()
    first, second = begin(fleet, "--rounds", "2"), begin(fleet, "--rounds", "1")
    fleet.until(lambda: (stage / "begun device-000 1").exists())
    assert "is given up" in fleet.command("stop", first)
    assert fleet.until(lambda: fleet.state(first).state is RunState.STOPPED)
    (stage / "hold device-000").unlink()
    assert fleet.finished(second).version == 1
    assert fleet.state(first).state is RunState.STOPPED, "it is nobody's until somebody resumes it"
    fleet.command("resume", first)
    resumed = fleet.finished(first)
    assert [round.phase.value for round in fleet.rounds(first)] == ["failed", "done"]
    assert (resumed.version, resumed.round) == (1, 2)


def test_an_app_that_fails_on_the_devices_fails_the_run_and_show_says_why(
    fleet: Fleet, tmp_path: Path
) -> None:
    shutil.copy(APP, tmp_path / "app.py")
    (tmp_path / "fleetfold.toml").write_text("[app]\nfail = true\n")
    run = begin(fleet, "--rounds", "3", "--patience", "1", app=tmp_path)
    ended = fleet.finished(run, RunState.FAILED)
    assert "every device has answered, 3 refused" in ended.reason
    assert "failed" in fleet.command("show", run)
    told = fleet.command("show", run, "--round", "1", "--json")
    assert told.count("ValueError: this app fails on devices") == 3


def test_a_device_without_the_memory_refuses_and_show_says_so(fleet: Fleet) -> None:
    """40 MB, held several times over."""
    fleet.start("device-003", "--memory", "150MB")
    fleet.until(lambda: fleet.is_online("device-003"))
    run = begin(
        fleet, "--rounds", "1", "--patience", "1", where=only("device-003"), there=1, VALUES="10000000"
    )
    assert "1 refused" in fleet.finished(run, RunState.FAILED).reason
    assert "not enough memory" in fleet.command("show", run, "--round", "1", "--json")
    fleet.stop("device-003")


def test_who_is_revoked_in_mid_run_is_cut_off_at_once_and_enrolled_anew_takes_part_again(
    fleet: Fleet, stage: Path
) -> None:
    for name in ("device-001", "device-002"):
        (stage / f"hold {name}").touch()
    run = begin(fleet, "--rounds", "3", "--target", "2", "--quorum", "2", there=2)
    fleet.until(lambda: (stage / "begun device-002 1").exists())
    assert "revoked and cut off" in fleet.command("revoke", "device-002")
    fleet.until(lambda: not fleet.is_online("device-002"))
    (stage / "hold device-001").unlink()
    fleet.finished(run)
    assert [len(round.arrived) for round in fleet.rounds(run)] == [2, 2, 2]
    assert fleet.rounds(run)[-1].invited == 2, "who was revoked is not asked any more"
    assert "off" in fleet.command("devices")
    (stage / "hold device-002").unlink()
    fleet.stop("device-002")
    fleet.command("enroll", "device-002", "--out", str(fleet.folder / "device-002.bundle"))
    made = load(fleet.folder / "device-002.bundle")
    save(msgspec.structs.replace(made, brokers=fleet.brokers), fleet.folder / "device-002.bundle")
    fleet.start("device-002")
    fleet.until(lambda: fleet.is_online("device-002"))
    again = begin(fleet, "--rounds", "1")
    fleet.finished(again)
    assert len(fleet.rounds(again)[0].arrived) == 3


def test_one_device_is_asked_outside_of_any_round(fleet: Fleet, stage: Path, tmp_path: Path) -> None:
    run = begin(fleet, "--rounds", "1")
    fleet.finished(run)
    assert "mean 2.000 on 5 examples" in fleet.command("ask", "device-001", "evaluate", "--run", run)
    given, got = tmp_path / "given.safetensors", tmp_path / "got.safetensors"
    given.write_bytes(write({"w": np.full(8, 7.5, np.float32)}))
    assert "done" in fleet.command("ask", "device-001", "set", "--model", str(given))
    fleet.command("ask", "device-001", "get", "--out", str(got))
    assert read(got.read_bytes())[0]["w"].tolist() == [7.5] * 8
    assert "mean 7.500 on" in fleet.command("ask", "device-001", "evaluate")
    assert [path.name for path in fleet.home.glob("commands/*")] == [], "nothing is left of it"
    found = wiring.records(fleet.home).get(errands.COMMANDS)
    assert found
    assert found.value == b"[]"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("device-000", "cancel"), 1, "there is no task in hand"),
        (("device-000", "dance"), 2, "not one of evaluate, get, set, cancel"),
        (("nobody", "get"), 2, "does not belong to this fleet"),
        (("../x", "get"), 2, "is not a name"),
        (("device-000", "set"), 2, "set what?"),
        (("device-000", "evaluate", "--run", "none-7"), 2, "there is no run"),
        (("device-000", "set", "--model", "/no/such/file"), 2, "No such file"),
        (("device-005", "get", "--wait", "1s"), 1, "has not answered in 1 s: it may be off"),
        (("device-000", "get", "--wait", "soon"), 2, "is not a time"),
    ],
)
def test_what_cannot_be_asked_is_told(fleet: Fleet, words: tuple[str, ...], code: int, why: str) -> None:
    assert why in fleet.command("ask", *words, code=code)


def test_a_device_at_work_does_what_else_it_is_asked_afterwards_and_leaves_off_when_told(
    fleet: Fleet, stage: Path
) -> None:
    other = begin(fleet, "--rounds", "1")
    fleet.finished(other)
    (stage / "begun device-000 1").unlink()
    (stage / "hold device-000").touch()
    run = begin(fleet, "--rounds", "1", "--quorum", "2")
    fleet.until(lambda: (stage / "begun device-000 1").exists())
    assert "has not answered" in fleet.command("ask", "device-000", "evaluate", "--wait", "1s", code=1)
    assert "refused to cancel: the task in hand is of run" in fleet.command(
        "ask", "device-000", "cancel", "--run", other, code=1
    )
    assert "done" in fleet.command("ask", "device-000", "cancel", "--run", run)
    fleet.finished(run)
    assert "cancelled by the hub's command" in fleet.command("show", run, "--round", "1", "--json")
    assert len(fleet.rounds(run)[0].arrived) == 2


def test_reports_that_mean_nothing_are_counted_and_change_nothing(fleet: Fleet) -> None:
    run = begin(fleet, "--rounds", "1")
    fleet.finished(run)
    before = fleet.model()
    with closing(connected_link(load(fleet.folder / "device-004.bundle"))) as link:
        told = {"kind": "train", "device": "device-004", "state": "delivered"}
        for other, round in ((run, 1), (run, 1), (run, 99), ("unknown", 1), ("\x1b[2J", -5)):
            link.report(Report(run=other, round=round, **told))  # type: ignore[arg-type]

        def ignored() -> dict[str, int]:
            status = desk.status(wiring.records(fleet.home))
            assert status
            return status.ignored

        fleet.until(lambda: sum(n for why, n in ignored().items() if f"{run}, which has ended" in why) >= 3)
        assert any("run unknown, which has ended" in why for why in ignored())
        assert all(why.isprintable() for why in ignored())
    assert fleet.model() == before
    assert "ignored 3" in fleet.command("hub", "status")


def test_reports_during_a_run_that_mean_nothing_are_counted_and_change_nothing(
    fleet: Fleet, stage: Path
) -> None:
    (stage / "hold device-000").touch()
    run = begin(fleet, "--rounds", "1")
    fleet.until(lambda: (stage / "begun device-000 1").exists())
    with closing(connected_link(load(fleet.folder / "device-004.bundle"))) as link:
        for other, round in ((run, 1), (run, 7), ("unknown", 1)):
            link.report(Report(run=other, round=round, kind="train", device="device-004", state="delivered"))
        wanted = {
            "report of a device that was not invited to its round",
            f"report for no round of run '{run}' here",
            "report for no round of run 'unknown' here",
        }  # fmt: skip

        def counted() -> bool:
            status = desk.status(wiring.records(fleet.home))
            return status is not None and wanted <= status.ignored.keys()

        fleet.until(counted)
    (stage / "hold device-000").unlink()
    fleet.finished(run)
    assert len(fleet.rounds(run)[0].arrived) == 3


def lying(off: str) -> dict[str, str]:
    """The environment in which the clock is so far off: what `faketime` gives to whom it runs."""
    said = subprocess.run(["faketime", "-f", off, "env"], capture_output=True, text=True, check=True).stdout
    given = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    wanted = {name: given[name] for name in ("LD_PRELOAD", "FAKETIME")}
    return wanted | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def test_devices_whose_clocks_are_a_year_off_complete_their_rounds(fleet: Fleet) -> None:
    assert shutil.which("faketime"), "this test needs a program that lies about time: apt install faketime"
    for name, off in (("device-004", "+1y"), ("device-005", "-1y")):
        fleet.start(name, **lying(off))
    fleet.until(lambda: fleet.is_online("device-004") and fleet.is_online("device-005"))
    run = begin(fleet, "--rounds", "2", where=only("device-004", "device-005"), there=2)
    fleet.finished(run)
    assert [len(round.arrived) for round in fleet.rounds(run)] == [2, 2]
    fleet.stop("device-004")
    fleet.stop("device-005")


def test_an_update_in_parts_is_gone_on_with_after_a_kill_where_it_stood(
    fleet: Fleet, weather: Weather, stage: Path
) -> None:
    """10 million values, 40 MB: a part of 32 MiB and the rest."""
    fleet.start("device-003", "--memory", "0", VALUES="10000000")
    fleet.until(lambda: fleet.is_online("device-003"))
    run = begin(fleet, "--rounds", "1", where=only("device-003"), there=1, VALUES="10000000")
    key = layout.update(layout.round(run, 1, "train"), "device-003")
    first, rest = (fleet.home / layout.part(key, number, 2) for number in range(2))
    fleet.until(lambda: any(f.stat().st_size for f in (fleet.folder / "device-003" / "spool").glob("*")))
    weather.pace = 60_000_000.0
    fleet.until(first.exists)
    weather.pace = 1_000_000.0
    fleet.kill("device-003")
    assert not rest.exists()
    begun, before = (stage / "begun device-003 1").stat().st_mtime_ns, first.stat()
    weather.pace, relayed = 0.0, weather.relayed
    fleet.start("device-003", VALUES="10000000")
    fleet.finished(run)
    assert weather.relayed - relayed < 32 << 20, "the part that had arrived did not go once more"
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (stage / "begun device-003 1").stat().st_mtime_ns == begun, "nor was it trained again"
    fleet.stop("device-003")


def test_a_device_behind_a_proxy_takes_part_over_websockets_alone(tmp_path: Path, stage: Path) -> None:
    """The proxy knows the hub by a name that nobody else does, and wants to know who comes."""
    host = "hub.example"
    with closing(Proxy({host: "127.0.0.1"}, "agent", "a secret")) as proxy:
        through = f"http://agent:a%20secret@127.0.0.1:{proxy.port}"
        with Fleet(tmp_path, APP, devices=1, started=0, host=host) as fleet:
            bundle = tmp_path / "device-000.bundle"
            brokers = (f"wss://{host}:{fleet.site.websockets}/mqtt",)
            save(msgspec.structs.replace(load(bundle), brokers=brokers), bundle)
            fleet.start("device-000", HTTPS_PROXY=through, NO_PROXY="", STAGE=str(stage))
            fleet.begin("--rounds", "2")
            fleet.finished()
            assert [len(round.arrived) for round in fleet.rounds()] == [1, 1]
            ports = {fleet.site.websockets, fleet.site.door}
        assert set(proxy.asked) == {(host, port) for port in ports}
        assert proxy.refused == 0


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_with_a_store_no_byte_of_a_model_or_an_update_passes_the_hub(
    tmp_path: Path, stage: Path, s3: S3
) -> None:
    more = {"FLEETFOLD_AGENT_PLAIN": "1", "STAGE": str(stage)}
    with Fleet(tmp_path, APP, devices=2, objects=f"s3://{BUCKET}/fleet", environment=more) as fleet:
        fleet.begin("--rounds", "2")
        run = fleet.finished()
        assert [len(round.arrived) for round in fleet.rounds()] == [2, 2]
        updates = [key for method, key in s3.asked if method == "PUT" and "/updates/" in key]
        assert len(updates) == 4
        assert f"fleet/{layout.model(run.name, 2)}" in s3.objects
        assert not list(fleet.home.rglob("*.safetensors")), "nothing of it lies with the hub"
        status = fleet.until(lambda: desk.status(wiring.records(fleet.home)))
        assert status.refused == {}
        assert "2 rounds done" in fleet.command("show", "latest")
        fleet.command("export", "latest", "--out", str(tmp_path / "model.safetensors"))
        assert read((tmp_path / "model.safetensors").read_bytes())[0]["w"].tolist() == [3.0] * 8
        assert "mean 3.000 on" in fleet.command("ask", "device-001", "evaluate", "--run", run.name)
        got = tmp_path / "got.safetensors"
        fleet.command("ask", "device-001", "get", "--out", str(got))
        assert got.stat().st_size
        assert not [key for key in s3.objects if "/commands/" in key]
