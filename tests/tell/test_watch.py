"""A run on one screen: what is there to see, in terminals of any size, whatever devices are called."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from fleetfold.cli.main import main
from fleetfold.cli.watch import LEAVE, Looking, Seen, picture, sparkline
from fleetfold.ledger import Arrival
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import Phase
from fleetfold.settings import Settings
from fleetfold.tell.timeline import lanes
from fleetfold.wiring.local import Place
from tests.tell.hostile import TEXTS, row
from tests.tell.test_traces import ROUND, arrival

RUN = Run(name="r-1", app="app.py", settings=Settings(rounds=5), started_at=990.0, round=3)
OPEN = replace(
    ROUND, number=3, phase=Phase.OPEN, arrived=frozenset({0}), invited=4, closed_at=0.0, ended_at=0.0,
    reason="waiting: 1 of 2 updates",
)  # fmt: skip


def seen(
    arrivals: dict[str, Arrival] | None = None, names: tuple[str, ...] = ("a", "b", "slow", "d")
) -> Seen:
    told = arrivals if arrivals is not None else {"a": arrival("a", 1_001.5)}
    fleet = {"slow": Device(name="slow", turnaround=40.0), "b": Device(name="b", turnaround=2.0)}
    rows = [row(1), row(2), row(3, phase="open", ended_at=0.0)]
    steps = {"slow": "training", "b": "downloading"}
    return Seen(run=RUN, rows=rows, round=OPEN, lanes=lanes(OPEN, names, told), fleet=fleet, steps=steps)


def drawn(found: Seen, width: int = 80, height: int = 24, plain: bool = False) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=width, height=height, highlight=False)
    console.print(picture(found, 1_010.0, width, height, plain))
    return out.getvalue().rstrip("\n").split("\n")


def test_the_screen_says_where_the_run_stands_and_what_it_waits_for() -> None:
    lines = drawn(seen())
    assert lines[0].startswith("r-1  running  round 3 of 5 · 20 s so far · about 7.5 s left")
    assert lines[1] == "waiting: 1 of 2 updates"
    assert " 1 of 2, quorum 1, 50 s to the deadline" in lines[2]
    assert any(line.startswith("loss        0.250  █▁") for line in lines)
    assert lines[-1] == LEAVE


def test_who_is_at_work_comes_first_and_among_them_who_usually_takes_longest() -> None:
    lines = drawn(seen())
    first = next(k for k, line in enumerate(lines) if line.startswith("the slow devices of round 3"))
    assert "3 not yet, 1 answered" in lines[first]
    assert [tuple(line.split()[:2]) for line in lines[first + 1 : first + 5]] == [
        ("slow", "training"), ("b", "downloading"), ("d", "invited"), ("a", "admitted"),
    ]  # fmt: skip
    assert "usually 40 s" in lines[first + 1]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 3), (200, 60), (1, 1)])
def test_no_line_is_wider_than_the_terminal_and_no_screen_higher(
    width: int, height: int, plain: bool
) -> None:
    many = tuple(f"device-{n:05}" for n in range(10_000))
    lines = drawn(seen({}, many), width, height, plain)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= height
    if plain and width < 110:
        assert all(line.isascii() for line in lines[2:])


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_no_name_and_no_reason_reaches_the_terminal_as_anything_but_text(text: str) -> None:
    refused = arrival(text, state="refused", reason=text)
    hostile = replace(seen({text: refused}, (text, "b")), run=replace(RUN, name=text, reason=text))
    lines = drawn(hostile)
    assert all(line.isprintable() or not line for line in lines)
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""), ([1.0], "▅"), ([1.0, 1.0], "▅▅"), ([0.0, 1.0], "▁█"), ([float("nan"), 1.0, 2.0], "▁█"),
        ([float("inf"), 0.0, -1e300], "▅"), ([float(n) for n in range(100)], "▁▁▂▃▄▅▅▆▇█"),
    ],
)  # fmt: skip
def test_a_sparkline_goes_from_the_lowest_to_the_highest_of_what_fits(values: list[float], line: str) -> None:
    assert len(sparkline(values, 10)) == len(line)
    if len(values) < 10:
        assert sparkline(values, 10) == line
    assert sparkline(values, 10, plain=True).isascii()


APP = """
import numpy as np
from fleetfold import Trained

class Trainer:
    def init(self, seed):
        return {"w": np.zeros(3, np.float32)}

    def train(self, model, work):
        return Trained(tensors={"w": model["w"] + 1}, examples=5, metrics={"loss": 1.0 / work.round})

trainer = Trainer()
"""


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run that has ended."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "app.py").write_text(APP)
    command = [sys.executable, "-m", "fleetfold", "run", "app.py", "--devices", "2", "--rounds", "2"]
    subprocess.run(command, cwd=folder, env={**os.environ, "FLEETFOLD_HOME": "home"}, check=True,
                   capture_output=True)  # fmt: skip
    return folder


def test_in_a_pipe_a_run_is_shown_once(
    lived: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETFOLD_HOME", str(lived / "home"))
    with pytest.raises(SystemExit) as left:
        main(["watch", "latest"])
    assert not left.value.code
    told = capsys.readouterr().out
    assert "watched0-1  done  round 2 of 2" in told
    assert "2 answered" in told


def test_leaving_changes_nothing(lived: Path) -> None:
    place = Place(lived / "home", "watched0-1")
    ledger = Looking(place)._ledger
    found = ledger.run("watched0-1")
    assert found is not None
    run, version = found
    ledger.save_run(replace(run, state=RunState.RUNNING), version)  # it seems to go on
    before = ledger.run("watched0-1")
    terminal, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "fleetfold", "watch"], stdin=screen, stdout=screen, stderr=screen,
        env={**os.environ, "FLEETFOLD_HOME": str(lived / "home"), "TERM": "xterm-256color"},
        start_new_session=True,
    )  # fmt: skip
    os.close(screen)
    told = b""
    while LEAVE.encode() not in told:
        told += os.read(terminal, 65_536)
    os.write(terminal, b"q")
    while True:
        try:
            told += os.read(terminal, 65_536)
        except OSError:
            break
    os.close(terminal)
    assert process.wait() == 0
    assert b"\x1b[?1049l" in told, "the screen is as it was"
    assert ledger.run("watched0-1") == before
