"""What is read when somebody asks for more: one round's timeline, one device's history, one refused update.

Each answer is bounded, whatever the fleet is and whatever lies there.
"""

from typing import Any

import msgspec

from fleetfold import layout
from fleetfold.dashboard import words
from fleetfold.dashboard.watch import Watch
from fleetfold.errors import BadConfig, Unavailable, shown
from fleetfold.ledger import Arrival, place
from fleetfold.messages import Kind
from fleetfold.ports import Objects, fetch, read
from fleetfold.round.state import Round
from fleetfold.tell.timeline import Lane, lanes

LANES = 200
"""Devices of a timeline that are told at once."""
HISTORY = {"here": 60, "hub": 60, "cloud": 20}
"""Rounds that a device's history goes back: each is a reading."""
HEADER = 64 << 10
"""Bytes of a refused update's header that are looked at, and a quarter of them shown."""


def timeline(watch: Watch, number: int, kind: str, first: int) -> dict[str, Any]:
    """The round's times, and its devices from the `first` on: those that were not heard of, then the slowest.
    Times in seconds since it was opened. Raises BadConfig."""
    round = _round(watch, number, kind)
    cohort = msgspec.json.decode(fetch(watch.objects, round.cohort), type=list[str])
    found = lanes(round, cohort, watch.ledger.arrivals(place(round)))
    after = watch.ledger.round(round.run, number + 1)
    return {
        "round": number, "kind": kind, "phase": round.phase, "reason": shown(round.reason, words.WORDS),
        "opened": words.time(round.opened_at), "asked": _since(round, round.asked_at),
        "closed": _since(round, round.closed_at), "ended": _since(round, round.ended_at),
        "deadline": _since(round, round.deadline_at),
        "next": _since(round, after[0].opened_at) if after else None,
        "devices": len(found), "first": first,
        "lanes": [_lane(watch, round, lane) for lane in found[first : first + LANES]],
    }  # fmt: skip


def _lane(watch: Watch, round: Round, lane: Lane) -> list[object]:
    """[device's id, name, state, [[step, begin, end], …], why]"""
    steps = [[step.name, _since(round, step.begin), _since(round, step.end)] for step in lane.steps]
    return [
        watch.id_of(lane.device),
        words.name(lane.device),
        lane.state,
        steps,
        shown(lane.reason, words.WORDS),
    ]


def _since(round: Round, at: float) -> float | None:
    return words.number(at - round.opened_at, 6) if at else None


def history(watch: Watch, id: int) -> dict[str, Any]:
    """What one device has brought to the newest rounds. Raises BadConfig."""
    name, run = watch.name_of(id), watch.run
    if name is None or run is None:
        raise BadConfig(f"there is no device {id} here")
    found = list[list[object]]()
    for number in range(run.round, max(0, run.round - HISTORY[watch.where]), -1):
        for kind in words.KINDS:
            where = layout.round(run.name, number, kind)
            found += [_entry(number, kind, a) for a in watch.ledger.arrivals_of(where, [name]).values()]
    entry = watch.device(name)
    says = entry.says if entry else None
    return {
        "id": id, "name": words.name(name), "long": shown(name, 400), "rounds": found,
        "agent": shown(says.agent, words.NAME) if says else "", "memory": says.memory if says else None,
    }  # fmt: skip


def _entry(number: int, kind: Kind, arrival: Arrival) -> list[object]:
    """[round, kind, state, examples, download, compute, upload, bytes, loss, accuracy, at, why]"""
    metrics = arrival.evaluation.metrics if arrival.evaluation else arrival.metrics
    took = arrival.took
    return [
        number, words.KINDS.index(kind), arrival.state, arrival.examples,
        *(words.number(step, 4) for step in (took.download, took.compute, took.upload)), arrival.size,
        words.number(metrics.get("loss")), words.number(metrics.get("accuracy")), words.time(arrival.at),
        shown(arrival.reason, words.WORDS),
    ]  # fmt: skip


def refusal(watch: Watch, id: int) -> dict[str, Any]:
    """Who, why, and what the file says of itself. Raises BadConfig."""
    if not 0 <= id < len(watch.refusals):
        raise BadConfig(f"there is no refused update {id} here")
    round, device, arrival = watch.refusals[id]
    key = arrival.key if arrival else layout.update(place(round), device)
    why = arrival.reason if arrival else "it was not invited to this round"
    said, about = header(watch.objects, key)
    return {
        "name": words.name(device), "round": round.number, "kind": round.kind, "why": shown(why, 500),
        "key": shown(key, 400), "bytes": arrival.size if arrival else watch.objects.size(key) or 0,
        "at": words.time(arrival.at) if arrival else None, "header": said, "about": about,
    }  # fmt: skip


def header(objects: Objects, key: str) -> tuple[str, str]:
    """(the text of a safetensors file's header, as far as it is one; what is to be said of it). Nothing is
    taken apart but JSON, of a bounded length; what comes of it is shown and never obeyed."""
    try:
        size = objects.size(key)
        if size is None:
            return "", "the file is not kept any more, or never came"
        length = int.from_bytes(read(objects, key, 0, 8), "little")
        text = read(objects, key, 8, min(length, HEADER))
    except (KeyError, OSError):
        return "", "the file is not kept any more"
    except Unavailable as error:
        return "", error.sentence
    about = "" if length <= min(HEADER, size) else f"its first 8 bytes promise a header of {length:,} bytes"
    try:
        text = msgspec.json.format(text, indent=2)
    except (msgspec.MsgspecError, RecursionError):
        about = about or "it is not JSON"
    lines = text[: HEADER // 4].decode("utf-8", "replace").split("\n")
    cut = "" if len(text) <= HEADER // 4 else "\n…"
    return "\n".join(shown(line, 2000) for line in lines[:400]) + cut, about


def _round(watch: Watch, number: int, kind: str) -> Round:
    found = watch.ledger.round(watch.name, number, kind) if kind in words.KINDS else None
    if found is None:
        raise BadConfig(f"there is no round {number} to {shown(kind, 20)} here")
    return found[0]
