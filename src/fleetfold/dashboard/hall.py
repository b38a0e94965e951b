"""The runs that somebody looks at, each with a thread that reads while it is asked and rests in between.

poll ─▶ awake ─▶ look ─ rest ─ look ─ rest …            nobody asks for a while ─▶ the thread ends
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fleetfold.dashboard.watch import EVERY, REST, Watch
from fleetfold.errors import BadConfig, FleetfoldError, blame
from fleetfold.round.run import RunState
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place
from fleetfold.wiring.places import all_runs, existing

LEFT = 20.0
"""Seconds after which nobody is taken to look any more."""
FIRST = 0.7
"""Seconds that the first page waits for the first look."""
WATCHED = 6
"""Runs that are kept in mind at once."""
NAMED = 40
"""Runs that are named, the newest."""
LISTED = 2.0
"""Seconds between two looks for runs."""


class Watched:
    """One run and its thread."""

    def __init__(self, place: Place) -> None:
        self._place, self._lock = place, threading.Lock()
        self.watch = Watch(place, secrets.token_hex(4))
        self._asked, self._looked = time.monotonic(), threading.Event()
        self._thread: threading.Thread | None = None
        self.trouble = ""

    @property
    def left(self) -> bool:
        return time.monotonic() - self._asked > LEFT

    def page(self, cursor: str) -> tuple[dict[str, Any], Any]:
        """What is to be told of the run now, and its page of changes."""
        self._wake()
        self._looked.wait(FIRST)
        with self.reading() as watch:
            return watch.now(), watch.since(cursor)

    @contextmanager
    def reading(self) -> Iterator[Watch]:
        """The watch, while nothing changes there."""
        with self._lock:
            yield self.watch

    def _wake(self) -> None:
        self._asked = time.monotonic()
        if self._thread is None or not self._thread.is_alive():
            name = f"watch {self._place.run}"
            self._thread = threading.Thread(target=self._go_on, name=name, daemon=True)
            self._thread.start()

    def _go_on(self) -> None:
        troubles = 0
        while not self.left:
            began = time.monotonic()
            try:
                self._look()
                self.trouble, troubles = "", 0
            except Exception as error:  # noqa: BLE001 - of one look; the next may find the ledger again
                self.trouble = error.sentence if isinstance(error, FleetfoldError) else blame(error)
                troubles += 1
            self._looked.set()
            took = time.monotonic() - began
            catching_up = bool(self.watch.behind) and not troubles
            rest = took / 2 if catching_up else max(EVERY[wiring.where(self._place)], min(10.0, REST * took))
            time.sleep(min(rest * (1 + troubles), 10.0))

    def _look(self) -> None:
        steps = self.watch.look()
        while True:
            with self._lock:
                if next(steps, steps) is steps:
                    return


class Hall:
    """`home`: FLEETFOLD_HOME."""

    def __init__(self, home: Path, runs: Callable[[], list[Place]] = all_runs) -> None:
        self._home, self._runs = home, runs
        self._lock, self._watched = threading.Lock(), dict[str, Watched]()
        self._listed, self._names = float("-inf"), list[str]()

    def poll(self, run: str, cursor: str) -> bytes:
        """One JSON object: what is to be told of the run (`latest`: the newest), what changed since the
        cursor, and when to ask again, in milliseconds. Raises BadConfig."""
        names = self.names()
        if run == "latest" and not names:
            told: dict[str, Any] = {"runs": [], "cursor": "", "more": False, "next": 2000}
            return msgspec.json.encode(told)
        watched = self.watched(run)
        now, page = watched.page(cursor)
        running = now.get("run", {}).get("state") in (None, RunState.RUNNING)
        told = {
            **now, "runs": names, "cursor": page.cursor, "more": page.more, "trouble": watched.trouble,
            "next": 0 if page.more else 800 if running or watched.watch.behind else 2500,
        }  # fmt: skip
        tables = {table: msgspec.Raw(b"[" + rows + b"]") for table, rows in page.tables.items()}
        return msgspec.json.encode({**told, **tables})

    def watched(self, run: str) -> Watched:
        """Raises BadConfig where there is no such run."""
        place = existing(run)
        with self._lock:
            found = self._watched.get(place.run)
            if found is None:
                for name in [name for name, each in self._watched.items() if each.left]:
                    del self._watched[name]
                if len(self._watched) >= WATCHED:
                    raise BadConfig(f"{WATCHED} runs are looked at already")
                found = self._watched[place.run] = Watched(place)
        return found

    def names(self) -> list[str]:
        """Of runs, the newest first."""
        with self._lock:
            if time.monotonic() - self._listed > LISTED:
                self._names = [place.run for place in self._runs()[:NAMED]]
                self._listed = time.monotonic()
            return self._names
