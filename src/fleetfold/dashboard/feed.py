"""What changed since a cursor: rows of several tables in the order of their newest change, a page at a time.

    put(table, key, row) ─▶ [ … (17, rounds 3) (18, devices 9) (19, lanes 9) ]     since(17) ─▶ 18, 19

A cursor is `{life}.{number}`. One of another life of this process is the beginning.
"""

from collections.abc import Hashable, Iterator
from itertools import takewhile

import msgspec
from msgspec import Struct

Row = tuple[object, ...]
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
        self._life, self._number = life, 0
        self._rows: dict[tuple[str, Hashable], tuple[int, bytes]] = {}  # the latest change last

    def put(self, table: str, key: Hashable, row: Row) -> None:
        """What the row is now; nothing, if that is what it was."""
        text = msgspec.json.encode(row)
        old = self._rows.get((table, key))
        if old is None or old[1] != text:
            self._rows.pop((table, key), None)
            self._number += 1
            self._rows[table, key] = self._number, text

    def clear(self, table: str) -> None:
        """Forget that table. Who reads is told so in words of their own."""
        for name in [name for name in self._rows if name[0] == table]:
            del self._rows[name]

    def since(self, cursor: str, budget: int = BUDGET) -> Page:
        after = self._after(cursor)
        tables, room, last, more = dict[str, list[bytes]](), budget, after, False
        for number, table, text in self._newer(after):
            room -= len(text) + 1
            if room < 0 and tables:
                more = True
                break
            tables.setdefault(table, []).append(text)
            last = number
        joined = {table: b",".join(rows) for table, rows in tables.items()}
        return Page(joined, f"{self._life}.{last if more else self._number}", more)

    def _after(self, cursor: str) -> int:
        life, _, number = cursor.partition(".")
        return int(number) if life == self._life and number.isascii() and number.isdigit() else 0

    def _newer(self, after: int) -> Iterator[tuple[int, str, bytes]]:
        latest = takewhile(lambda entry: entry[1][0] > after, reversed(self._rows.items()))
        return reversed([(number, table, text) for (table, _), (number, text) in latest])
