"""What devices send, taken in: report → gate → arrival record → event for the round.

    admitted   counts            refused   quarantined with its reason, the round goes on
    late       came after its round closed: dropped, or credited to the open round, exactly once

The arrival record is written before the round is told, and the report is acknowledged after both: a
death in between repeats the work and changes nothing.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.policy import mask_of
from fleetfold.errors import BadUpdate, shown
from fleetfold.fold.gate import Admitted, Expected, admit, plausible
from fleetfold.fold.tensors import Header
from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.messages import Report, Timings
from fleetfold.ports import Objects, read_on
from fleetfold.round.state import Phase, Round
from fleetfold.settings import Settings

Gate = Callable[[str, Callable[[int, int], bytes], int], Admitted]
"""What is found of the update of a device, if it may count: (device, read, size), as of fold/gate.admit.
Raises BadUpdate."""


def training(round: Round, model: Header | None, settings: Settings) -> Gate:
    """The gate of a round. `model`: the header of its base model, None to evaluate."""
    carried = mask_of(model, settings) if model else ""

    def gate(device: str, read: Callable[[int, int], bytes], size: int) -> Admitted:
        expected = Expected(
            run=round.run, round=round.number, kind=round.kind, device=device, model=model,
            carried=carried, partial=settings.partial,
        )  # fmt: skip
        return admit(read, size, expected)

    return gate


class Intake:
    """Judges what came for one round. `at_once`: so many updates are looked at at a time."""

    def __init__(
        self, ledger: Ledger, objects: Objects, round: Round, seats: dict[str, int], gate: Gate,
        at_once: int = 1,
    ) -> None:  # fmt: skip
        self._ledger, self._objects, self._round = ledger, objects, round
        self._seats, self._gate, self._at_once = seats, gate, at_once

    def judge(self, reports: Sequence[Report], now: float) -> dict[str, Arrival]:
        """What became of each device's part, by device; what was not known before is recorded. Reports of
        strangers are quarantined."""
        where = place(self._round)
        known = self._ledger.arrivals_of(where, (r.device for r in reports if r.device in self._seats))
        fresh: dict[str, Report] = {}
        for report in reports:
            if report.device not in self._seats:
                self._quarantine(report.device, f"{report.device!r} was not invited to this round")
            elif report.device not in known:
                fresh.setdefault(report.device, report)
        judge = partial(self._judge_one, now)
        if self._at_once > 1 < len(fresh):
            with ThreadPoolExecutor(self._at_once) as pool:
                judged = list(pool.map(judge, fresh.values()))
        else:
            judged = list(map(judge, fresh.values()))
        return known | {arrival.device: arrival for arrival in self._ledger.record(where, judged)}

    def _judge_one(self, now: float, report: Report) -> Arrival:
        where, took = place(self._round), report.took if plausible(report.took) else Timings()
        known = Arrival(
            device=report.device, seat=self._seats[report.device], state="refused", at=now, took=took,
            base=self._round.base, key=layout.update(where, report.device),
        )  # fmt: skip
        if report.state != "delivered":
            return replace(known, reason=f"device {report.state}: {shown(report.reason)}")
        size = self._objects.size(known.key)
        if size is None:
            return self._refuse(known, f"there is no update at {known.key}")
        try:
            with closing(self._objects.open(known.key)) as reader:
                found = self._gate(report.device, partial(read_on, reader), size)
        except BadUpdate as error:
            return self._refuse(replace(known, size=size), error.sentence)
        except KeyError:  # gone since it was asked for its size
            return self._refuse(known, f"there is no update at {known.key}")
        update = found.header
        admitted = replace(
            known, state="admitted", size=size, begin=found.begin, form=update.form,
            examples=update.examples, metrics=update.metrics, evaluation=update.evaluation,
            took=replace(update.took, upload=took.upload),
        )  # fmt: skip
        if self._round.phase is Phase.OPEN:
            return admitted
        late = now - self._round.closed_at
        return replace(admitted, state="late", reason=f"came {late:.1f} s after the round closed")

    def _refuse(self, arrival: Arrival, reason: str) -> Arrival:
        self._quarantine(arrival.device, reason)
        return replace(arrival, state="refused", reason=reason)

    def _quarantine(self, device: str, reason: str) -> None:
        quarantine(self._objects, self._round, device, reason)


class Quarantined(Struct, frozen=True):
    device: str
    reason: str


def quarantine(objects: Objects, round: Round, device: str, reason: str) -> None:
    """Write down what was refused and why, beside the round. The file itself stays where it is."""
    if layout.valid_name(device):
        key = layout.quarantine(place(round), device)
        objects.put(key, [msgspec.json.encode(Quarantined(device, reason))])
