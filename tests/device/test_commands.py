"""What a person types on a device, and what it says."""

import json
import os
import shutil
import ssl
import stat
import subprocess
import time
from pathlib import Path

import pytest

from fleetfold import bundle
from fleetfold.bundle import Bundle
from fleetfold.device import status, terms, unit
from fleetfold.device.conditions import Condition
from fleetfold.device.terms import Home, Terms
from fleetfold.errors import BadConfig
from tests.device.agent import Agent, Shell, fleetfold


def refused(result: Shell, *said: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    for word in said:
        assert word in result.stderr, result.stderr


def test_every_command_has_help_with_examples() -> None:
    for command in (["join"], ["agent", "status"], ["agent", "csr"]):
        result = fleetfold(*command, "--help")
        assert result.returncode == 0
        assert "examples:\n  fleetfold " + " ".join(command) in result.stdout


def test_what_is_wrong_is_said_in_one_sentence_with_what_to_do(agent: Agent, tmp_path: Path) -> None:
    join, app = ["join", str(agent.bundle)], ["--app", str(agent.hub.folder)]
    refused(fleetfold("join"), "belongs to no fleet yet", "next: fleetfold join BUNDLE")
    refused(fleetfold("agent", "status"), "belongs to no fleet yet")
    refused(fleetfold("join", str(tmp_path / "none"), *app), "No such file", "next: fleetfold enroll")
    refused(fleetfold(*join, "--app", "nowhere"), "there is no app at 'nowhere'")
    refused(fleetfold(*join, *app, "--daily-bytes", "much"), "flags: daily_bytes = 'much' is not a size")
    refused(fleetfold(*join, *app, "--require", "sun"), "there is no condition 'sun'", "--condition sun=")
    refused(fleetfold(*join, *app, "--nice", "77"), "nice = 77")
    refused(fleetfold(*join, *app, "--frobnicate"), "--frobnicate", "next: fleetfold join --help")
    refused(fleetfold("agent"), "next: fleetfold agent --help")
    assert "Traceback" in fleetfold("join", "--debug").stderr


def test_an_app_that_is_broken_is_told_at_once_and_not_with_the_first_task(agent: Agent) -> None:
    (agent.hub.folder / "app.py").write_text("import nothing_like_it\n")
    agent.join()
    assert agent.process is not None
    assert agent.process.wait(60) == 2
    assert "error: " in agent.log()
    assert "nothing_like_it" in agent.log()


def test_a_bundle_of_another_device_does_not_take_over_a_home(agent: Agent, tmp_path: Path) -> None:
    agent.join()
    agent.until(agent.hub.presences)
    agent.leave()
    own = bundle.load(agent.bundle)
    other = tmp_path / "other.bundle"
    fields = {name: getattr(own, name) for name in own.__struct_fields__}
    bundle.save(Bundle(**{**fields, "device": "press-8"}), other)
    refused(fleetfold("join", str(other)), "is the home of press-7 of fleet main", "--home FOLDER")


def test_one_agent_at_a_time_has_a_home(agent: Agent) -> None:
    agent.join()
    agent.until(agent.hub.presences)
    assert agent.process is not None
    refused(fleetfold("join"), f"is held by process {agent.process.pid}")


def test_what_join_was_told_is_kept_the_environment_and_flags_go_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    terms.keep(home, {"require": "charging,idle", "daily_bytes": "200MB"})
    terms.keep(home, {"nice": "5"})
    monkeypatch.setenv("FLEETFOLD_AGENT_NICE", "7")
    monkeypatch.setenv("FLEETFOLD_AGENT_MEMORY", "1.5 GB")
    layers = {"file": terms.kept(home), "environment": terms.from_environment(), "flags": {"keep_warm": "2m"}}
    found = terms.resolve(layers)
    assert (found.require, found.daily_bytes, found.nice) == (("charging", "idle"), 200_000_000, 7)
    assert (found.memory, found.keep_warm) == (1_500_000_000, 120.0)
    home.settings.write_text("{")
    with pytest.raises(BadConfig, match=r"settings\.json"):
        terms.kept(home)


def test_the_home_keeps_the_key_to_itself(agent: Agent) -> None:
    agent.join()
    agent.until(agent.hub.presences)
    assert stat.S_IMODE((agent.home / "bundle.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(agent.home.stat().st_mode) == 0o700


def test_a_key_made_on_the_device_fits_its_own_certificate_alone(agent: Agent, tmp_path: Path) -> None:
    request = tmp_path / "press-7.csr"
    result = fleetfold("agent", "csr", "press-7", "--out", str(request))
    assert result.returncode == 0, result.stderr
    key = tmp_path / "press-7.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    fleetfold("agent", "csr", "press-7", "--out", str(request))
    assert key.read_bytes() == before
    signed = subprocess.run(
        ["openssl", "req", "-x509", "-key", str(key), "-in", str(request), "-subj", "/CN=press-7"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    fields = {name: getattr(bundle.load(agent.bundle), name) for name in Bundle.__struct_fields__}
    bare = tmp_path / "bare.bundle"
    bundle.save(Bundle(**{**fields, "key": "", "certificate": signed}), bare)
    refused(fleetfold("join", str(bare)), "there is no key", "--key FILE")
    foreign = tmp_path / "foreign.key"
    foreign.write_text(fields["key"])
    refused(fleetfold("join", str(bare), "--key", str(foreign)), "do not belong together")
    agent.bundle = bare
    agent.join("--key", str(key))
    agent.until(agent.hub.presences)
    assert bundle.load(agent.home / "bundle.json").key == before.decode()


def test_without_openssl_it_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(fleetfold("agent", "csr", "d", "--out", str(tmp_path / "d.csr")), "openssl, which is not here")


def test_a_certificate_says_whose_it_is(identity: tuple[str, str]) -> None:
    assert status.identity(identity[0]) == ("press-7", "00112233aabbccdd")
    assert status.identity("nonsense") == ("", "")
    assert ssl.PEM_cert_to_DER_cert(identity[0])


@pytest.mark.parametrize("root", [True, False])
def test_the_unit_is_one_that_systemd_takes(root: bool, tmp_path: Path) -> None:
    home = Home(unit.STATE if root else tmp_path)
    made = unit.unit(home, Terms(app="/opt/app", memory=10**9, nice=10, idle_io=True), root=root)
    for line in ("Restart=always", "NoNewPrivileges=yes", "MemoryMax=1100000000", "Nice=10"):
        assert line in made.text.splitlines()
    assert ("ProtectSystem=strict" in made.text) == ("DynamicUser=yes" in made.text) == root
    if shutil.which("systemd-analyze"):
        place = tmp_path / made.place.name
        place.write_text(made.text)
        checked = subprocess.run(
            ["systemd-analyze", *([] if root else ["--user"]), "verify", str(place)],
            capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        )  # fmt: skip
        assert made.place.name not in checked.stderr, checked.stderr


def test_join_prints_the_unit_and_keeps_what_it_was_told(agent: Agent) -> None:
    told = ["join", str(agent.bundle), "--app", str(agent.hub.folder), "--memory", "1GB"]
    result = fleetfold(*told, "--systemd", "-", "--home", str(agent.home))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("[Unit]")
    assert f"Environment=FLEETFOLD_AGENT_HOME={agent.home}" in result.stdout
    assert json.loads((agent.home / "settings.json").read_text())["memory"] == "1GB"


def test_status_is_one_screen_that_says_what_it_does_and_why(agent: Agent) -> None:
    home, mine = Home(agent.home), bundle.load(agent.bundle)
    assert "has never run" in status.screen(home, mine, Terms(), None, 0.0)
    home.cache.mkdir(parents=True)
    (home.cache / ("0" * 64)).write_bytes(b"1234")
    waiting = "waiting: charging is required, battery is discharging at 41%"
    state = status.State(
        pid=os.getpid(), born=status.born(os.getpid()), version="0.1.0", started=0.0, fleet="main",
        device="press-7", broker="mqtts://hub:8883", connected=False, since=90.0, why="connection refused",
        doing=(status.Doing("digits-1 round 12", 10.0, "waiting", 10.0, waiting),
               status.Doing("command get", 50.0, "delivering", 60.0, "", 5_000_000, 10_000_000)),
        conditions=(Condition("charging", False, "battery is discharging at 41%"),),
        answers=(status.Told(0.0, "digits-1 round 11", "delivered"),), used=40_000_000,
        terms=Terms(daily_bytes=200_000_000),
    )  # fmt: skip
    screen = status.screen(home, mine, Terms(app="/opt/app"), state, 100.0)
    for said in (
        "press-7 of fleet main: running for 1 m 40 s", "not connected to mqtts://hub:8883 for 10 s: conn",
        "digits-1 round 12", waiting, "5.0 MB of 10.0 MB", "charging   NO: battery is discharging at 41%",
        "1 m 40 s ago: digits-1 round 11 delivered", "40.0 MB moved of 200.0 MB, 160.0 MB left",
        "models     1 file, 4 B", "spool      none", "press-7, credential 00112233aabbccdd", "agent ",
    ):  # fmt: skip
        assert said in screen, screen
    assert len(screen.splitlines()) <= 24


def test_status_knows_that_nobody_is_there_and_prints_json(agent: Agent) -> None:
    agent.join()
    agent.until(agent.hub.presences)
    found = json.loads(fleetfold("agent", "status", "--json").stdout)
    assert (found["running"], found["state"]["connected"]) == (True, True)
    agent.kill()
    assert not json.loads(fleetfold("agent", "status", "--json").stdout)["running"]
    assert f"not running, last seen {time.strftime('%Y-')}" in fleetfold("agent", "status").stdout


def test_the_log_is_json_when_asked_for(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task())
    agent.join("--log-format", "json")
    agent.settled()
    agent.leave()
    lines = [json.loads(line) for line in agent.log().splitlines()]
    assert (lines[0]["what"], lines[-1]["what"]) == ("joins", "left")
    [told] = [line for line in lines if line["what"] == "delivered"]
    assert (told["run"], told["round"], told["kind"]) == ("r", 1, "train")
    assert {line["device"] for line in lines} == {lines[0]["device"]}
