"""The records, typed: what is known of runs, rounds, arrivals and devices. Everybody reads here.

runs/{run}                                the run            changed by compare-and-set
runs/{run}/rounds/{n}                     the round          changed by compare-and-set
runs/{run}/rounds/{n}/arrivals/{device}   one arrival each
runs/{run}/rounds/{n}/fold                how its updates are folded, where others do it
runs/{run}/releases/{n}                   one private release each, never changed
fleet/{device}                            the registry
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.errors import Unavailable
from fleetfold.messages import Evaluation, Form, Kind, Metrics, Timings, encode
from fleetfold.ports import Record, Records
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run
from fleetfold.round.state import Round

_S = TypeVar("_S", bound=Struct)
_T = TypeVar("_T")
_R = TypeVar("_R")
AT_ONCE = 16
"""Records that are changed at a time, where each is changed by itself."""
TRIES = 50
"""Lost compare-and-sets in a row after which something is wrong with the store."""


class Arrival(Struct, frozen=True, kw_only=True):
    """What became of one device's part in one round, written once the gate has seen it.

    Weights of the fold come from here. A late arrival that is credited names the round that counts it.
    """

    device: str
    seat: int
    state: Literal["admitted", "refused", "late", "credited"]
    reason: str = ""
    key: str = ""  # of the update file
    size: int = 0
    begin: int = 0  # where its tensors begin in the file
    form: Form = Form()  # and how they are written
    base: int = 0  # version of the model that it was trained from
    examples: int = 0
    metrics: Metrics = {}
    evaluation: Evaluation | None = None
    took: Timings = Timings()
    at: float = 0.0  # seconds since the epoch, by the coordinator's clock
    credited_to: int = 0


class Release(Struct, frozen=True, kw_only=True):
    """A model that may have been seen, with its own noise: what privacy is spent by."""

    number: int  # of the run's releases, from 1 without gaps
    round: int
    updates: str  # digest of the set that it is made of
    clip: float
    next_clip: float  # of the round after, from a count that has noise on it


class Folding(Struct, frozen=True, kw_only=True):
    """The plan by which a round's updates are folded now. A later one is of fewer updates."""

    plan: str  # its digest
    updates: str  # digest of the set that it folds
    count: int  # of them
    model: str  # key of the object that is made
    shards: int = 0  # that are folded apart; 0: it is not cut
    upload: str = ""
    size: int = 0  # bytes of the object


_RUN = msgspec.json.Decoder(Run)
_ROUND = msgspec.json.Decoder(Round)
_ARRIVAL = msgspec.json.Decoder(Arrival)
_DEVICE = msgspec.json.Decoder(Device)
_RELEASE = msgspec.json.Decoder(Release)
_FOLDING = msgspec.json.Decoder(Folding)


