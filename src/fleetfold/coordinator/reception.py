"""What devices say, taken in: reports become arrivals, arrivals become events for the round that counts.

letters ─▶ by round ─▶ intake: gate, arrival records ─▶ Arrived, Refused ─▶ the round
                                                    └─▶ late: claimed and credited, or dropped
sweep: the same for updates that lie there and of which nobody said so
"""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.intake import Gate, Intake
from fleetfold.coordinator.late import Names, claim
from fleetfold.errors import shown
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.messages import Kind, Report
from fleetfold.ports import Control, Objects
from fleetfold.round.events import Arrived, Event, Refused
from fleetfold.round.run import Run
from fleetfold.round.state import Phase, Round


class Reception:
    """`run`: reads the run that it is for. `names`: the devices of a cohort by its key; `gate`: what the
    updates of a round have to be; `feed`: lets an event happen to a round, and tells what the round is then;
    `ignored` hears of each report that tells nothing new, and why."""

    def __init__(
        self, run: Callable[[], Run], ledger: Ledger, objects: Objects, control: Control, names: Names,
        gate: Callable[[Round], Gate], feed: Callable[[Round, Event], Round],
        ignored: Callable[[str], None], clock: Callable[[], float], at_once: int = 1,
    ) -> None:  # fmt: skip
        self._run, self._ledger, self._objects, self._control = run, ledger, objects, control
        self._names, self._gate, self._feed = names, gate, feed
        self._ignored, self._clock, self._at_once = ignored, clock, at_once

    def take_in(self) -> None:
        """Everything that has come, and tell the bus that it has been taken care of."""
        letters = self._control.letters()
        groups: dict[tuple[str, int, Kind], list[Report]] = {}
        for letter in letters:
            report = letter.report
            groups.setdefault((report.run, report.round, report.kind), []).append(report)
        for (run, number, kind), reports in groups.items():
            self._pass_over(run, number, kind, reports)
            self._collect(run, number, kind, reports)
        self._control.acknowledge([letter.receipt for letter in letters])

    def _pass_over(self, run: str, number: int, kind: Kind, reports: Sequence[Report]) -> None:
        """Say of each report that tells nothing new why it does not."""
        found = self._ledger.round(run, number, kind) if run == self._run().name else None
        if found is None:
            for _ in reports:
                self._ignored(f"report for no round of run {shown(run, 80)!r} here")
            return
        round = found[0]
        known = set(self._ledger.arrivals_of(place(round), (report.device for report in reports)))
        invited, credited = frozenset(self._names(round.cohort)), self._run().settings.credits_late
        for report in reports:
            if report.device not in invited:
                self._ignored("report of a device that was not invited to its round")
            elif report.device in known:
                self._ignored("report that has come before")
            elif round.phase is not Phase.OPEN and not (credited and kind == "train"):
                self._ignored("report for a round that is over")
            known.add(report.device)

    def sweep(self, round: Round) -> None:
        """Take in updates that lie there although no report of them came."""
        found = [layout.device_of(key) for key in self._objects.list(layout.updates(place(round)))]
        reports = [
            Report(run=round.run, round=round.number, kind=round.kind, device=name, state="delivered")
            for name in found
        ]
        self._collect(round.run, round.number, round.kind, reports)

    def _collect(self, run: str, number: int, kind: Kind, reports: Sequence[Report]) -> None:
        found = self._ledger.round(run, number, kind) if run == self._run().name else None
        if found is None:
            return
        round, _ = found
        seats = {name: seat for seat, name in enumerate(self._names(round.cohort))}
        intake = Intake(self._ledger, self._objects, round, seats, self._gate(round), self._at_once)
        # Not of what was fresh alone: a report that is repeated after a death between the record and the
        # round is how the round hears of it.
        arrivals = intake.judge(reports, self._clock()).values()
        admitted = frozenset(a.seat for a in arrivals if a.state == "admitted")
        refused = frozenset(a.seat for a in arrivals if a.state == "refused")
        current = self._feed(round, Arrived(admitted)) if admitted else round
        if refused:
            self._feed(round, Refused(refused))
        in_time = current.arrived | current.refused
        late = [
            self._demote(round, arrival) if arrival.state == "admitted" else arrival
            for arrival in arrivals
            if arrival.state != "admitted" or arrival.seat not in in_time
        ]
        if late and kind == "train":
            self._credit(round, late)

    def _demote(self, round: Round, arrival: Arrival) -> Arrival:
        """The round closed between the gate and the event: the update is late after all."""
        late = replace(arrival, state="late", reason="came as the round closed")
        found = self._ledger.arrival(place(round), arrival.device)
        if found is not None and found[0].state == "admitted":
            self._ledger.swap_arrival(place(round), late, expect=found[1])
        return late

    def _credit(self, round: Round, arrivals: Sequence[Arrival]) -> None:
        """Tell the open round, if there is one and the run's policy is to credit, what came of an earlier
        one: late updates count there, and what was refused is not owed to it any more. If there is none
        yet, the next one finds out when it invites."""
        run = self._run()
        later = run.settings.credits_late and run.kind == "train" and run.round > round.number
        found = self._ledger.round(run.name, run.round) if later else None
        if found is None:
            return
        target, where = found[0], place(round)
        credits = frozenset(
            a.key for a in arrivals if a.state != "refused" and claim(self._ledger, where, a.device, target)
        )
        heard_of = (a for a in arrivals if a.state == "refused" or a.key in credits)
        answered = target.owed & {(round.number, a.seat) for a in heard_of}
        if credits or answered:
            self._feed(target, Arrived(credits=credits, answered=answered))
