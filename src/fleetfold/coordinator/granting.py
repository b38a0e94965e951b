"""Fresh addresses for a device that asks, as long as its part in the round is still wanted.

Ask ─▶ invited to that round? not answered yet? would an update count? ─▶ Grant, or why not
"""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator import exchange
from fleetfold.coordinator.sources import header_of
from fleetfold.errors import shown
from fleetfold.fold.gate import largest
from fleetfold.ledger import Ledger, place
from fleetfold.messages import LIMIT, Ask, Grant, encode
from fleetfold.ports import Objects, Signer, fetch
from fleetfold.round.run import Run
from fleetfold.round.state import Phase, Round

ENOUGH = LIMIT * 3 // 4
"""Bytes of addresses in one message."""


def grant(ask: Ask, ledger: Ledger, objects: Objects, signer: Signer, lifetime: float) -> Grant:
    """Addresses that are good for `lifetime` seconds; of parts as many as fit a message. Writes nothing."""
    known = ledger.run(ask.run) if layout.valid_name(ask.run) else None
    found = ledger.round(ask.run, ask.round, ask.kind) if known else None
    if known is None or found is None:
        return refused(ask, f"there is no round {ask.round} of run {shown(ask.run, 80)}")
    run, round = known[0], found[0]
    if why := _unwanted(ask, run, round, ledger, objects):
        return refused(ask, why)
    if round.batch:
        asked = next(each for each in exchange.load(objects, round.batch).sent if each.device == ask.device)
        model, most = asked.content, exchange.most(asked)
    else:
        model = layout.model(run.name, round.base)
        most = largest(header_of(objects, model) if ask.kind == "train" else None)
    return addresses(ask, model, layout.update(place(round), ask.device), most, signer, lifetime)


def addresses(ask: Ask, model: str, key: str, most: int, signer: Signer, lifetime: float) -> Grant:
    """Of that model, and of an update of at most `most` bytes at `key` or of its parts."""
    if not 0 <= ask.first <= ask.parts <= -(-most // layout.PART):
        return refused(ask, f"{ask.parts} parts, an update has at most {-(-most // layout.PART)}")
    whole = signer.to_deliver(key, ask.device, lifetime, most)
    part: Callable[[int], str] = lambda n: signer.to_deliver(  # noqa: E731
        layout.part(key, n, ask.parts), ask.device, lifetime, min(layout.PART, most - n * layout.PART)
    )
    updates: list[str] = [] if ask.parts else [whole]
    room = ENOUGH
    for n in range(ask.first, ask.parts):
        updates.append(part(n))
        room -= len(updates[-1]) + 3
        if room < 0:
            break
    fetch = signer.to_fetch(model, ask.device, lifetime)
    granted = replace(refused(ask, ""), model=fetch, updates=tuple(updates))
    assert len(encode(granted)) <= LIMIT
    return granted


def refused(ask: Ask, reason: str) -> Grant:
    """No addresses, and why."""
    return Grant(
        run=ask.run, round=ask.round, kind=ask.kind, device=ask.device, parts=ask.parts, first=ask.first,
        reason=reason,
    )  # fmt: skip


def _unwanted(ask: Ask, run: Run, round: Round, ledger: Ledger, objects: Objects) -> str:
    """Why the device's update does not count any more; "" while it does."""
    cohort = msgspec.json.decode(fetch(objects, round.cohort), type=list[str])
    if ask.device not in cohort:
        return f"{ask.device} was not invited to this round"
    if ledger.arrival(place(round), ask.device) is not None:
        return "it has answered already"
    if round.phase is not Phase.OPEN and not (run.settings.credits_late and ask.kind == "train"):
        return f"round {round.number} is over: {round.reason}"
    return ""
