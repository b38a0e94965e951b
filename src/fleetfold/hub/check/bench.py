"""Where a device is tried: tasks and commands for it, and how to wait for what comes of them.

That something does not happen is seen by what comes after it: messages to a device keep their order.
"""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from fleetfold import layout
from fleetfold.errors import shown
from fleetfold.fold.gate import largest
from fleetfold.fold.tensors import Tensors, header_in, write
from fleetfold.hub.check.offer import LIFETIME, RUN, Offer, message
from fleetfold.hub.check.program import Program
from fleetfold.hub.check.rules import Seen
from fleetfold.hub.check.scratch import DEVICE, Said, Scratch
from fleetfold.messages import Answer, Ask, Command, Kind, Presence, Task

LATE = 7200.0
"""Seconds that an address has been expired for."""


class Bench:
    """`program` None: a person runs the device. `patience`: seconds that the device has for each step, and
    `arrival` until it comes. `model`: tensors that it can train; `large`: more than go in one piece."""

    def __init__(self, scratch: Scratch, program: Program | None, model: Tensors, patience: float,
                 arrival: float, *, large: Tensors | None = None) -> None:  # fmt: skip
        self.scratch, self.program, self.patience, self.arrival = scratch, program, patience, arrival
        self.large, self._tensors = large, model
        self._rounds, self._ids = itertools.count(1), itertools.count(1)
        self._offers: dict[tuple[str, int, str], Offer] = {}
        scratch.answering = self._answer

    def offer(self, kind: Kind = "train", *, model: Tensors | None = None, late_model: bool = False,
               late_update: bool = False, **other: Any) -> Offer:  # fmt: skip
        """A task of a new round, not given yet. Each has a model file of its own: none is in any cache."""
        number = next(self._rounds)
        file = write(model or self._tensors, b'{"check":%d}' % number)
        header, place = header_in(file, 1 << 30), layout.model(RUN, number)
        self.scratch.objects.put(place, [file])
        most = largest(header if kind == "train" else None)
        key = layout.update(layout.round(RUN, number, kind), DEVICE)
        fresh, old = self.scratch.signer(), self.scratch.signer(LATE)
        task = Task(
            run=RUN, round=number, kind=kind, device=DEVICE, digest=hashlib.sha256(file).hexdigest(),
            model=(old if late_model else fresh).to_fetch(place, DEVICE, LIFETIME), size=len(file),
            update=(old if late_update else fresh).to_deliver(key, DEVICE, LIFETIME, most), most=most,
            seed=number, deadline=time.time() + LIFETIME,
        )  # fmt: skip
        offer = Offer(self.scratch, replace(task, **other), header if kind == "train" else None)
        self._offers[RUN, number, kind] = offer
        return offer

    def _answer(self, said: Said) -> None:
        if said.word == "ask" and (ask := message(said, Ask)) is not None:
            offer = self._offers.get((ask.run, ask.round, ask.kind))
            if offer is not None:
                offer.grant(ask)

    def until(self, true: Callable[[], object]) -> bool:
        return self.scratch.until(true, self.patience)

    def settled(self, offer: Offer) -> bool:
        return self.until(offer.answers)

    def delivered(self, rule: str, offer: Offer, more: Callable[[], str] = lambda: "") -> Seen:
        """Whether it is reported, and lies there as the gate wants it. `more`: what else is amiss."""
        self.settled(offer)
        states = [report.state for report in offer.reports()]
        if not offer.answers():
            return Seen(rule, False, f"no answer within {self.patience:.0f} s; it said {listed(states)}")
        answer = offer.answers()[0]
        if answer.state != "delivered":
            return Seen(rule, False, f"it says {answer.state}: {shown(answer.reason, 200) or 'no reason'}")
        if offer.update() is None:
            return Seen(rule, False, "it says delivered, and nothing lies there")
        if why := offer.verdict():
            return Seen(rule, False, f"the gate refuses the update: {why}")
        if wrong := more():
            return Seen(rule, False, wrong)
        return Seen(rule, True, f"{listed(states)}; an update of {offer.update()} bytes")

    def nothing(self, rule: str, offer: Offer, said: str) -> Seen:
        size = offer.update()
        return Seen(rule, size is None, said if size is None else f"an update of {size} bytes came")

    def withdraw(self) -> None:
        self.scratch.tell("task", b"")

    def command(self, what: str = "cancel", id: str = "", **other: Any) -> tuple[Command, list[Said]]:
        """What comes as answers to it."""
        command = Command(id=id or f"check-{next(self._ids)}", device=DEVICE, what="cancel")
        command = replace(command, what=what, **other)
        before = len(self.scratch.said)
        self.scratch.bus.command(command)
        self.until(lambda: self.answers(command.id, before))
        return command, self.answers(command.id, before)

    def answers(self, id: str, since: int) -> list[Said]:
        said = [said for said in self.scratch.said[since:] if said.word == "answer"]
        return [one for one in said if (answer := message(one, Answer)) is not None and answer.id == id]

    def alive(self) -> bool:
        """Whether it has done what came before: it answers a command, perhaps the second."""
        return any(self.command()[1] for _ in range(2))

    @contextmanager
    def held(self, offer: Offer) -> Iterator[bool]:
        """The device is given the task and kept waiting for the model. → whether it has begun to fetch it."""
        key, let = layout.model(RUN, offer.task.round), threading.Event()
        self.scratch.objects.held[key] = let
        try:
            offer.give()
            yield self.until(lambda: any(name == key for name, _ in self.scratch.objects.reads))
        finally:
            let.set()

    def refusal(self, rule: str, offer: Offer) -> Seen:
        if not offer.answers():
            return Seen(rule, False, f"no answer within {self.patience:.0f} s")
        answer = offer.answers()[0]
        good = answer.state == "refused" and bool(answer.reason) and offer.update() is None
        return Seen(rule, good, f"{answer.state}: {shown(answer.reason, 200) or 'no reason'}")

    def restart(self) -> None:
        if self.program is not None:
            before = len(self.scratch.said)
            self.program.kill()
            self.program.start()
            self.until(lambda: any(p.online for p in self.presences(before)))

    def presences(self, since: int = 0, *, kept: bool = False) -> list[Presence]:
        said = [s for s in self.scratch.said[since:] if s.word == "presence" and (s.kept or not kept)]
        return [presence for one in said if (presence := message(one, Presence))]

    def gone(self) -> str:
        return self.program.left() if self.program else ""


def listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "nothing"
