"""One situation after another for the device that is tried, and which rules held in each.

    situation ─▶ what the device said, what lies at the door, what the broker noted ─▶ Seen, rule by rule

That something does not happen is seen by what comes after it: messages to a device keep their order.
"""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.mqtt_bus import FROM_DEVICES
from fleetfold.coordinator.granting import addresses, refused
from fleetfold.errors import BadUpdate, shown
from fleetfold.fold.gate import Expected, admit, largest
from fleetfold.fold.tensors import Header, Tensors, header_in, write
from fleetfold.hub.check.program import Program
from fleetfold.hub.check.rules import Seen
from fleetfold.hub.check.scratch import DEVICE, Said, Scratch
from fleetfold.layout import FROM_DEVICE, TO_DEVICE, topic
from fleetfold.messages import SETTLED, Answer, Ask, Command, Form, Kind, Presence, Report, Task, encode
from fleetfold.ports import read

RUN = "check"
MOST = 32 * 1024
"""Bytes of a message that a hub reads."""
LATE = 7200.0
"""Seconds that an address has been expired for."""
LIFETIME = 600.0
KILLED = "needs a command, whose process can be killed"
SETTLE = 2.5
"""Seconds in which a device at rest has its connection as it wants it."""
WORDS = ("evaluate", "get", "set", "cancel")
Found = Iterator[Seen]
_Kind = TypeVar("_Kind", Answer, Ask, Presence, Report)


class Offer:
    """One task, offered to the device, and what has come of it."""

    def __init__(self, scratch: Scratch, task: Task, model: Header | None) -> None:
        self.task, self.model, self._scratch = task, model, scratch
        self.key = layout.update(layout.round(RUN, task.round, task.kind), DEVICE)
        self.denied = ""  # why there are no fresh addresses
        self.asked = 0

    def give(self) -> None:
        self._scratch.tell("task", encode(self.task))

    def reports(self) -> list[Report]:
        mine = (self.task.run, self.task.round, self.task.kind)
        said = (_message(said, Report) for said in list(self._scratch.said) if said.word == "status")
        return [report for report in said if report and (report.run, report.round, report.kind) == mine]

    def answers(self) -> list[Report]:
        return [report for report in self.reports() if report.state in SETTLED]

    def update(self) -> int | None:
        """Bytes of the update that lies there."""
        return self._scratch.lying.size(self.key)

    def verdict(self) -> str:
        """Why the gate does not admit the update; "" if it does."""
        task, lying, size = self.task, self._scratch.lying, self.update() or 0
        expected = Expected(
            run=task.run, round=task.round, kind=task.kind, device=DEVICE, model=self.model,
            carried=task.form.carried,
        )  # fmt: skip
        try:
            admit(lambda offset, length: read(lying, self.key, offset, length), size, expected)
        except BadUpdate as error:
            return error.sentence
        return ""

    def grant(self, ask: Ask) -> None:
        self.asked += 1
        given = refused(ask, self.denied)
        if not self.denied:
            model, signer = layout.model(RUN, self.task.round), self._scratch.signer()
            given = addresses(ask, model, self.key, self.task.most, signer, LIFETIME)
        self._scratch.bus.grant(given)


