"""Objects that may lie in parts: whoever reads sees one object, wherever its parts were put.

    key                       whole: then its parts, if there are any, are not looked at
    key.parts/0000-of-0002    parts: each of PART bytes, but the last, which has the rest
    key.parts/0001-of-0002

A set that is not complete, or contradicts itself, is as if nothing were there.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing

from fleetfold import layout
from fleetfold.ports import Objects, Reader


class Parted:
    """`part`: bytes of a part. A part itself is found by its own key, but not listed."""

    def __init__(self, objects: Objects, *, part: int = layout.PART) -> None:
        self._objects, self._part = objects, part
        self.put = objects.put
        self.flow = getattr(objects, "flow", None)  # of a store, which finds the parts by the size

    def open(self, key: str) -> Reader:
        try:
            return self._objects.open(key)
        except KeyError:
            sizes = self._sizes(self._parts(key))
        if not sizes:
            raise KeyError(key)
        with ExitStack() as stack:
            readers: list[Reader] = []
            for number in range(len(sizes)):
                reader = self._objects.open(layout.part(key, number, len(sizes)))
                readers.append(stack.enter_context(closing(reader)))
            return _Spliced(readers, self._part, stack.pop_all())

    def size(self, key: str) -> int | None:
        size = self._objects.size(key)
        return size if size is not None else sum(self._sizes(self._parts(key))) or None

    def list(self, prefix: str) -> list[str]:
        found: set[str] = set()
        parts: dict[str, list[str]] = {}
        for key in self._objects.list(prefix):
            part = layout.part_of(key)
            if part is None:
                found.add(key)
            elif part[0].startswith(prefix):
                parts.setdefault(part[0], []).append(key)
        return sorted(found | {key for key in parts.keys() - found if self._sizes(parts[key])})

    def delete(self, key: str) -> None:
        """Its parts first, in any state: a death in between leaves the whole as it was, or nothing."""
        for part in self._parts(key):
            self._objects.delete(part)
        self._objects.delete(key)

    def _parts(self, key: str) -> Sequence[str]:
        """Keys of whatever lies there as a part of `key`, in order."""
        of_it = ((part, layout.part_of(part)) for part in self._objects.list(layout.parts(key)))
        return [part for part, parsed in of_it if parsed and parsed[0] == key]

    def _sizes(self, parts: Sequence[str]) -> Sequence[int]:
        """Bytes of each part, if together they are one object; else none."""
        whole = [layout.part_of(part) for part in parts]
        expected = [(key, number, len(parts)) for number, (key, _, _) in enumerate(filter(None, whole))]
        if not parts or whole != expected:
            return ()
        *full, rest = [self._objects.size(part) or 0 for part in parts]
        return (*full, rest) if set(full) <= {self._part} and 0 < rest <= self._part else ()


class _Spliced:
    """Parts, read as one object: where an offset lies follows from the size of a part alone."""

    file: int | None = None

    def __init__(self, readers: Sequence[Reader], part: int, held: ExitStack) -> None:
        self._readers, self._part, self._held = readers, part, held

    def read(self, offset: int, into: memoryview) -> int:
        done = 0
        while done < len(into) and (offset + done) // self._part < len(self._readers):
            number, inside = divmod(offset + done, self._part)
            wanted = into[done : done + self._part - inside]
            got = self._readers[number].read(inside, wanted)
            done += got
            if got < len(wanted):
                break
        return done

    def close(self) -> None:
        self._held.close()
