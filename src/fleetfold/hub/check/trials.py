"""One situation after another for the device that is tried, and which rules held in each.

situation ─▶ what the device said, what lies at the door, what the broker noted ─▶ Seen, rule by rule
"""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.errors import shown
from fleetfold.hub.check.bench import Bench, listed
from fleetfold.hub.check.offer import LIFETIME, RUN, Offer, message
from fleetfold.hub.check.rules import Seen
from fleetfold.hub.check.scratch import DEVICE
from fleetfold.layout import FROM_DEVICE, TO_DEVICE, topic
from fleetfold.messages import Answer, Command, Form, encode

MOST = 32 * 1024
"""Bytes of a message that a hub reads."""
SETTLE = 2.5
"""Seconds in which a device at rest has its connection as it wants it."""
KILLED = "needs a command, whose process can be killed"
WORDS = ("evaluate", "get", "set", "cancel")
Found = Iterator[Seen]


def run(bench: Bench) -> Found:
    """Ends after the first if no device comes."""
    for seen in appears(bench):
        yield seen
        if seen.rule == "P1" and not seen.held:
            return
    for trial in TRIALS:
        yield from trial(bench)


def appears(bench: Bench) -> Found:
    bench.scratch.until(lambda: bench.presences() or bench.gone(), bench.arrival)
    if bench.gone() or not bench.presences():
        why = bench.gone() or f"nothing was heard within {bench.arrival:.0f} s"
        yield Seen("P1", False, why)
        return
    place = topic(bench.scratch.place.fleet, DEVICE, "presence")
    retained = all(p.retain for p in bench.scratch.publishes() if p.topic == place)
    online = bench.presences()[-1].online
    said = "a presence" if online else "a presence that says offline"
    yield Seen("P1", retained and online, f"{said}, {'retained' if retained else 'not retained'}")
    made = bench.scratch.connections()
    yield Seen(
        "C1", all(version == 5 and not clean for version, clean in made),
        "; ".join(sorted({f"MQTT {v}, clean start {'true' if c else 'false'}" for v, c in made})),
    )  # fmt: skip


def does(bench: Bench) -> Found:
    offer = bench.offer()
    offer.give()
    yield bench.delivered("T1", offer)
    states = [report.state for report in offer.reports()]
    yield Seen("T2", states[:1] in (["accepted"], ["progress"]), f"it said {listed(states)}")
    came = offer.update() is not None
    why = offer.verdict() if came else "no update came"
    yield Seen("U1", not why, why or f"admitted: {offer.update()} bytes")
    counts = {word: n for word, n in bench.scratch.door.refused.items() if word in ("length", "digest")}
    what = f"the door refused {counts}" if counts else "both were true" if came else why
    yield Seen("U2", came and not counts, what)
    yield from twice(bench, offer)


def twice(bench: Bench, offer: Offer) -> Found:
    taken, size = bench.scratch.door.refused["taken"], offer.update()
    offer.give()
    bench.alive()
    before = len(offer.answers())
    bench.restart()
    bench.alive()
    again = bench.until(lambda: len(offer.answers()) > before)
    what = "it was told again" if again else "nothing was heard of it"
    yield Seen("T7", again if bench.program else None, what if bench.program else KILLED)
    tried = bench.scratch.door.refused["taken"] - taken
    if size is None:
        yield Seen("T6", False, "no update came in the first place")
    else:
        what = f"other bytes came {tried} more times" if tried else "no other update came"
        yield Seen("T6", not tried, what)
    bench.withdraw()


def nonsense(bench: Bench) -> Found:
    future = bench.offer()
    bench.scratch.tell("task", encode(replace(future.task, v=2)))
    other = replace(bench.offer().task, device="another")
    for payload in (b'{"v":1,"run":', b"\xff\xfe\x00", b"[]", b"[" * 5000, encode(other)):
        bench.scratch.tell("task", payload)
        bench.scratch.tell("command", payload)
        bench.scratch.tell("grant", payload)
    offer = bench.offer()
    known = msgspec.json.decode(encode(offer.task))
    bench.scratch.tell("task", msgspec.json.encode({**known, "future": {"x": [1, None]}}))
    seen = bench.delivered("T5", offer)
    silent = future.update() is None and not future.reports()
    yield Seen("T3", silent and not bench.gone(), "nothing came of it" if silent else "it was answered")
    lives = bool(offer.answers()) or bench.alive()
    yield Seen("T4", lives, "it goes on" if lives else bench.gone() or "it does nothing any more")
    yield seen


