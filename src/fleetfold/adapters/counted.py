"""Objects whose writing can be watched: how many bytes of which key have been taken so far."""

from collections.abc import Callable, Iterable, Iterator

from fleetfold.ports import Objects

PIECE = 4 << 20
"""Bytes after which there is something new to tell."""
Wrote = Callable[[str, int], None]
"""Hears of a key that is being written, and its bytes so far."""


def unwatched(key: str, done: int) -> None:
    pass


class Counted:
    """Another `Objects`, and who hears how far it is."""

    def __init__(self, objects: Objects, wrote: Wrote) -> None:
        self._objects, self._wrote = objects, wrote
        self.open, self.size, self.list, self.delete = (
            objects.open,
            objects.size,
            objects.list,
            objects.delete,
        )

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        return self._objects.put(key, self._seen(key, data))

    def _seen(self, key: str, data: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        done = 0
        for part in data:
            for begin in range(0, len(part), PIECE):
                piece = memoryview(part)[begin : begin + PIECE] if len(part) > PIECE else part
                yield piece
                done += len(piece)
                self._wrote(key, done)
