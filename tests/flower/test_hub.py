"""The same over MQTT: a hub, its broker, agents with the app, and the app's own process apart from them."""

from pathlib import Path

from tests.flower.test_run import Desk, ends
from tests.hub.fleet import Fleet

DEVICES = 3


def test_an_app_on_a_hubs_fleet_comes_to_what_it_comes_to_here(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    here = ends(desk.run("flower", "run", "app", "--devices", str(DEVICES))[0])
    with Fleet(tmp_path, desk.app, DEVICES) as fleet:
        words = ("flower", "run", "app", "--hub", "--available", str(DEVICES))
        said, errors, code = desk.run(*words)
        assert (code, errors) == (0, "")
        assert ends(said) == here

        killed = desk.begun(*words)
        assert killed.stdout is not None
        next(line for line in killed.stdout if line.startswith("round 1/3"))
        killed.kill()
        killed.communicate()
        fleet.kill("device-001")
        fleet.start("device-001")
        said, errors, code = desk.run("flower", "run", "--resume", "latest")
        assert (code, errors) == (0, "")
        assert ends(said) == here


def test_an_app_on_a_hubs_fleet_has_a_process_only_while_there_is_something_to_do(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    here = ends(desk.run("flower", "run", "app", "--devices", str(DEVICES))[0])
    with Fleet(tmp_path, desk.app, DEVICES):
        words = ("flower", "run", "app", "--hub", "--suspend", "--available", str(DEVICES))
        said, errors, code = desk.run(*words)
    assert (code, errors) == (0, "")
    assert ends(said) == here
    (log,) = desk.folder.glob("home/runs/app-2/server.log")
    assert log.read_text().count("Going on with FedAdam") >= 6