class Trials:
    """`program` None: a person runs the device, and what kills it is not tried. `patience`: seconds that the
    device has for each step. `model`: tensors that it can train."""

    def __init__(self, scratch: Scratch, program: Program | None, model: Tensors, patience: float,
                 *, large: Tensors | None = None) -> None:  # fmt: skip
        self._scratch, self._program, self._patience = scratch, program, patience
        self._tensors, self._large = model, large
        self._rounds, self._ids = itertools.count(1), itertools.count(1)
        self._offers: dict[tuple[str, int, str], Offer] = {}
        scratch.answering = self._answer

    def run(self) -> Found:
        """Ends after the first if no device comes."""
        for seen in self._appears():
            yield seen
            if seen.rule == "P1" and not seen.held:
                return
        for trial in (
            self._does, self._twice, self._nonsense, self._codec, self._evaluates, self._wrong_model,
            self._resumes, self._model_expired, self._update_expired, self._no_grant, self._withdrawn,
            self._commands, self._dies, self._in_parts, self._kept_to_itself,
        ):  # fmt: skip
            yield from trial()

    # What is common to all

    def _offer(self, kind: Kind = "train", *, model: Tensors | None = None, late_model: bool = False,
               late_update: bool = False, **other: Any) -> Offer:  # fmt: skip
        """A task of a new round, not given yet. Each has a model file of its own: none is in any cache."""
        number = next(self._rounds)
        file = write(model or self._tensors, b'{"check":%d}' % number)
        header, place = header_in(file, 1 << 30), layout.model(RUN, number)
        self._scratch.objects.put(place, [file])
        most = largest(header if kind == "train" else None)
        key = layout.update(layout.round(RUN, number, kind), DEVICE)
        fresh, old = self._scratch.signer(), self._scratch.signer(LATE)
        task = Task(
            run=RUN, round=number, kind=kind, device=DEVICE, digest=hashlib.sha256(file).hexdigest(),
            model=(old if late_model else fresh).to_fetch(place, DEVICE, LIFETIME), size=len(file),
            update=(old if late_update else fresh).to_deliver(key, DEVICE, LIFETIME, most), most=most,
            seed=number, deadline=time.time() + LIFETIME,
        )  # fmt: skip
        offer = Offer(self._scratch, replace(task, **other), header if kind == "train" else None)
        self._offers[RUN, number, kind] = offer
        return offer

    def _answer(self, said: Said) -> None:
        if said.word == "ask" and (ask := _message(said, Ask)) is not None:
            offer = self._offers.get((ask.run, ask.round, ask.kind))
            if offer is not None:
                offer.grant(ask)

    def _until(self, true: Callable[[], object]) -> bool:
        return self._scratch.until(true, self._patience)

    def _settled(self, offer: Offer) -> bool:
        return self._until(offer.answers)

    def _delivered(self, rule: str, offer: Offer, more: Callable[[], str] = lambda: "") -> Seen:
        """Whether it is reported, and lies there as the gate wants it. `more`: what else is amiss."""
        self._settled(offer)
        states = [report.state for report in offer.reports()]
        if not offer.answers():
            return Seen(rule, False, f"no answer within {self._patience:.0f} s; it said {_listed(states)}")
        answer = offer.answers()[0]
        if answer.state != "delivered":
            return Seen(rule, False, f"it says {answer.state}: {shown(answer.reason, 200) or 'no reason'}")
        if offer.update() is None:
            return Seen(rule, False, "it says delivered, and nothing lies there")
        if why := offer.verdict():
            return Seen(rule, False, f"the gate refuses the update: {why}")
        if wrong := more():
            return Seen(rule, False, wrong)
        return Seen(rule, True, f"{_listed(states)}; an update of {offer.update()} bytes")

    def _nothing(self, rule: str, offer: Offer, said: str) -> Seen:
        size = offer.update()
        return Seen(rule, size is None, said if size is None else f"an update of {size} bytes came")

    def _withdraw(self) -> None:
        self._scratch.tell("task", b"")

    def _command(self, what: str = "cancel", id: str = "", **other: Any) -> tuple[Command, list[Said]]:
        """What comes as answers to it."""
        command = Command(id=id or f"check-{next(self._ids)}", device=DEVICE, what="cancel")
        command = replace(command, what=what, **other)
        before = len(self._scratch.said)
        self._scratch.bus.command(command)
        self._until(lambda: self._answers(command.id, before))
        return command, self._answers(command.id, before)

    def _answers(self, id: str, since: int) -> list[Said]:
        said = [said for said in self._scratch.said[since:] if said.word == "answer"]
        return [one for one in said if (answer := _message(one, Answer)) is not None and answer.id == id]

    def _alive(self) -> bool:
        """Whether it has done what came before: it answers a command, perhaps the second."""
        return any(self._command()[1] for _ in range(2))

    @contextmanager
    def _held(self, offer: Offer) -> Iterator[bool]:
        """The device is given the task and kept waiting for the model. → whether it has begun to fetch it."""
        key, let = layout.model(RUN, offer.task.round), threading.Event()
        self._scratch.objects.held[key] = let
        try:
            offer.give()
            yield self._until(lambda: any(name == key for name, _ in self._scratch.objects.reads))
        finally:
            let.set()

    # The situations

    def _appears(self) -> Found:
        self._until(lambda: self._presences() or self._gone())
        if self._gone() or not self._presences():
            why = self._gone() or f"nothing was heard within {self._patience:.0f} s"
            yield Seen("P1", False, why)
            return
        place = topic(self._scratch.place.fleet, DEVICE, "presence")
        retained = all(p.retain for p in self._scratch.publishes() if p.topic == place)
        online = self._presences()[-1].online
        said = "a presence" if online else "a presence that says offline"
        yield Seen("P1", retained and online, f"{said}, {'retained' if retained else 'not retained'}")
        made = self._scratch.connections()
        yield Seen(
            "C1", all(version == 5 and not clean for version, clean in made),
            "; ".join(sorted({f"MQTT {v}, clean start {'true' if c else 'false'}" for v, c in made})),
        )  # fmt: skip

    def _does(self) -> Found:
        offer = self._offer()
        offer.give()
        yield self._delivered("T1", offer)
        states = [report.state for report in offer.reports()]
        yield Seen("T2", states[:1] in (["accepted"], ["progress"]), f"it said {_listed(states)}")
        why = offer.verdict() if offer.update() is not None else "no update came"
        yield Seen("U1", not why, why or f"admitted: {offer.update()} bytes")
        counts = {word: n for word, n in self._scratch.door.refused.items() if word in ("length", "digest")}
        yield Seen(
            "U2", not why and not counts, "both were true" if not counts else f"the door refused {counts}"
        )
        self._first = offer

    def _twice(self) -> Found:
        offer = self._first
        taken, size = self._scratch.door.refused["taken"], offer.update()
        offer.give()
        self._alive()
        before = len(offer.answers())
        self._restart()
        self._alive()
        again = self._until(lambda: len(offer.answers()) > before)
        what = "it was told again" if again else "nothing was heard of it"
        yield Seen("T7", again if self._program else None, what if self._program else KILLED)
        tried = self._scratch.door.refused["taken"] - taken
        same = not tried and offer.update() == size and size is not None
        yield Seen("T6", same, "no other update came" if same else f"other bytes came {tried} more times")
        self._withdraw()

    def _nonsense(self) -> Found:
        future = self._offer()
        self._scratch.tell("task", encode(replace(future.task, v=2)))
        other = replace(self._offer().task, device="another")
        for payload in (b'{"v":1,"run":', b"\xff\xfe\x00", b"[]", b"[" * 5000, encode(other)):
            self._scratch.tell("task", payload)
            self._scratch.tell("command", payload)
            self._scratch.tell("grant", payload)
        offer = self._offer()
        known = msgspec.json.decode(encode(offer.task))
        self._scratch.tell("task", msgspec.json.encode({**known, "future": {"x": [1, None]}}))
        seen = self._delivered("T5", offer)
        silent = future.update() is None and not future.reports()
        yield Seen(
            "T3", silent and bool(self._gone() == ""), "nothing came of it" if silent else "it was answered"
        )
        lives = seen.held or self._alive()
        yield Seen("T4", bool(lives), "it goes on" if lives else self._gone() or "it does nothing any more")
        yield seen

    def _codec(self) -> Found:
        offer = self._offer(form=Form(codec="of-tomorrow"))
        offer.give()
        self._settled(offer)
        yield self._refusal("T9", offer)
        self._withdraw()

    def _refusal(self, rule: str, offer: Offer) -> Seen:
        if not offer.answers():
            return Seen(rule, False, f"no answer within {self._patience:.0f} s")
        answer = offer.answers()[0]
        good = answer.state == "refused" and bool(answer.reason) and offer.update() is None
        return Seen(rule, good, f"{answer.state}: {shown(answer.reason, 200) or 'no reason'}")

    def _evaluates(self) -> Found:
        offer = self._offer("evaluate", evaluate=True)
        offer.give()
        self._settled(offer)
        refused = bool(offer.answers()) and offer.answers()[0].state != "delivered"
        yield self._refusal("T11", offer) if refused else self._delivered("T11", offer)

    def _wrong_model(self) -> Found:
        offer = self._offer(digest=hashlib.sha256(b"another").hexdigest())
        offer.give()
        key = layout.model(RUN, offer.task.round)
        self._until(lambda: any(name == key for name, _ in self._scratch.objects.reads))
        self._scratch.until(offer.answers, SETTLE)
        self._withdraw()
        after = self._offer()
        after.give()
        gone_on = self._settled(after)
        states = _listed([report.state for report in offer.reports()])
        seen = self._nothing("M1", offer, f"no update; it said {states}")
        yield seen if gone_on or not seen.held else Seen("M1", False, "it did not take the next task")

    def _resumes(self) -> Found:
        offer = self._offer()
        key = layout.model(RUN, offer.task.round)
        self._scratch.objects.breaks.add(key)
        offer.give()
        seen = self._delivered("M2", offer)
        begun = [first for name, first in self._scratch.objects.reads if name == key]
        resumed = len(begun) > 1 and begun[1] > 0
        what = (
            f"it read from byte {', then from byte '.join(map(str, begun))}" if begun else "it read nothing"
        )
        yield Seen("M2", bool(seen.held and resumed), what if seen.held else seen.what)

    def _model_expired(self) -> Found:
        offer = self._offer(late_model=True)
        offer.give()
        yield self._delivered("A1", offer, lambda: "" if offer.asked else "it did not ask")

    def _update_expired(self) -> Found:
        offer = self._offer(late_update=True)
        offer.give()
        yield self._delivered("A2", offer, lambda: "" if offer.asked else "it did not ask")

    def _no_grant(self) -> Found:
        offer = self._offer(late_model=True)
        offer.denied = "check: this round is over"
        offer.give()
        self._until(lambda: offer.asked and offer.answers())
        states = _listed([report.state for report in offer.reports()])
        seen = self._nothing("A3", offer, f"it asked {offer.asked} times and said {states}")
        left = bool(offer.answers()) and offer.asked > 0
        yield seen if left else Seen("A3", False, f"it asked {offer.asked} times, and said {states}")

    def _withdrawn(self) -> Found:
        offer = self._offer()
        with self._held(offer) as begun:
            time.sleep(SETTLE)
            self._withdraw()
            time.sleep(SETTLE)
        after = self._offer()
        after.give()
        went_on = self._settled(after)
        seen = self._nothing("T8", offer, f"no update; it said {_listed([r.state for r in offer.reports()])}")
        if not begun or not went_on:
            seen = Seen(
                "T8", False, "it did not take the next task" if begun else "it did not begin the task"
            )
        yield seen

    def _commands(self) -> Found:
        offer = self._offer()
        place, upload = layout.model(RUN, offer.task.round), f"{layout.run(RUN)}/got/{DEVICE}.safetensors"
        signer = self._scratch.signer()
        model: dict[str, Any] = {"model": signer.to_fetch(place, DEVICE, LIFETIME), "digest": offer.task.digest,
                 "size": offer.task.size}  # fmt: skip
        more: dict[str, dict[str, Any]] = {"get": {"upload": signer.to_deliver(upload, DEVICE, LIFETIME, offer.task.most)},
                "evaluate": model, "set": model}  # fmt: skip
        told, wrong = list[str](), list[str]()
        for what in WORDS:
            command, answers = self._command(what, **more.get(what, {}))
            if not answers:
                wrong.append(f"{what}: no answer within {self._patience:.0f} s")
                continue
            answer = _message(answers[0], Answer)
            assert answer is not None
            told.append(f"{what} {answer.state}")
            if answers[0].correlation != command.id.encode():
                wrong.append(f"{what}: correlation data {shown(repr(answers[0].correlation), 40)}")
            if answer.state != "done" and not answer.reason:
                wrong.append(f"{what}: {answer.state} without a reason")
        yield Seen("Q1", not wrong, "; ".join(wrong) or ", ".join(told))
        command, first = self._command("evaluate", **model)
        _, second = self._command("evaluate", command.id, **model)
        both = [answer for said in (*first[:1], *second[:1]) if (answer := _message(said, Answer))]
        same = len(both) == 2 and both[0].state == both[1].state
        yield Seen("Q2", same, f"it said {_listed([answer.state for answer in both])}")

    def _dies(self) -> Found:
        if self._program is None:
            for rule in ("P2", "T10", "Q3"):
                yield Seen(rule, None, KILLED)
            return
        time.sleep(SETTLE)
        said = len(self._scratch.said)
        self._program.kill()
        gone = self._until(lambda: any(not p.online for p in self._presences(said)))
        self._scratch.connect_anew()
        kept = self._scratch.until(lambda: self._presences(said, kept=True), SETTLE)
        offline = kept and not self._presences(said, kept=True)[-1].online
        what = "offline, retained" if offline else "offline, not retained" if gone else "no will was heard"
        yield Seen("P2", gone and offline, what)
        command = Command(id=f"check-{next(self._ids)}", device=DEVICE, what="cancel")
        self._scratch.bus.command(command)
        self._program.start()
        heard = self._until(lambda: self._answers(command.id, said))
        yield Seen("Q3", heard, "answered" if heard else f"no answer within {self._patience:.0f} s")
        offer = self._offer()
        with self._held(offer) as begun:
            self._program.kill()
        taken = self._scratch.door.refused["taken"]
        self._program.start()
        twice: Callable[[], str] = lambda: (  # noqa: E731
            "other bytes came twice" if self._scratch.door.refused["taken"] > taken else ""
        )
        seen = self._delivered("T10", offer, twice)
        yield seen if begun else Seen("T10", False, "it did not begin the task")

    def _in_parts(self) -> Found:
        if self._large is None:
            yield Seen("U3", None, "only with --large")
            return
        offer = self._offer(model=self._large)
        offer.give()
        parts = lambda: self._scratch.objects.list(layout.parts(offer.key))  # noqa: E731
        yield self._delivered("U3", offer, lambda: "" if parts() else "it came in one piece")
        self._withdraw()

    def _kept_to_itself(self) -> Found:
        fleet, published = self._scratch.place.fleet, self._scratch.publishes()
        own = {topic(fleet, DEVICE, word) for word in FROM_DEVICE}
        foreign = sorted({p.topic for p in published} - own)
        what = f"also to {shown(', '.join(foreign), 200)}" if foreign else f"{len(published)} messages"
        yield Seen("C3", not foreign, what)
        long = max((p.size for p in published), default=0)
        yield Seen("C4", long <= MOST, f"the longest has {long} bytes")
        wanted = {(topic(fleet, DEVICE, word), 1) for word in TO_DEVICE}
        found = self._scratch.subscriptions()
        amiss = [f"{name} at QoS {qos}" for name, qos in sorted(found - wanted)]
        amiss += [f"not to {name}" for name, _ in sorted(wanted - found)]
        yield Seen("C2", not amiss, shown("; ".join(amiss), 200) or "just these")

    def _restart(self) -> None:
        if self._program is not None:
            before = len(self._scratch.said)
            self._program.kill()
            self._program.start()
            self._until(lambda: any(p.online for p in self._presences(before)))

    def _presences(self, since: int = 0, *, kept: bool = False) -> list[Presence]:
        said = [s for s in self._scratch.said[since:] if s.word == "presence" and (s.kept or not kept)]
        return [presence for one in said if (presence := _message(one, Presence))]

    def _gone(self) -> str:
        return self._program.left() if self._program else ""


def _message(said: Said, kind: type[_Kind]) -> _Kind | None:
    """The message, if it is one of that kind."""
    try:
        found = FROM_DEVICES[said.word].decode(said.payload)
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, kind) and found.v == 1 and found.device == DEVICE else None


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "nothing"
