"""What changed since a cursor: rows of tables, each in the order of their newest change, a page at a time.

    put("devices", 9, row) ─▶ devices: … (17, device 3) (18, device 9)     since("life.….17.…") ─▶ device 9

A cursor has a number for each table, so that what is looked at first comes first, however long the others
are. One of another life of this process is the beginning.
"""

from collections.abc import Hashable, Iterator
from itertools import takewhile

import msgspec
from msgspec import Struct

Row = tuple[object, ...]
TABLES = ("rounds", "refused", "devices", "lanes")
"""In the order in which they are told."""
BUDGET = 56_000
"""Bytes of the rows of one page. With what comes around them a page stays below 60 kB."""


class Page(Struct, frozen=True):
    """`tables`: of each table rows of JSON, joined by commas; `more`: whether there is more by now."""

    tables: dict[str, bytes]
    cursor: str
    more: bool


class Feed:
    """`life`: another one each time that the process begins, so that old cursors are known as such."""

    def __init__(self, life: str) -> None:
        self._life = life
        self._numbers = dict.fromkeys(TABLES, 0)
        self._rows: dict[str, dict[Hashable, tuple[int, bytes]]] = {table: {} for table in TABLES}

    def put(self, table: str, key: Hashable, row: Row) -> None:
        """What the row is now; nothing, if that is what it was."""
        rows, text = self._rows[table], msgspec.json.encode(row)
        old = rows.get(key)
        if old is not None and old[1] == text:
            return
        rows.pop(key, None)  # the latest change comes last
        self._numbers[table] += 1
        rows[key] = self._numbers[table], text

    def clear(self, table: str) -> None:
        """Forget that table. Who reads is told so in words of their own."""
        self._rows[table] = {}

    def since(self, cursor: str, budget: int = BUDGET) -> Page:
        tables, numbers, room, more = dict[str, bytes](), list[int](), budget, False
        for table, after in zip(TABLES, self._after(cursor), strict=True):
            last, rows = self._numbers[table], list[bytes]()
            for number, text in self._newer(table, after):
                room -= len(text) + 1
                if room < 0 and (rows or tables):
                    last, more = after, True
                    break
                rows.append(text)
                after = number
            numbers.append(last)
            if rows:
                tables[table] = b",".join(rows)
        return Page(tables, ".".join([self._life, *map(str, numbers)]), more)

    def _after(self, cursor: str) -> list[int]:
        life, *numbers = cursor.split(".")
        known = life == self._life and len(numbers) == len(TABLES) and all(map(_is_number, numbers))
        return [int(number) for number in numbers] if known else [0] * len(TABLES)

    def _newer(self, table: str, after: int) -> Iterator[tuple[int, bytes]]:
        latest = takewhile(lambda entry: entry[0] > after, reversed(self._rows[table].values()))
        return reversed(list(latest))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16
