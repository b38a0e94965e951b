"""The command line as a newcomer meets it: what it says, where it leaves things, how it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fleetfold.adapters.lock import held
from fleetfold.cli.main import main
from fleetfold.fold.tensors import write
from fleetfold.settings import NAMES

Shell = subprocess.CompletedProcess[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def fleetfold(*arguments: str) -> Shell:
    return subprocess.run(
        [sys.executable, "-m", "fleetfold", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def objects(result: Shell) -> list[dict[str, Any]]:
    """The JSON objects that a command printed, one a line."""
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def app(home: Path) -> Path:
    fleetfold("init", "my-app")
    return Path("my-app")


def refused(result: Shell, *said: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    for word in said:
        assert word in result.stderr, result.stderr


def test_a_new_app_runs_as_it_is_and_the_last_line_gives_the_figures(app: Path, home: Path) -> None:
    result = fleetfold("run", "my-app")
    assert result.returncode == 0, result.stderr
    last = result.stdout.rstrip().splitlines()[-1]
    assert last.startswith("accuracy 0.9")
    assert " · rounds 10 · seconds " in last
    assert last.endswith(f"· run {home.relative_to(Path.cwd())}/runs/my-app-1")
    assert (home / "runs/my-app-1/models/000010.safetensors").is_file()


def test_what_was_run_is_listed_shown_and_exported(app: Path) -> None:
    rows = [
        json.loads(line) for line in fleetfold("run", "my-app", "--rounds", "3", "--json").stdout.splitlines()
    ]
    assert [(row["round"], row["phase"], row["arrived"]) for row in rows] == [
        (n, "done", 10) for n in (1, 2, 3)
    ]
    assert "my-app-1" in fleetfold("runs").stdout
    assert "folded 10 updates" in fleetfold("show", "latest", "--json").stdout
    timeline = [
        json.loads(x) for x in fleetfold("show", "my-app-1", "--round", "2", "--json").stdout.splitlines()
    ]
    assert len(timeline) == 10
    for line in timeline:
        assert line["state"] == "admitted"
        assert all(line[step] >= 0 for step in ("download", "compute", "upload", "total"))
    assert len(fleetfold("devices", "--recent", "4", "--json").stdout.splitlines()) == 4
    for command in (["show"], ["show", "--round", "1"], ["devices"], ["runs"]):
        assert "device" in fleetfold(*command).stdout or "my-app-1" in fleetfold(*command).stdout
    assert "3" in fleetfold("export", "--out", "m.safetensors").stdout
    assert set(safetensors.numpy.load_file("m.safetensors")) == {"weight", "bias"}


@pytest.mark.needs_torch
def test_a_model_is_exported_for_torch(app: Path) -> None:
    torch = pytest.importorskip("torch")
    fleetfold("run", "my-app", "--rounds", "1")
    assert fleetfold("export", "--out", "m.pt").returncode == 0
    assert torch.load("m.pt", weights_only=True)["weight"].shape == (20, 3)


def test_a_run_is_extended_from_where_it_ended(app: Path) -> None:
    fleetfold("run", "my-app", "--rounds", "2")
    more = fleetfold("run", "--resume", "latest", "--rounds", "4", "--json")
    assert [json.loads(line)["round"] for line in more.stdout.splitlines()] == [1, 2, 3, 4]
    refused(fleetfold("run", "--resume", "latest", "--rounds", "1"), "stands at round 4")
    refused(fleetfold("run", "--resume", "latest", "--quorum", "3"), "--quorum cannot be changed")


def test_a_first_model_is_taken_from_a_file(app: Path) -> None:
    np_model = {"weight": np.full((20, 3), 2.0, np.float32), "bias": np.zeros(3, np.float32)}
    Path("first.safetensors").write_bytes(write(np_model))
    assert fleetfold("run", "my-app", "--rounds", "1", "--init", "first.safetensors").returncode == 0
    fleetfold("export", "--version", "0", "--out", "zero.safetensors")
    assert (safetensors.numpy.load_file("zero.safetensors")["weight"] == 2).all()
    Path("broken.safetensors").write_bytes(b"\xff" * 40)
    refused(fleetfold("run", "my-app", "--init", "broken.safetensors"), "broken.safetensors", "next:")


def test_explain_says_of_every_setting_where_it_came_from(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETFOLD_QUORUM", "3")
    said = fleetfold("run", "my-app", "--explain", "--deadline", "30s").stdout.splitlines()
    by_name = {line.split()[0]: line for line in said if line.split()}
    assert set(NAMES) <= set(by_name)
    assert " 30s " in by_name["deadline"]
    assert "flag" in by_name["deadline"]
    assert "environment" in by_name["quorum"]
    assert "fleetfold.toml" in by_name["rounds"]
    assert "default" in by_name["seed"]


def test_functions_of_the_users_own_take_part(app: Path) -> None:
    Path("mine.py").write_text(
        "def pick(fleet, k, draws): return [d.name for d in fleet][:2]\n"
        "def enough(round, now): return 'two will do' if len(round.arrived) >= 2 else ''\n"
        "def largest(block, shares): return block.max(0)\n"
        "def pace(last): return 0.0\n"
    )
    own = [
        "--select",
        "mine:pick",
        "--close",
        "mine:enough",
        "--fold",
        "mine:largest",
        "--cadence",
        "mine:pace",
    ]
    result = fleetfold("run", "my-app", "--rounds", "2", "--json", *own)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(r["cohort"], r["arrived"]) for r in rows] == [(2, 2)] * 2, result.stderr
    refused(fleetfold("run", "my-app", "--fold", "mine:nothing"), "fold", "'nothing'")
    refused(fleetfold("run", "my-app", "--fold", "nowhere:f"), "nowhere", "next:")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], ["which app?"]),
        (["run", "nowhere"], ["nowhere", "fleetfold init"]),
        (["run", "my-app", "--rouns", "3"], ["--rouns", "--help"]),
        (["run", "my-app", "--rounds", "x"], ["flag: rounds = 'x'", "--explain"]),
        (["run", "my-app", "--data", "nowhere"], ["nowhere", "fleetfold split"]),
        (["run", "--resume", "ghost-1"], ["ghost-1", "fleetfold runs"]),
        (["run", "--resume", "../x"], ["not a name"]),
        (["show"], ["there are no runs"]),
        (["export", "--out", "m.bin"], ["there are no runs"]),
        (["init", "my-app"], ["not empty"]),
        (["sim", "nowhere.toml"], ["nowhere.toml"]),
        (["split", "nowhere.npz", "--out", "o"], ["nowhere.npz"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_a_wrong_word_gets_one_sentence_and_exit_code_2(
    app: Path, arguments: list[str], said: list[str]
) -> None:
    refused(fleetfold(*arguments), *said)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name", ["nothing_of_that_name", "pip install"]),
        ("def f(:", ["line 1"]),
        ("x = 1", ["defines no 'trainer'"]),
        ("class T:\n  def init(self, seed): return {}\ntrainer = T()", ["has no train()"]),
        ("class T:\n  def init(self, seed): return 1/0\n  def train(self, m, w): pass\ntrainer = T()",
         ["init()", "app.py line 2", "ZeroDivisionError"]),
        ("import numpy as np\nclass T:\n  def init(self, seed): return {'z': np.zeros(2, complex)}\n"
         "  def train(self, m, w): pass\ntrainer = T()", ["'z'", "complex128"]),
    ],
)  # fmt: skip
def test_a_broken_app_is_told_by_its_line(home: Path, code: str, said: list[str]) -> None:
    Path("bad").mkdir()
    Path("bad/app.py").write_text(code)
    refused(fleetfold("run", "bad"), "app.py", *said)
    assert "Traceback" in fleetfold("run", "bad", "--debug").stderr


def test_an_app_that_fails_on_every_device_fails_the_run_with_the_reason_at_hand(home: Path) -> None:
    Path("bad").mkdir()
    Path("bad/app.py").write_text(
        "import numpy as np\nclass T:\n  def init(self, seed): return {'w': np.zeros(2)}\n"
        "  def train(self, m, w): raise OSError('the sensor is unplugged')\ntrainer = T()"
    )
    result = fleetfold("run", "bad", "--patience", "1")
    assert result.returncode == 1
    assert "0 updates, quorum 5: every device has answered, 10 refused" in result.stderr
    assert "the sensor is unplugged" in fleetfold("show", "--round", "1", "--json").stdout


def test_a_run_that_failed_goes_on_when_the_app_is_mended(home: Path) -> None:
    Path("bad").mkdir()
    code = (
        "import numpy as np; from fleetfold import Trained\nclass T:\n"
        "  def init(self, seed): return {'w': np.zeros(2)}\n"
        "  def train(self, m, w): return BROKEN\ntrainer = T()"
    )
    Path("bad/app.py").write_text(code)
    assert fleetfold("run", "bad", "--patience", "1", "--rounds", "2").returncode == 1
    Path("bad/app.py").write_text(code.replace("BROKEN", "Trained(tensors=dict(m), examples=1)"))
    rows = objects(fleetfold("run", "--resume", "latest", "--json"))
    assert [(r["round"], r["phase"]) for r in rows] == [(1, "failed"), (2, "done")]


def test_an_error_in_a_function_of_the_users_own_is_told_by_its_line(app: Path) -> None:
    Path("mine.py").write_text("def pick(fleet, k, draws):\n    return fleet[99]\n")
    refused(fleetfold("run", "my-app", "--select", "mine:pick"), "select", "mine.py line 2", "IndexError")


def test_the_timeline_of_an_evaluation_is_shown(app: Path) -> None:
    fleetfold("run", "my-app", "--rounds", "1", "--evaluate", "cohort")
    assert len(objects(fleetfold("show", "--round", "1", "--evaluation", "--json"))) == 10
    assert "evaluated from 10 updates" in fleetfold("show", "--round", "1", "--evaluation").stdout


def test_a_second_process_on_a_run_is_told_who_holds_it(app: Path, home: Path) -> None:
    fleetfold("run", "my-app", "--rounds", "1")
    with held(home / "runs/my-app-1", "run my-app-1"):
        refused(
            fleetfold("run", "--resume", "latest"), f"held by process {os.getpid()}", f"kill {os.getpid()}"
        )


def test_a_torn_settings_file_is_told_by_its_line(app: Path) -> None:
    (app / "fleetfold.toml").write_text("rounds = \n")
    refused(fleetfold("run", "my-app"), "fleetfold.toml", "line 1")
    (app / "fleetfold.toml").write_text("quorumm = 3\n")
    refused(fleetfold("run", "my-app"), "did you mean 'quorum'")


def test_ctrl_c_leaves_a_run_that_can_be_resumed(app: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fleetfold", "run", "my-app", "--rounds", "100000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "fleetfold run --resume my-app-1" in errors
    time.sleep(0.1)
    running = subprocess.run(
        ["pgrep", "-f", "fleetfold.local.worker.*my-app-1"], capture_output=True, check=False
    )
    assert str(Path.cwd()).encode() not in running.stdout, "no worker is left behind"


def test_a_fleet_is_simulated_and_policies_compared(home: Path) -> None:
    Path("fleet.toml").write_text(
        '[[class]]\nname = "fast"\ndevices = 4\ncompute = 1.0\n'
        '[[class]]\nname = "slow"\ndevices = 4\ncompute = 9.0\ndropout = 0.2\nspread = 0.5\n'
    )
    result = fleetfold(
        "sim", "fleet.toml", "--rounds", "30", "--cohort", "3", "--vary", "select=fastest,all", "--json"
    )
    fastest, everyone = (json.loads(line) for line in result.stdout.splitlines())
    assert fastest["seconds_per_round"] < everyone["seconds_per_round"]
    assert (
        result.stdout
        == fleetfold(
            "sim", "fleet.toml", "--rounds", "30", "--cohort", "3", "--vary", "select=fastest,all", "--json"
        ).stdout
    ), "the same seed, the same simulation"
    buffered = ("--mode", "buffered", "--target", "1", "--select", "random")
    result = fleetfold("sim", "fleet.toml", "--rounds", "90", "--cohort", "3", *buffered, "--json")
    unawaited = json.loads(result.stdout)
    assert unawaited["updates"] == 90
    assert unawaited["seconds_per_update"] < everyone["seconds_per_update"]
    Path("bad.toml").write_text('[[class]]\nname = "fast"\ndevices = 0\ncompute = 1.0\n')
    refused(fleetfold("sim", "bad.toml"), "bad.toml", "devices")


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    for command in ("demo", "init", "run", "sim", "runs", "show", "devices", "export", "split"):
        assert command in listed
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"fleetfold {command}" in capsys.readouterr().out.split("Examples")[1]


HIDDEN = ["--devices", "30", "--noise", "2", "--clip", "1"]


@pytest.mark.fleet
def test_a_budget_ends_the_run_with_its_reason_and_every_place_shows_what_was_spent(app: Path) -> None:
    pytest.importorskip("dp_accounting")
    done = fleetfold("run", "my-app", *HIDDEN, "--epsilon", "2")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout.splitlines()[0]
    assert ", ε 0." in done.stdout.splitlines()[0]
    assert "stopped: round 5 would bring ε to 2.28, the budget is 2" in done.stdout
    assert " · ε 1." in done.stdout.splitlines()[-1]
    assert "--rounds" not in done.stdout, "more rounds are no way to go on"
    rows = objects(fleetfold("show", "--json"))
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert 0 < rows[0]["epsilon"] < rows[3]["epsilon"] <= 2
    shown = fleetfold("show").stdout
    assert " ε " in shown
    assert "stopped: round 5" in shown
    assert "at δ = 0.02" in shown
    assert ", ε 1." in fleetfold("export", "--out", "m.safetensors").stdout
    again = fleetfold("run", "--resume", "latest", "--rounds", "20", "--json")
    assert again.returncode == 0
    assert "stopped: round 5" in again.stderr


def test_without_the_accountants_library_a_private_run_is_refused_before_anything_is_made(
    app: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SystemExit) as left:
        main(["run", "my-app", *HIDDEN])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "dp-accounting" in said
    assert "pip install 'fleetfold[dp]'" in said
    assert not (home / "runs").exists()
    refused(fleetfold("run", "my-app", "--epsilon", "8"), "hides nothing without noise", "next: set noise")
