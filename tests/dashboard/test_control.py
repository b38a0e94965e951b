"""Runs are paused, stopped, resumed and started from the page, and do it: real processes on this machine."""

from pathlib import Path

import pytest
from bench.ledgers import Written

from fleetfold.adapters.lock import is_held
from fleetfold.round.run import RunState
from fleetfold.round.state import Phase
from fleetfold.wiring.local import Place
from tests.dashboard.running import ledger_of, place_of, running, until
from tests.dashboard.site import serving
from tests.dashboard.test_watch import until as told_until


def test_a_run_is_paused_resumed_stopped_and_another_is_started_like_it(home: Path) -> None:
    place = place_of(home)
    with (
        running(home, "--devices", "4", "--rounds", "400", "--workers", "1") as process,
        serving(home) as site,
    ):
        until(place, lambda run: run.round > 1)
        assert "pauses when round" in site.do(place.run, "pause").json["said"]
        assert process.wait(60) == 0
        paused = until(place, lambda run: run.state is RunState.PAUSED)
        assert all(round.phase is Phase.DONE for round in ledger_of(place).rounds(place.run))
        assert site.do(place.run, "pause").status == 409, "it is paused already"

        assert f"goes on with round {paused.round}" in site.do(place.run, "resume").json["said"]
        until(place, lambda run: run.state is RunState.RUNNING and run.round > paused.round)
        assert site.do(place.run, "resume").status == 409, "it is driven already"
        assert site.do(place.run, "stop").status == 200
        stopped = until(place, lambda run: run.state is RunState.STOPPED)
        assert stopped.version >= paused.version

        assert site.do(place.run, "start", rounds=2).status == 200
        other = until(Place(home, "odd-ones-2"), lambda run: run.state is RunState.DONE)
        assert (other.settings.rounds, other.settings.devices, other.app) == (2, 4, stopped.app)
        told = told_until(site, "odd-ones-2", lambda told: told["jobs"][0]["state"] == "ended")
        assert told["jobs"][0]["what"] == "start like odd-ones-1"


def test_what_cannot_be_started_says_why(home: Path) -> None:
    Written(home, "gone", devices=4, rounds=9).rounds(1)  # its app is not there
    with serving(home) as site:
        assert site.do("gone", "start").status == 200
        told = told_until(site, "gone", lambda told: told["jobs"] and told["jobs"][0]["state"] == "failed")
    assert "app.py" in told["jobs"][0]["words"]


def test_a_run_that_nobody_drives_is_not_asked_to_pause(home: Path) -> None:
    written = Written(home, "left", devices=4, rounds=9).rounds(1)
    with serving(home) as site:
        answer = site.do("left", "stop")
        assert (answer.status, "no process drives run left" in answer.json["error"]) == (409, True)
        assert (
            "no process drives it" in told_until(site, "left", lambda told: told["rounds"])["run"]["standing"]
        )
    found = written.ledger.run("left")
    assert found is not None
    assert found[0].wish == ""


def test_a_run_that_is_done_is_not_resumed(home: Path) -> None:
    Written(home, "over", devices=4, cohort=4, rounds=2).rounds(2).conclude()
    with serving(home) as site:
        answer = site.do("over", "resume")
    assert (answer.status, "--rounds" in answer.json["next"]) == (409, True)


def test_whether_somebody_holds_a_folder_is_seen_without_taking_it(tmp_path: Path) -> None:
    from fleetfold.adapters.lock import held

    assert not is_held(tmp_path)
    with held(tmp_path, "it"):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "0.0.0.0"], "beyond this machine, at 0.0.0.0, only with a token"),
        (["--listen", "::"], "beyond this machine"),
        (["--listen", "192.0.2.1", "--control"], "cannot listen on 192.0.2.1"),
    ],
)
def test_beyond_this_machine_it_is_not_begun_without_a_token(
    words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fleetfold.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["dashboard", "--port", "0", *words])
    assert (left.value.code, said in capsys.readouterr().err) == (2, True)


def test_a_token_that_can_be_guessed_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fleetfold.cli.main import main

    monkeypatch.setenv("FLEETFOLD_DASHBOARD_TOKEN", "secret")
    with pytest.raises(SystemExit):
        main(["dashboard", "--port", "0"])
    assert "has 6 characters" in capsys.readouterr().err


def test_the_terminal_pauses_stops_and_resumes_by_the_same_record(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fleetfold.cli.main import main

    place = place_of(home)
    with running(home, "--devices", "4", "--rounds", "400", "--workers", "1") as process:
        until(place, lambda run: run.round > 1)
        with pytest.raises(SystemExit) as left:
            main(["stop"])
        assert left.value.code in (0, None)
        assert process.wait(60) == 0
    until(place, lambda run: run.state is RunState.STOPPED)
    assert "fleetfold resume odd-ones-1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["pause", "odd-ones-1"])
    assert left.value.code == 2
