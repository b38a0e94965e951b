"""What is told of a run while it goes, by the process that drives it: whenever a round has ended.

rows ─▶ those that have no line in metrics.jsonl yet ─▶ the line ─▶ the log ─▶ the trace
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleetfold.ledger import Ledger, place
from fleetfold.messages import Kind
from fleetfold.ports import Objects
from fleetfold.round.run import Run, RunState
from fleetfold.round.state import Phase
from fleetfold.tell import numbers, traces
from fleetfold.tell.journal import Journal
from fleetfold.view import SCORED, Following, Row

Says = Callable[..., None]
"""A log: what happened, and facts by name."""
Watch = Callable[[Run, int], None]
"""Is shown a run whenever something may have changed."""
SPOKEN = ("refused", "late", "credited")
"""States of an arrival that a line of its own tells of."""
NAMED = 100
"""Devices of one round that have lines of their own."""


def silent(what: str, **facts: Any) -> None:
    pass


def announce(say: Says, ledger: Ledger, run: str, row: Row) -> None:
    """That a round has ended, how, and who did not contribute as was hoped."""
    found = ledger.round(run, row.round, row.kind)
    arrivals = ledger.arrivals(place(found[0])) if found else {}
    about: dict[str, Any] = {"run": run, "round": row.round, "kind": row.kind}
    for arrival in [each for each in arrivals.values() if each.state in SPOKEN][:NAMED]:
        say(f"update {arrival.state}", device=arrival.device, reason=arrival.reason, **about)
    say(f"round {row.phase}", reason=row.reason, **about, **numbers.of(row))


class Teller:
    """Of one run, by the one process that drives it. Traces are sent where the environment says where to."""

    def __init__(
        self, folder: Path, ledger: Ledger, objects: Objects, run: str, say: Says = silent,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._ledger, self._run, self._say, self._clock = ledger, run, say, clock
        self._following, self._journal = Following(ledger, objects, run), Journal(folder, run)
        self._seen: tuple[int, Kind, RunState] | None = None
        self._opened = False  # the round where the run stands
        self._sending = self._collector()

    def look(self) -> None:
        """Tell what is new since the run has moved on; when does not matter, for what nobody was told is told
        later. As long as it stands, this costs it one small record."""
        found = self._ledger.run(self._run)
        stands = (found[0].round, found[0].kind, found[0].state) if found else None
        if found is None or (stands == self._seen and self._opened):
            return
        if stands != self._seen:
            self._seen = stands
            self._tell_ended(found[0])
        self._open(found[0])

    def beside(self, watch: Watch) -> Watch:
        """`watch`, and after it a look."""

        def both(run: Run, ready: int) -> None:
            watch(run, ready)
            self.look()

        return both

    def _tell_ended(self, run: Run) -> None:
        """What an app may still score is told when that is over."""
        rows = self._following.look(self._clock())
        if run.messages and run.state is RunState.RUNNING:
            rows = [row for row in rows if row.round <= run.round - SCORED]
        for row in self._journal.add(rows):
            if self._say is not silent:
                announce(self._say, self._ledger, self._run, row)
            round = self._ledger.round(self._run, row.round, row.kind) if self._sending else None
            if self._sending and round:
                self._sending.add(round[0], self._ledger.arrivals(place(round[0])))

    def _open(self, run: Run) -> None:
        """Tell that the round where the run stands is open, once it is."""
        round = self._ledger.round(run.name, run.round, run.kind)
        self._opened = round is not None
        if round and round[0].phase is Phase.OPEN:
            self._say("round open", run=run.name, round=run.round, kind=run.kind, reason=round[0].reason)

    def close(self) -> None:
        if self._sending:
            self._sending.close()

    def _collector(self) -> traces.Sending | None:
        if not traces.wanted():
            return None
        if not traces.there():
            self._say("no traces", reason="OpenTelemetry is not installed: pip install 'fleetfold[otel]'")
            return None
        return traces.Sending(traces.exporter(), lambda why: self._say("no trace", run=self._run, reason=why))
