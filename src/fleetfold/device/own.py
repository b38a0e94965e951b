"""What a device keeps of the models it was given, and what it knows of itself from the last update.

cache/{sha256}      fetched models, the transfer's     model.safetensors   the one it was told to take
record "facts"      which one is its own now: fetched or taken last
"""

import hashlib
from typing import Any

import msgspec
from msgspec import Struct

from fleetfold.device.terms import Home
from fleetfold.messages import encode
from fleetfold.ports import Records

KEY = "facts"


class Facts(Struct, frozen=True, kw_only=True):
    model: str = ""  # sha256 of the model that was fetched for a task or taken by a command last
    examples: int | None = None  # of the newest update


def facts(records: Records) -> Facts:
    record = records.get(KEY)
    return msgspec.json.decode(record.value, type=Facts) if record else Facts()


def learn(records: Records, **changes: Any) -> None:
    """By the worker alone."""
    known = facts(records)
    learned = msgspec.structs.replace(known, **changes)
    if learned != known:
        records.put_many([(KEY, encode(learned))])


def model(home: Home, records: Records) -> bytes | None:
    """The device's own model; None: it keeps none."""
    digest = facts(records).model
    for place in (home.cache / digest, home.model) if digest else ():
        try:
            data = place.read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == digest:
            return data
    return None