class Ledger:
    """`alone`: nobody else writes what this one does at the same time, so that many records are written at
    once; else each by compare-and-set."""

    def __init__(self, records: Records, *, alone: bool = True) -> None:
        self._records, self._alone = records, alone

    def run(self, name: str) -> tuple[Run, int] | None:
        """The run and its version."""
        return _typed(_RUN, self._records.get(layout.run(name)))

    def save_run(self, run: Run, expect: int) -> bool:
        return self._records.swap(layout.run(run.name), encode(run), expect)

    def round(self, run: str, number: int, kind: Kind = "train") -> tuple[Round, int] | None:
        """The round and its version."""
        return _typed(_ROUND, self._records.get(layout.round(run, number, kind)))

    def save_round(self, round: Round, expect: int) -> bool:
        return self._records.swap(place(round), encode(round), expect)

    def rounds(self, run: str) -> list[Round]:
        """All rounds of a run, in order; an evaluation follows the round that it evaluates."""
        return [_ROUND.decode(record.value) for _, record in self._records.scan(layout.rounds(run))]

    def arrivals(self, round: str) -> dict[str, Arrival]:
        """Device → its arrival, of the round with that key."""
        found = self._records.scan(layout.arrivals(round))
        arrivals = (_ARRIVAL.decode(record.value) for _, record in found)
        return {arrival.device: arrival for arrival in arrivals}

    def arrivals_of(self, round: str, devices: Iterable[str]) -> dict[str, Arrival]:
        """The same, of these devices alone."""
        keys = [layout.arrival(round, device) for device in dict.fromkeys(devices)]
        arrivals = (_ARRIVAL.decode(record.value) for record in self._records.get_many(keys).values())
        return {arrival.device: arrival for arrival in arrivals}

    def arrival(self, round: str, device: str) -> tuple[Arrival, int] | None:
        return _typed(_ARRIVAL, self._records.get(layout.arrival(round, device)))

    def record(self, round: str, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Write down what became of devices' parts in a round. → what stands there: if somebody else was
        first, theirs."""
        if self._alone:
            self.save_arrivals(round, arrivals)
            return list(arrivals)

        def first(arrival: Arrival) -> Arrival:
            if self.swap_arrival(round, arrival, expect=0):
                return arrival
            found = self.arrival(round, arrival.device)
            return found[0] if found else arrival

        return _together(first, arrivals)

    def save_arrivals(self, round: str, arrivals: Iterable[Arrival]) -> None:
        self._records.put_many([(layout.arrival(round, a.device), encode(a)) for a in arrivals])

    def swap_arrival(self, round: str, arrival: Arrival, expect: int) -> bool:
        return self._records.swap(layout.arrival(round, arrival.device), encode(arrival), expect)

    def releases(self, run: str) -> list[Release]:
        """All of a run, by number."""
        return [_RELEASE.decode(record.value) for _, record in self._records.scan(layout.releases(run))]

    def release(self, run: str, number: int) -> Release | None:
        found = _typed(_RELEASE, self._records.get(layout.release(run, number)))
        return found[0] if found else None

    def save_release(self, run: str, release: Release) -> bool:
        """Whether it is the first of its number."""
        return self._records.swap(layout.release(run, release.number), encode(release), expect=0)

    def folding(self, round: str) -> tuple[Folding, int] | None:
        """How the round with that key is folded, and the record's version."""
        return _typed(_FOLDING, self._records.get(layout.fold(round)))

    def save_folding(self, round: str, folding: Folding, expect: int) -> bool:
        return self._records.swap(layout.fold(round), encode(folding), expect)

    def fleet(self) -> list[Device]:
        """The registry, by name."""
        return [_DEVICE.decode(record.value) for _, record in self._records.scan(layout.FLEET)]

    def recent(self, count: int) -> list[Device]:
        """So many of the registry, by when they were last seen, the latest first."""
        newest = getattr(self._records, "newest", None)  # of a table that has an index of them
        if newest is not None:
            return [_DEVICE.decode(record.value) for _, record in newest(layout.FLEET, count)]
        return sorted(self.fleet(), key=lambda device: -device.last_seen)[:count]

    def devices(self, names: Iterable[str]) -> list[Device]:
        """Entries of the registry, of those of `names` that are in it."""
        keys = [layout.device(name) for name in dict.fromkeys(names)]
        return [_DEVICE.decode(record.value) for record in self._records.get_many(keys).values()]

    def enlist(self, names: Sequence[str]) -> None:
        """Put devices into the registry; who is there already stays as it is."""
        known = {device.name for device in self.fleet()}
        self.save_devices([Device(name=name) for name in names if name not in known])

    def register(self, device: Device) -> None:
        """Put one device into the registry; if it is there already it stays as it is."""
        self._records.swap(layout.device(device.name), encode(device), expect=0)

    def amend(self, names: Iterable[str], change: Callable[[Device], Device]) -> list[Device]:
        """Change entries of the registry, of those of `names` that are in it. → what they are then."""
        if self._alone:
            before = self.devices(names)
            after = [change(device) for device in before]
            self.save_devices([new for new, old in zip(after, before, strict=True) if new != old])
            return after
        keys = [layout.device(name) for name in dict.fromkeys(names)]
        found = self._records.get_many(keys)
        return _together(lambda key: self._amended(key, found[key], change), [k for k in keys if k in found])

    def _amended(self, key: str, record: Record | None, change: Callable[[Device], Device]) -> Device:
        for _ in range(TRIES):
            if record is None:
                break
            old = _DEVICE.decode(record.value)
            new = change(old)
            if new == old or self._records.swap(key, encode(new), record.version):
                return new
            record = self._records.get(key)
        raise Unavailable(f"lost {TRIES} compare-and-sets on {key}")

    def save_devices(self, devices: Iterable[Device]) -> None:
        self._records.put_many([(layout.device(d.name), encode(d)) for d in devices])


def place(round: Round) -> str:
    """The round's key."""
    return layout.round(round.run, round.number, round.kind)


def _typed(decoder: "msgspec.json.Decoder[_S]", record: Record | None) -> tuple[_S, int] | None:
    return None if record is None else (decoder.decode(record.value), record.version)


def _together(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))
