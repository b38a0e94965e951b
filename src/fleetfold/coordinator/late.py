"""A late update is credited to one open round, exactly once, whatever dies in between.

    claim on the arrival record (compare-and-set)  ─▶  the round's own set of credits

The claim comes first, the set second. A claim by a round that has closed without counting it is void, for
that set will not change any more, and may be made again by the next. In a buffered run a round's record
says which updates are owed to it; what it leaves unanswered and uncounted, the next one is owed.
"""

from collections.abc import Callable, Sequence
from typing import get_args

from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.errors import Unavailable
from fleetfold.ledger import Ledger, place
from fleetfold.messages import Kind
from fleetfold.ports import Objects
from fleetfold.round.events import Arrived, Owed
from fleetfold.round.state import Phase, Round
from fleetfold.settings import Settings, count

BACKLOG = 8
"""Rounds back that a late update may come from and still be credited, although no round was open then."""
FARTHEST = 64
"""The same at most in a buffered run, where a device may train for as many rounds as buffers go into the
concurrency. What is owed to a round is found however far back it comes from."""

Names = Callable[[str], Sequence[str]]
"""The devices that a cohort's key names, in the order of their seats."""


class Debts(Struct, frozen=True):
    """What earlier rounds owe the next: updates that may come or have come, and who is at work on one."""

    updates: Owed = frozenset()
    devices: frozenset[str] = frozenset()


def reach(settings: Settings) -> int:
    """Rounds back in which late updates are looked for, and kept."""
    if not settings.buffered:
        return BACKLOG
    concurrency = count(settings.cohort, settings.devices)
    return min(FARTHEST, BACKLOG - (-concurrency // count(settings.target, concurrency)))


def claim(ledger: Ledger, where: str, device: str, target: Round) -> bool:
    """Claim the late update of `device` in the round with key `where`, for `target`. → whether it is
    `target`'s to count."""
    found = ledger.arrival(where, device)
    if found is None or found[0].state not in ("late", "credited") or target.phase is not Phase.OPEN:
        return False
    arrival, version = found
    if arrival.credited_to == target.number:
        return True
    if arrival.credited_to:
        holder = ledger.round(target.run, arrival.credited_to)
        if holder is not None and _holds(holder[0], arrival.key):
            return False
    reason = f"credited to round {target.number}"
    claimed = replace(arrival, state="credited", credited_to=target.number, reason=reason)
    return ledger.swap_arrival(where, claimed, expect=version)


def _holds(holder: Round, key: str) -> bool:
    """Whether a claim for that round stands: it may still count the update, or did."""
    if holder.policy.buffered and holder.phase is Phase.FAILED:
        return False  # it gave back what it had
    return holder.phase is Phase.OPEN or key in holder.credits


def backlog(ledger: Ledger, round: Round, reach: int) -> Arrived:
    """What came while no round was open: late updates claimed for `round`, and who has answered."""
    claimed, answered = set(), set()
    owing = {number for number, _ in round.owed}
    for number in sorted(owing.union(range(max(1, round.number - reach), round.number))):
        where = layout.round(round.run, number, "train")
        for arrival in ledger.arrivals(where).values():
            if arrival.state in ("late", "credited") and claim(ledger, where, arrival.device, round):
                claimed.add(arrival.key)
            if arrival.key in claimed or arrival.state == "refused":
                answered.add((number, arrival.seat))
    return Arrived(credits=frozenset(claimed), answered=round.owed & answered)


def debts(ledger: Ledger, ended: Round, names: Names, now: float) -> Debts:
    """What is owed to the round after `ended`. Who has not answered by the deadline of its own round owes
    nothing any more, and may be asked again; should its update come after all, it is credited still."""
    seats: dict[int, set[int]] = {}
    for number, seat in _left(ledger, ended):
        seats.setdefault(number, set()).add(seat)
    updates, devices = set(), set()
    for number, left in seats.items():
        round = known(ledger, ended.run, number)
        cohort = names(round.cohort)
        arrivals = ledger.arrivals(place(round))
        for seat in left:
            arrival = arrivals.get(cohort[seat])
            if arrival is None and now < round.deadline_at:
                devices.add(cohort[seat])
                updates.add((number, seat))
            elif arrival is not None and arrival.state != "refused":
                updates.add((number, seat))
    return Debts(frozenset(updates), frozenset(devices))


def _left(ledger: Ledger, ended: Round) -> Owed:
    """What `ended` neither counted nor refused, of its own cohort and of what was owed to it. One that
    failed has counted nothing."""
    done, back = ended.arrived | ended.refused, frozenset[str]()
    if ended.phase is Phase.FAILED:
        done, back = ended.refused, ended.credits
    own = {(ended.number, seat) for seat in range(ended.invited) if seat not in done}
    given_back = set()
    for key in back:
        found = ledger.arrival(layout.round_of(key), layout.device_of(key))
        if found is not None:
            given_back.add((layout.number_of(key), found[0].seat))
    return ended.owed | own | given_back


def give_back(ledger: Ledger, failed: Round) -> None:
    """What arrived in a buffered round that failed is late, for the next one to claim."""
    for device, arrival in ledger.arrivals(place(failed)).items():
        found = ledger.arrival(place(failed), device) if arrival.state == "admitted" else None
        if found is not None and found[0].state == "admitted":
            late = replace(found[0], state="late", reason="its round failed")
            ledger.swap_arrival(place(failed), late, expect=found[1])


def heard(ledger: Ledger, ended: Round) -> list[Round]:
    """Rounds of which something may have come since the round before `ended` ended, in order: `ended`
    itself, and in a buffered run those that owed."""
    if not ended.policy.buffered or ended.number == 1:
        return [ended]
    before = known(ledger, ended.run, ended.number - 1)
    owing = sorted({number for number, _ in before.owed})
    return [*(known(ledger, ended.run, number) for number in owing), before, ended]


def known(ledger: Ledger, run: str, number: int) -> Round:
    """The round of that number, which was opened."""
    found = ledger.round(run, number)
    if found is None:
        raise Unavailable(f"there is no {layout.round(run, number, 'train')}")
    return found[0]


def retire(ledger: Ledger, objects: Objects, round: Round, settings: Settings) -> None:
    """Remove updates that were folded long before `round` ended: only of rounds that no credit reaches back
    to, and never before the model after them is durable."""
    if settings.server != "none" and round.base:
        objects.delete(layout.state(round.run, round.base - 1))
    kept = max(settings.keep, reach(settings) + 1 if settings.credits_late else 0)
    if not settings.keep or round.number <= kept:
        return
    number = round.number - kept
    for kind in get_args(Kind):
        old = layout.round(round.run, number, kind)
        spared = _spared(ledger, old, number, round) if round.policy.buffered else None
        for key in objects.list(layout.updates(old)):
            if spared is None or not spared(layout.device_of(key)):
                objects.delete(key)
    if round.policy.buffered:  # with a round goes what it had from those before it
        for key in known(ledger, round.run, number).credits:
            objects.delete(key)


def _spared(ledger: Ledger, old: str, number: int, round: Round) -> Callable[[str], bool]:
    """Whose update in the round with key `old` may be credited yet: who has not answered, or is owed."""
    arrivals = ledger.arrivals(old)
    return lambda device: device not in arrivals or (number, arrivals[device].seat) in round.owed
