"""Models on their way to devices that keep an earlier one: then the difference is sent, where it is smaller.

    who keeps which version ─▶ a difference file for each pair of versions ─▶ two fields of the task

A device that has lost what it is thought to keep fetches the whole model, which the task names as well.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing

from msgspec import Struct

from fleetfold import layout
from fleetfold.errors import BadUpdate
from fleetfold.fold import difference
from fleetfold.ledger import Ledger, place
from fleetfold.ports import Objects
from fleetfold.round.state import Round

BACK = 4
"""Versions back from which a difference is worth making."""
PIECE = 1 << 20


class Short(Struct, frozen=True):
    """A shorter way to a model: the digest of the one to begin with, and the key of the difference."""

    known: str = ""
    difference: str = ""


def ways_there(ledger: Ledger, objects: Objects, round: Round, cohort: Sequence[str]) -> dict[str, Short]:
    """Device → its shorter way to the round's model, for those who have one. Differences that were made for
    earlier models are removed."""
    newest, key = round.base, layout.model(round.run, round.base)
    versions = range(max(0, newest - BACK), newest)
    digests = {version: _digest(ledger, objects, round.run, version) for version in versions}
    kept = _kept(ledger, round, cohort, digests)
    shorts: dict[int, Short] = {}
    whole = objects.size(key) or 0
    for version in sorted(set(kept.values())):
        made = layout.difference(round.run, version, newest)
        size = objects.size(made)
        if size is None:
            size = _make(objects, layout.model(round.run, version), key, made, whole)
        if size < whole:
            shorts[version] = Short(digests[version], made)
    for version in versions:
        for earlier in range(max(0, version - BACK), version):
            objects.delete(layout.difference(round.run, earlier, version))
    return {device: shorts[version] for device, version in kept.items() if version in shorts}


def _kept(ledger: Ledger, round: Round, cohort: Sequence[str], digests: Mapping[int, str]) -> dict[str, int]:
    """Device → the newest version that it keeps: by its own word, or since its update came from it."""
    by_digest = {digest: version for version, digest in digests.items() if digest}
    found = {
        device.name: by_digest[device.says.model]
        for device in ledger.devices(cohort)
        if device.says and device.says.model in by_digest
    }
    before = ledger.round(round.run, round.number - 1)
    if before and before[0].base in digests:
        for name, arrival in ledger.arrivals(place(before[0])).items():
            if arrival.state != "refused" and arrival.base > found.get(name, -1):
                found[name] = arrival.base
    return {name: found[name] for name in cohort if name in found}


def _make(objects: Objects, old: str, new: str, to: str, size: int) -> int:
    """The difference's size, or that of the whole model where there is none."""
    try:
        with closing(objects.open(old)) as before, closing(objects.open(new)) as after:
            return objects.put(to, difference.encode(before.read, after.read, size))
    except (BadUpdate, KeyError):
        return size


def _digest(ledger: Ledger, objects: Objects, run: str, version: int) -> str:
    """sha256 of a version's file: as its round has it, or, of the first one, made anew."""
    if version:
        for number in range(version, version + BACK):  # rounds that failed made none
            found = ledger.round(run, number)
            if found and found[0].base + 1 == version and found[0].digest:
                return found[0].digest
    digest, offset, piece = hashlib.sha256(), 0, memoryview(bytearray(PIECE))
    try:
        with closing(objects.open(layout.model(run, version))) as reader:
            while done := reader.read(offset, piece):
                digest.update(piece[:done])
                offset += done
    except KeyError:
        return ""
    return digest.hexdigest()
