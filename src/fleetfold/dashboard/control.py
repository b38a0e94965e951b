"""What may be done to runs from here: ask one to pause or to stop, resume it, start another like it.

pause, stop   a wish in the run's record, which its driver obeys
resume        the record, then a driver: a process, a place in the hub's queue, an execution
start         `fleetfold run --like RUN`, a process of its own
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from fleetfold.adapters.lock import is_held
from fleetfold.coordinator.opening import extend, wish
from fleetfold.errors import BadConfig, shown
from fleetfold.round.run import Run, RunState, Wish
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

LEAVING = 5.0
"""Seconds in which a process that has paused or stopped its run has left it."""
KEPT = 20
"""Processes that were started here and are told of."""
LAST = 4000
"""Bytes of what one has said that are looked at."""


def ask(place: Place, what: Wish) -> str:
    """Have the run's driver pause it or stop it. → what comes of that. Raises BadConfig."""
    run = known(place)
    if run.state is not RunState.RUNNING:
        raise BadConfig(f"run {run.name} is {run.state}: there is nothing to {what}")
    if run.messages:
        raise BadConfig(f"run {run.name} is of a Flower app, which is stopped where its server runs: Ctrl-C")
    where = wiring.where(place)
    if where == "here" and not is_held(place.folder):
        raise BadConfig(
            f"no process drives run {run.name}: it stands where it was left",
            next=f"fleetfold run --resume {run.name}",
        )
    wish(wiring.ledger(place), place.run, what)
    if where == "cloud":
        from fleetfold.aws import opening

        opening.nudge(place)
    at = f"when round {run.round} has ended" if what == "pause" else f"now, and round {run.round} is given up"
    return f"run {run.name} {'pauses' if what == 'pause' else 'stops'} {at}"


def take_back(place: Place) -> bool:
    """What was wished of a run that has a driver and has not obeyed yet. → whether there was such a wish."""
    run = known(place)
    driven = wiring.where(place) != "here" or is_held(place.folder)
    if run.state is RunState.RUNNING and run.wish and driven:
        return not wish(wiring.ledger(place), place.run, "").wish
    return False


def known(place: Place) -> Run:
    found = wiring.ledger(place).run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold runs")
    return found[0]


class Job(Struct):
    """A process that was started here. `words`: its newest ones, once it has failed."""

    what: str
    state: str = "at work"
    words: str = ""


class Control:
    """The processes that were started here outlive it. `home`: FLEETFOLD_HOME."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._children: list[tuple[Job, subprocess.Popen[bytes], Path]] = []

    def do(self, place: Place, what: str, rounds: int | None = None) -> str:
        """→ what comes of it. Raises BadConfig or Unavailable."""
        match what:
            case "pause" | "stop":
                return ask(place, "pause" if what == "pause" else "stop")
            case "resume":
                return self.resume(place)
            case "start":
                return self.start(place, rounds)
        raise BadConfig(f"{shown(what, 20)!r} is nothing that can be done: pause, stop, resume, start")

    def resume(self, place: Place) -> str:
        run = known(place)
        if take_back(place):
            return f"run {run.name} goes on as if nothing had been asked"
        if run.messages:
            raise BadConfig(
                f"run {run.name} is of a Flower app", next=f"fleetfold flower run --resume {run.name}"
            )
        if run.state is RunState.DONE and run.round >= run.settings.rounds:
            raise BadConfig(
                f"run {run.name} is done", next=f"fleetfold run --resume {run.name} --rounds {run.round + 10}"
            )
        match wiring.where(place):
            case "here":
                give_up = time.monotonic() + LEAVING
                while is_held(place.folder) and time.monotonic() < give_up:
                    time.sleep(0.05)
                if is_held(place.folder):
                    raise BadConfig(f"run {run.name} is driven already")
                self._spawn(f"resume {run.name}", ["run", "--resume", run.name, "--json"])
            case "hub":
                from fleetfold.hub import opening as hub

                extend(wiring.ledger(place), place.run, None)
                hub.again(place)
            case "cloud":
                from fleetfold.aws import opening as aws

                extend(wiring.ledger(place), place.run, None)
                aws.again(place)
        return f"run {run.name} goes on with round {run.round}"

    def start(self, like: Place, rounds: int | None) -> str:
        """A new run of the same app with the same settings, where that one is."""
        run = known(like)
        if run.messages:
            raise BadConfig(f"run {run.name} is of a Flower app", next="fleetfold flower run APP")
        more = ["--rounds", str(rounds)] if rounds else []
        match wiring.where(like):
            case "here":
                more += ["--json"]
            case "hub":
                more += ["--hub", "--detach"]
            case "cloud":
                more += ["--aws", "--stack", (like.folder / wiring.CLOUD).resolve().stem, "--detach"]
        self._spawn(f"start like {run.name}", ["run", "--like", run.name, *more])
        return f"a run like {run.name} is being started"

    def jobs(self) -> list[Job]:
        """What was started here, the newest first."""
        for job, child, log in self._children:
            code = child.poll()
            if job.state == "at work" and code is not None:
                job.state = "ended" if code == 0 else "failed"
                job.words = "" if code == 0 else _last_words(log)
        return [job for job, _, _ in reversed(self._children)]

    def _spawn(self, what: str, words: Sequence[str]) -> None:
        folder = self._home / "dashboard"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{time.time_ns():x}.log"
        with log.open("wb") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "fleetfold", *words], stdin=subprocess.DEVNULL, stdout=said,
                stderr=said, start_new_session=True,
                env={**os.environ, "FLEETFOLD_HOME": str(self._home), "NO_COLOR": "1"},
            )  # fmt: skip
        threading.Thread(target=child.wait, daemon=True).start()  # so that it is buried when it has ended
        self._children = [*self._children[1 - KEPT :], (Job(shown(what, 100)), child, log)]


def _last_words(log: Path) -> str:
    """The error that a command of ours ends with, or the last line."""
    try:
        said = log.read_bytes()[-LAST:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    errors = [line for line in said if line.startswith("error:")]
    return shown((errors or said or [""])[-1], 300)
