"""Records of a run on a hub: its own beside it; those of the fleet in the hub's file, which runs share."""

from collections.abc import Iterable, Sequence

from fleetfold.layout import FLEET
from fleetfold.ports import Record, Records


class Routed:
    """Keys below `fleet/` go to `fleet`, all others to `own`."""

    def __init__(self, own: Records, fleet: Records) -> None:
        self._own, self._fleet = own, fleet

    def get(self, key: str) -> Record | None:
        return self._of(key).get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, Record]:
        found = dict[str, Record]()
        for records in (self._own, self._fleet):
            if own := [key for key in keys if self._of(key) is records]:
                found |= records.get_many(own)
        return found

    def swap(self, key: str, value: bytes, expect: int) -> bool:
        return self._of(key).swap(key, value, expect)

    def put_many(self, values: Sequence[tuple[str, bytes]]) -> None:
        for records in (self._own, self._fleet):
            if own := [pair for pair in values if self._of(pair[0]) is records]:
                records.put_many(own)

    def scan(self, prefix: str) -> Iterable[tuple[str, Record]]:
        return self._of(prefix).scan(prefix)

    def _of(self, key: str) -> Records:
        return self._fleet if key.startswith(FLEET) else self._own
