"""How far a long operation is: a bar with the time that is left, on standard error; nothing in a pipe.

with progress("writing shares", unit="files") as told:
    told(3, 20)
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fleetfold.ports import Objects, read_on

Told = Callable[[int, int], None]
"""Hears what is done and of how much, as often as one likes; of 0: nobody knows."""


def bar(unit: str, console: Console | None = None) -> Progress:
    """What is drawn: what it is, a bar, how many of how many, and the time that is left. `unit` "": nobody
    counts."""
    counted: list[ProgressColumn] = [TimeElapsedColumn()]
    if unit:
        of = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        told = TextColumn(unit if unit != "bytes" else "", style="dim")
        counted = [of, told, TimeRemainingColumn(compact=True)]
    what = TextColumn("{task.description}", markup=False)
    return Progress(SpinnerColumn(), what, BarColumn(bar_width=30), *counted, console=console, transient=True)


@contextmanager
def progress(what: str, *, unit: str = "") -> Iterator[Told]:
    """While it lasts. `unit`: "bytes", or what is counted. It leaves nothing behind."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with bar(unit, Console(stderr=True, highlight=False)) as shown:
        task = shown.add_task(what, total=None)

        def told(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total or None)

        yield told


@contextmanager
def uploading(what: str, size: int) -> Iterator[Callable[[str, int], None]]:
    """The same, of objects that are written (adapters/counted.py); `size`: bytes of all."""
    with progress(f"uploading {what}", unit="bytes") as told:
        yield lambda key, done: told(done, size)


def fetched(objects: Objects, key: str, what: str) -> bytes:
    """A whole object, which may be far. Raises KeyError if there is none."""
    size = objects.size(key)
    if size is None:
        raise KeyError(key)
    parts = list[bytes]()
    with progress(f"fetching {what}", unit="bytes") as told, closing(objects.open(key)) as reader:
        for begin in range(0, size, PIECE):
            parts.append(read_on(reader, begin, min(PIECE, size - begin)))
            told(begin + len(parts[-1]), size)
    return b"".join(parts)


PIECE = 16 << 20
"""Bytes that are fetched between two looks."""