def codec(bench: Bench) -> Found:
    offer = bench.offer(form=Form(codec="of-tomorrow"))
    offer.give()
    bench.settled(offer)
    yield bench.refusal("T9", offer)
    bench.withdraw()


def evaluates(bench: Bench) -> Found:
    offer = bench.offer("evaluate", evaluate=True)
    offer.give()
    bench.settled(offer)
    refused = bool(offer.answers()) and offer.answers()[0].state != "delivered"
    yield bench.refusal("T11", offer) if refused else bench.delivered("T11", offer)


def wrong_model(bench: Bench) -> Found:
    offer = bench.offer(digest=hashlib.sha256(b"another").hexdigest())
    offer.give()
    key = layout.model(RUN, offer.task.round)
    bench.until(lambda: any(name == key for name, _ in bench.scratch.objects.reads))
    bench.scratch.until(offer.answers, SETTLE)
    bench.withdraw()
    after = bench.offer()
    after.give()
    gone_on = bench.settled(after)
    states = listed([report.state for report in offer.reports()])
    seen = bench.nothing("M1", offer, f"no update; it said {states}")
    yield seen if gone_on or not seen.held else Seen("M1", False, "it did not take the next task")


def resumes(bench: Bench) -> Found:
    offer = bench.offer()
    key = layout.model(RUN, offer.task.round)
    bench.scratch.objects.breaks.add(key)
    offer.give()
    seen = bench.delivered("M2", offer)
    begun = [first for name, first in bench.scratch.objects.reads if name == key]
    resumed = len(begun) > 1 and begun[1] > 0
    what = f"it read from byte {', then from byte '.join(map(str, begun))}" if begun else "it read nothing"
    yield Seen("M2", bool(seen.held and resumed), what if seen.held else seen.what)


def model_expired(bench: Bench) -> Found:
    offer = bench.offer(late_model=True)
    offer.give()
    yield bench.delivered("A1", offer, lambda: "" if offer.asked else "it did not ask")


def update_expired(bench: Bench) -> Found:
    offer = bench.offer(late_update=True)
    offer.give()
    yield bench.delivered("A2", offer, lambda: "" if offer.asked else "it did not ask")


def no_grant(bench: Bench) -> Found:
    offer = bench.offer(late_model=True)
    offer.denied = "check: this round is over"
    offer.give()
    bench.until(lambda: offer.asked and offer.answers())
    states = listed([report.state for report in offer.reports()])
    seen = bench.nothing("A3", offer, f"it asked {offer.asked} times and said {states}")
    left = bool(offer.answers()) and offer.asked > 0
    yield seen if left else Seen("A3", False, f"it asked {offer.asked} times, and said {states}")


def withdrawn(bench: Bench) -> Found:
    offer = bench.offer()
    with bench.held(offer) as begun:
        time.sleep(SETTLE)
        bench.withdraw()
        time.sleep(SETTLE)
    after = bench.offer()
    after.give()
    went_on = bench.settled(after)
    seen = bench.nothing("T8", offer, f"no update; it said {listed([r.state for r in offer.reports()])}")
    if not begun or not went_on:
        seen = Seen("T8", False, "it did not take the next task" if begun else "it did not begin the task")
    yield seen


