"""Where things live: the keys of objects and records, the topics, and which names are allowed in them.

    runs/{run}/models/{version:06}.safetensors               objects: written once
    runs/{run}/rounds/{round:06}/updates/{device}.safetensors
    runs/{run}/rounds/{round:06}/arrivals/{device}           records: one small one each
    runs/{run}/releases/{number:06}
    fleetfold/{fleet}/{device}/task                          topics: see TO_DEVICE and FROM_DEVICE

A round that only evaluates is named like the round whose model it evaluates, with `-evaluate` behind it.
"""

import re
from typing import get_args

from fleetfold.errors import BadConfig
from fleetfold.messages import Kind

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def valid_name(name: str) -> bool:
    """Whether `name` may name a device or a run: it becomes part of keys, topics and file names."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def checked_name(name: str, what: str) -> str:
    if not valid_name(name):
        raise BadConfig(
            f"{what} {name[:80]!r} is not a name: 1 to 64 of letters, digits, '.', '_', '-', "
            "starting with a letter or digit"
        )
    return name


def run(run: str) -> str:
    return f"runs/{run}"


def model(run: str, version: int, release: int = 0) -> str:
    """`release`: the model as that private release has it, before a round takes it up."""
    return f"{models(run)}{version:06}{_released(release)}.safetensors"


def difference(run: str, old: int, new: int) -> str:
    """What turns one version of the model into a later one."""
    return f"runs/{run}/models/{new:06}.since-{old:06}.difference"


def state(run: str, version: int, release: int = 0) -> str:
    """The server optimizer's state after so many steps, beside the model."""
    return f"runs/{run}/models/{version:06}{_released(release)}.state.safetensors"


def _released(release: int) -> str:
    return f".release-{release:06}" if release else ""


def release(run: str, number: int) -> str:
    return f"{releases(run)}{number:06}"


def releases(run: str) -> str:
    return f"runs/{run}/releases/"


def rounds(run: str) -> str:
    return f"runs/{run}/rounds/"


def round(run: str, number: int, kind: Kind) -> str:
    return f"{rounds(run)}{number:06}" + ("" if kind == "train" else f"-{kind}")


def kind_of(round: str) -> Kind:
    """What the round with that key is for."""
    found = round.rpartition("/")[2].partition("-")[2]
    return next((kind for kind in get_args(Kind) if kind == found), "train")


def content(run: str, digest: str) -> str:
    """Tensors of a message of an app's own, by the digest of their file."""
    return f"{contents(run)}{digest}.safetensors"


def contents(run: str) -> str:
    return f"runs/{run}/contents/"


def batch(round: str, digest: str) -> str:
    """What was sent to whom in a round of messages."""
    return f"{round}/batch-{digest}.json"


def models(run: str) -> str:
    return f"runs/{run}/models/"


def app(run: str) -> str:
    """The record of where an app with messages of its own stands, which may be gone on with from there."""
    return f"runs/{run}/app"


def app_objects(run: str) -> str:
    return f"{app(run)}/"


def app_object(run: str, name: str) -> str:
    """What that record points to, by a name with its digest."""
    return f"{app_objects(run)}{name}"


def folded(round: str) -> str:
    """What a round's answers are folded into, where it is not a model of the run's."""
    return f"{round}/folded.safetensors"


def update(round: str, device: str) -> str:
    return f"{updates(round)}{device}.safetensors"


def updates(round: str) -> str:
    return f"{round}/updates/"


def device_of(update: str) -> str:
    """The device that an update's key belongs to: identity is where it was written, not what it claims."""
    return update.rpartition("/")[2].removesuffix(".safetensors")


def round_of(update: str) -> str:
    """The key of the round that an update was made for."""
    return update.partition("/updates/")[0]


def number_of(update: str) -> int:
    """The number of the round that an update was made for."""
    return int(round_of(update).rpartition("/")[2].partition("-")[0])


PART = 32 << 20
"""Bytes of each part of an update that is larger than that, but the last."""
_PART = re.compile(r"(.+)\.parts/([0-9]{4})-of-([0-9]{4})", re.DOTALL)


def parts(key: str) -> str:
    return f"{key}.parts/"


def part(key: str, number: int, total: int) -> str:
    """The key of part `number`, from 0 on, of an object that is delivered in `total` parts."""
    return f"{parts(key)}{number:04}-of-{total:04}"


def part_of(key: str) -> tuple[str, int, int] | None:
    """(whole object's key, number, total) of a part's key; None if it is none."""
    found = _PART.fullmatch(key)
    return (found[1], int(found[2]), int(found[3])) if found else None


def quarantine(round: str, device: str) -> str:
    return f"{round}/quarantine/{device}.json"


def cohort(round: str, digest: str) -> str:
    return f"{round}/cohort-{digest}.json"


def fold(round: str) -> str:
    """The record of how the round's updates are folded, where that is done in parts."""
    return f"{round}/fold"


def fold_plan(round: str, digest: str) -> str:
    return f"{round}/fold-{digest}.json"


def arrival(round: str, device: str) -> str:
    return f"{arrivals(round)}{device}"


def arrivals(round: str) -> str:
    return f"{round}/arrivals/"


def turn(record: str) -> str:
    """Whose turn it is at a record that many change."""
    return f"{record}/turn"


def device(device: str) -> str:
    return f"fleet/{device}"


def doing(device: str) -> str:
    """What the device last said that it is at: one record each, of a hub's."""
    return f"doing/{device}"


def mail(device: str, life: str, number: int) -> str:
    """Where a device without a connection finds what it is told. `life`: another one with each enrolment."""
    return f"{POLL}{device}/{life}/{number:08}.json"


def words(device: str, life: str, number: int) -> str:
    """Where it puts what it says, until it has found the mail of that number."""
    return f"{POLL}{device}/{life}/{number:08}.said.json"


def words_of(key: str) -> tuple[str, str, int] | None:
    """(device, life, number) of the key of words; None if it is none."""
    found = _WORDS.fullmatch(key)
    return (found[1], found[2], int(found[3])) if found and valid_name(found[1]) else None


POLL = "runs/.poll/"
"""Beside the runs, of which none can have that name: whoever may write there may write here."""
_WORDS = re.compile(r"runs/\.poll/([^/]+)/([0-9a-f]{16})/([0-9]{8})\.said\.json")
TO_DEVICE = ("task", "grant", "command")
FROM_DEVICE = ("status", "presence", "ask", "answer")
"""The last words of topics: what is said to a device, and by it."""


def topic(fleet: str, device: str, word: str) -> str:
    """`device` may be "+", for all of them."""
    return f"fleetfold/{fleet}/{device}/{word}"


def topic_parts(topic: str) -> tuple[str, str] | None:
    """(device, word) of a topic; None if it is none of ours."""
    parts = topic.split("/")
    if len(parts) != 4 or parts[0] != "fleetfold" or not valid_name(parts[2]):
        return None
    return parts[2], parts[3]


FLEET = "fleet/"
