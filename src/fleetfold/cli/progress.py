"""How far a long operation is: a bar with the time that is left, on standard error; nothing in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

Told = Callable[[int, int], None]
"""Hears what is done and of how much, as often as one likes; of 0: nobody knows."""


@contextmanager
def progress(what: str, *, unit: str = "") -> Iterator[Told]:
    """While it lasts. `unit`: "bytes", or what is counted. It leaves nothing behind."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    counted: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), counted,
        TextColumn(unit if unit != "bytes" else "", style="dim"), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=None)

        def told(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total or None)

        yield told