def commands(bench: Bench) -> Found:
    offer = bench.offer()
    task, signer = offer.task, bench.scratch.signer()
    fetch = signer.to_fetch(layout.model(RUN, task.round), DEVICE, LIFETIME)
    put = signer.to_deliver(f"{layout.run(RUN)}/got/{DEVICE}.safetensors", DEVICE, LIFETIME, task.most)
    model: dict[str, Any] = {"model": fetch, "digest": task.digest, "size": task.size}
    more: dict[str, dict[str, Any]] = {"get": {"upload": put}, "evaluate": model, "set": model}
    told, wrong = list[str](), list[str]()
    for what in WORDS:
        command, answers = bench.command(what, **more.get(what, {}))
        if not answers:
            wrong.append(f"{what}: no answer within {bench.patience:.0f} s")
            continue
        answer = message(answers[0], Answer)
        assert answer is not None
        told.append(f"{what} {answer.state}")
        if answers[0].correlation != command.id.encode():
            wrong.append(f"{what}: correlation data {shown(repr(answers[0].correlation), 40)}")
        if answer.state != "done" and not answer.reason:
            wrong.append(f"{what}: {answer.state} without a reason")
    yield Seen("Q1", not wrong, "; ".join(wrong) or ", ".join(told))
    command, first = bench.command("evaluate", **model)
    _, second = bench.command("evaluate", command.id, **model)
    both = [answer for said in (*first[:1], *second[:1]) if (answer := message(said, Answer))]
    same = len(both) == 2 and both[0].state == both[1].state
    yield Seen("Q2", same, f"it said {listed([answer.state for answer in both])}")


def dies(bench: Bench) -> Found:
    if bench.program is None:
        for rule in ("P2", "T10", "Q3"):
            yield Seen(rule, None, KILLED)
        return
    time.sleep(SETTLE)
    said = len(bench.scratch.said)
    bench.program.kill()
    gone = bench.until(lambda: any(not p.online for p in bench.presences(said)))
    bench.scratch.connect_anew()
    kept = bench.scratch.until(lambda: bench.presences(said, kept=True), SETTLE)
    offline = kept and not bench.presences(said, kept=True)[-1].online
    what = "offline, retained" if offline else "offline, not retained" if gone else "no will was heard"
    yield Seen("P2", gone and offline, what)
    command = Command(id="check-away", device=DEVICE, what="cancel")
    bench.scratch.bus.command(command)
    bench.program.start()
    heard = bench.until(lambda: bench.answers(command.id, said))
    yield Seen("Q3", heard, "answered" if heard else f"no answer within {bench.patience:.0f} s")
    offer = bench.offer()
    with bench.held(offer) as begun:
        bench.program.kill()
    taken = bench.scratch.door.refused["taken"]
    bench.program.start()
    refused = bench.scratch.door.refused
    seen = bench.delivered("T10", offer, lambda: "other bytes came twice" if refused["taken"] > taken else "")
    yield seen if begun else Seen("T10", False, "it did not begin the task")


def in_parts(bench: Bench) -> Found:
    if bench.large is None:
        yield Seen("U3", None, "only with --large")
        return
    offer = bench.offer(model=bench.large)
    offer.give()
    parts, objects = layout.parts(offer.key), bench.scratch.objects
    yield bench.delivered("U3", offer, lambda: "" if objects.list(parts) else "it came in one piece")
    bench.withdraw()


def kept_to_itself(bench: Bench) -> Found:
    fleet, published = bench.scratch.place.fleet, bench.scratch.publishes()
    own = {topic(fleet, DEVICE, word) for word in FROM_DEVICE}
    foreign = sorted({p.topic for p in published} - own)
    what = f"also to {shown(', '.join(foreign), 200)}" if foreign else f"{len(published)} messages"
    yield Seen("C3", not foreign, what)
    long = max((p.size for p in published), default=0)
    yield Seen("C4", long <= MOST, f"the longest has {long} bytes")
    wanted = {(topic(fleet, DEVICE, word), 1) for word in TO_DEVICE}
    found = bench.scratch.subscriptions()
    amiss = [f"{name} at QoS {qos}" for name, qos in sorted(found - wanted)]
    amiss += [f"not to {name}" for name, _ in sorted(wanted - found)]
    yield Seen("C2", not amiss, shown("; ".join(amiss), 200) or "just these")


TRIALS = (
    does, nonsense, codec, evaluates, wrong_model, resumes, model_expired, update_expired, no_grant,
    withdrawn, commands, dies, in_parts, kept_to_itself,
)  # fmt: skip
