"""A late update is credited to one open round, exactly once, whatever dies in between.

    claim on the arrival record (compare-and-set)  ─▶  the round's own set of credits

The claim comes first, the set second. A claim by a round that has closed without counting it is void,
for that set will not change any more, and may be made again by the next round.
"""

from typing import get_args

from msgspec.structs import replace

from fleetfold import layout
from fleetfold.ledger import Ledger
from fleetfold.messages import Kind
from fleetfold.ports import Objects
from fleetfold.round.state import Phase, Round
from fleetfold.settings import Settings

BACKLOG = 8
"""Rounds back that a late update may come from and still be credited."""


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
        if holder is not None and (holder[0].phase is Phase.OPEN or arrival.key in holder[0].credits):
            return False
    reason = f"credited to round {target.number}"
    claimed = replace(arrival, state="credited", credited_to=target.number, reason=reason)
    return ledger.swap_arrival(where, claimed, expect=version)


def backlog(ledger: Ledger, round: Round) -> frozenset[str]:
    """Keys of the late updates that came while no round was open, claimed for `round`."""
    claimed = set()
    for number in range(max(1, round.number - BACKLOG), round.number):
        where = layout.round(round.run, number, "train")
        for arrival in ledger.arrivals(where).values():
            if arrival.state in ("late", "credited") and claim(ledger, where, arrival.device, round):
                claimed.add(arrival.key)
    return frozenset(claimed)


def retire(objects: Objects, round: Round, settings: Settings) -> None:
    """Remove updates that were folded long before `round` ended: only of rounds that no credit reaches back
    to, and never before the model after them is durable."""
    if settings.server != "none" and round.base:
        objects.delete(layout.state(round.run, round.base - 1))
    kept = max(settings.keep, BACKLOG + 1 if settings.late == "credit" else 0)
    if settings.keep and round.number > kept:
        for kind in get_args(Kind):
            old = layout.round(round.run, round.number - kept, kind)
            for key in objects.list(layout.updates(old)):
                objects.delete(key)
