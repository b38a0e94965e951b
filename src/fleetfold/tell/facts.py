"""What became of a whole run, device by device: gathered from the ledger for a report.

rounds ─▶ cohorts and arrivals ─▶ Member: what each did · Refusal: what was refused · the slowest, in lanes
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec import Struct

from fleetfold.ledger import Arrival, Ledger, place
from fleetfold.ports import Objects, fetch
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run
from fleetfold.round.state import ENDED, Round
from fleetfold.tell.timeline import Lane, lanes
from fleetfold.view import Row

Progress = Callable[[int, int], None]
"""Hears how many rounds of how many have been read."""


class Member(Struct):
    """What one device did in the rounds of a run that trained."""

    name: str
    invited: int = 0
    used: int = 0
    refused: int = 0
    late: int = 0
    silent: int = 0
    examples: int = 0
    seconds: float = 0.0  # of all that it answered
    bytes: int = 0

    @property
    def mean(self) -> float | None:
        answered = self.invited - self.silent
        return self.seconds / answered if answered > 0 else None


class Refusal(Struct, frozen=True):
    round: int
    device: str
    reason: str


class Facts(Struct, frozen=True, kw_only=True):
    """What a page says of a run. `slowest`: of the rounds that trained."""

    run: Run
    rows: Sequence[Row]
    members: Sequence[Member]
    refusals: Sequence[Refusal]
    slowest: Round | None
    lanes: Sequence[Lane]
    agents: Sequence[str] = ()  # what runs on the devices, as they say


def gathered(
    ledger: Ledger, objects: Objects, run: Run, rows: Sequence[Row],
    progress: Progress = lambda done, total: None,
) -> Facts:  # fmt: skip
    members: dict[str, Member] = {}
    refusals: list[Refusal] = []
    rounds = ledger.rounds(run.name)
    slowest = max((r for r in rounds if r.phase in ENDED and r.kind != "evaluate"), key=took, default=None)
    shown: list[Lane] = []
    for number, round in enumerate(rounds):
        arrivals = ledger.arrivals(place(round))
        cohort = _cohort(objects, round, arrivals)
        for name in cohort if round.kind != "evaluate" else ():
            _count(members.setdefault(name, Member(name)), round, arrivals.get(name))
        refused = (a for a in arrivals.values() if a.state == "refused")
        refusals += [Refusal(round.number, a.device, a.reason) for a in refused]
        if round is slowest:
            shown = lanes(round, cohort, arrivals)
        progress(number + 1, len(rounds))
    fleet = ledger.devices(members)
    return Facts(
        run=run, rows=rows, members=sorted(members.values(), key=_rank), refusals=refusals[::-1],
        slowest=slowest, lanes=shown, agents=_agents(fleet),
    )  # fmt: skip


def took(round: Round) -> float:
    return round.ended_at - round.opened_at


def _cohort(objects: Objects, round: Round, arrivals: Iterable[str]) -> list[str]:
    try:
        return msgspec.json.decode(fetch(objects, round.cohort), type=list[str])
    except (KeyError, msgspec.MsgspecError):
        return sorted(arrivals)  # of its silent devices nobody knows the names any more


def _count(member: Member, round: Round, arrival: Arrival | None) -> None:
    member.invited += 1
    if arrival is None:
        member.silent += 1
        return
    here = arrival.state == "admitted" and arrival.seat in round.arrived
    member.used += here or arrival.state == "credited"
    member.refused += arrival.state == "refused"
    member.late += arrival.state == "late"
    member.examples = arrival.examples or member.examples
    member.seconds += max(0.0, arrival.at - round.asked_at)
    member.bytes += arrival.size


def _rank(member: Member) -> tuple[int, int, str]:
    return -member.used, member.refused, member.name


def _agents(fleet: Sequence[Device]) -> list[str]:
    told = Counter(device.says.agent for device in fleet if device.says and device.says.agent)
    return [f"{agent} on {count}" for agent, count in told.most_common(5)]
