"""The generated parts of docs/protocol.md: each message's fields and schema, and the rules.

python docs/_tools/protocol.py     writes them anew; tests/door/test_docs.py says when that is due
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import reference

from fleetfold import bundle, messages
from fleetfold.hub.check.rules import RULES

PAGE = Path(__file__).parents[1] / "protocol.md"
WHOSE = {
    "v": "version of the protocol",
    "run": "of which run",
    "round": "of which round",
    "kind": "`train` or `evaluate`",
    "device": "whom it is for, or who says it: as in the topic",
}
reference.MEANINGS |= {
    "Bundle": {
        "v": "version of this file",
        "fleet": "the fleet's name, in every topic",
        "device": "the device's name, in its topics and its certificate",
        "brokers": "addresses, tried in this order: `mqtts://host:8883`, `wss://host:443/mqtt`",
        "door": "the hub's door, `https://host:8443`: addresses elsewhere are an object store's",
        "authority": "the certificate that broker and door are known by, as PEM",
        "certificate": "the device's own, as PEM",
        "key": "its private key, as PEM; empty where the device has made its own",
        "poll": "of a device on AWS that has no connection: signed addresses of its first mail and words",
    },
    "Task": WHOSE
    | {
        "model": "address of the model, for GET",
        "digest": "sha256 of the model's file, in hex",
        "size": "bytes of the model's file",
        "update": "address for the update, for PUT",
        "most": "bytes that the update's file may have",
        "known": "sha256 of a model that the device is known to have; may be ignored",
        "difference": "address of what turns that one into this one (below); may be ignored",
        "seed": "of all chance in this piece of work",
        "deadline": "seconds since the epoch by the hub's clock: to show, not to compare",
        "late": "whether an update after the deadline counts too",
        "evaluate": "score the model that came before training it: `evaluation` of the update",
        "form": "what the update is to be",
        "partial": "whether it may carry fewer tensors than that",
        "sent": "how many values, of `topk`",
        "feedback": "add to this update what the codec left behind of the last one",
        "settings": "the app's own: any JSON",
        "message": "of kind `message`, which only an app of another framework answers: what it is asked",
    },
    "Envelope": {
        "id": "of the message",
        "type": "what the app is to do with it: `train`, `evaluate`, `query`, `train.mine`",
        "src": "the app's own number of who sends it",
        "dst": "and of whom it is for",
        "group": "the app's own name of what belongs together",
        "ttl": "seconds from `created` for which somebody waits for the answer",
        "created": "seconds since the epoch",
        "reply_to": "of an answer: the `id` that it answers",
        "app": "fingerprint of the app's files: another version's answer is refused",
        "records": "the content but for its tensors: any JSON",
        "error": "instead of a content: the framework's number and a sentence",
    },
    "Presence": {
        "v": WHOSE["v"],
        "device": WHOSE["device"],
        "online": "false in the last will, and when it leaves",
        "available": "whether it would do a task now, by its own conditions",
        "reason": "why not",
        "examples": "how many it can train on",
        "battery": "of 1",
        "charging": "whether it is",
        "link": "`unmetered`, `metered`; empty: not known",
        "memory": "bytes that training may take",
        "model": "sha256 of the newest model that it keeps",
        "agent": "name and version of what runs there",
    },
    "Ask": WHOSE
    | {
        "parts": "in how many the update goes; 0: in one piece",
        "first": "the part, from 0, that the addresses are to begin with",
    },
    "Grant": WHOSE
    | {
        "parts": "as asked",
        "first": "as asked",
        "model": "a fresh address of the model",
        "updates": "a fresh one for the update; or those of the parts from `first` on, perhaps not all",
        "reason": "why there are none: leave the task off; empty: there are",
    },
    "Command": {
        "v": WHOSE["v"],
        "id": "of this command: the answer's, too",
        "device": WHOSE["device"],
        "what": "`evaluate` a model, `get` the device's own, `set` it, or `cancel` the task at hand",
        "run": "whose task is left off; empty: whichever",
        "model": "address of a model, for GET; empty in `evaluate`: the device's own",
        "digest": "its sha256, in hex",
        "size": "its bytes",
        "upload": "address to put the device's own model at, for PUT",
        "settings": "the app's own: any JSON",
    },
    "Answer": {
        "v": WHOSE["v"],
        "id": "of the command",
        "device": WHOSE["device"],
        "state": "`done`; `refused`: the device will not; `failed`: it could not",
        "reason": "why not, in one line",
        "examples": "of `evaluate`: how many it was scored on",
        "metrics": "of `evaluate`: numbers by name",
        "digest": "of the model that was put there or taken",
        "size": "its bytes",
    },
}


def message(struct: type[msgspec.Struct]) -> Callable[[], str]:
    """Its fields, then its schema."""
    return lambda: f"{reference.fields(struct)()}\n\n```json schema\n{schema(struct)}\n```"


def schema(struct: type[msgspec.Struct]) -> str:
    """Without descriptions: the page has its own."""
    whole: dict[str, Any] = msgspec.json.schema(struct)
    found = whole["$defs"].pop(struct.__name__) | ({"$defs": whole["$defs"]} if whole["$defs"] else {})
    for each in (found, *found.get("$defs", {}).values()):
        each.pop("description", None)
    return folded(msgspec.json.decode(msgspec.json.encode(found)))


def folded(value: Any, indent: str = "") -> str:
    """JSON with one line for whatever fits into one."""
    line = json.dumps(value)
    if len(indent) + len(line) <= 110 or not isinstance(value, dict):
        return line
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(k)}: {folded(v, inner)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def rules() -> str:
    untried = " (`check-device` does not try this.)"
    return "\n".join(f"- **{r.id} {r.level}:** it {r.text}.{'' if r.tried else untried}" for r in RULES)


PARTS: dict[str, Callable[[], str]] = {
    **{
        name.lower(): message(getattr(messages, name))
        for name in ("Task", "Report", "Presence", "Ask", "Grant", "Command", "Answer")
    },
    "bundle": message(bundle.Bundle),
    "update header": message(messages.UpdateHeader),
    "envelope": reference.fields(messages.Envelope),
    "form": reference.fields(messages.Form),
    "timings": reference.fields(messages.Timings),
    "evaluation": reference.fields(messages.Evaluation),
    "rules": rules,
}


def renewed(text: str) -> str:
    return reference.renewed(text, PARTS)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
