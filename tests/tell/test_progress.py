"""How far a long operation is: told in a terminal, with the time that is left, and nowhere else."""

import os
import pty
import subprocess
import sys

import pytest

from fleetfold.adapters.counted import PIECE, Counted
from fleetfold.adapters.memory import MemoryObjects
from fleetfold.cli.progress import fetched, progress, uploading

PROGRAM = """
from fleetfold.cli.progress import progress
with progress("writing shares", unit="devices") as told:
    told(3, 4)
print("done")
"""


def test_in_a_pipe_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("writing", unit="files") as told, uploading("it", 10) as wrote:
        told(1, 2)
        wrote("key", 5)
    assert capfd.readouterr() == ("", "")


def test_in_a_terminal_there_is_a_bar_that_leaves_nothing_behind() -> None:
    terminal, screen = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=screen,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}, text=True,
    )  # fmt: skip
    os.close(screen)
    drawn = b""
    while True:
        try:
            drawn += os.read(terminal, 65_536)
        except OSError:
            break
    os.close(terminal)
    said, _ = process.communicate()
    assert said == "done\n", "what a pipe is given is as it was"
    told = drawn.decode()
    assert "writing shares" in told
    assert "3/4" in told
    assert told.rstrip().endswith(("\x1b[2K", "\x1b[?25h")), "the bar is wiped away"


def test_who_writes_an_object_is_heard_of_piece_by_piece_and_it_is_the_same_object() -> None:
    heard, objects = list[tuple[str, int]](), MemoryObjects()
    counted = Counted(objects, lambda key, done: heard.append((key, done)))
    data = os.urandom(2 * PIECE + 5)
    assert counted.put("a", [data[:7], data[7:]]) == len(data)
    assert fetched(counted, "a", "it") == data
    assert [done for _, done in heard] == [7, 7 + PIECE, len(data)]
    with pytest.raises(KeyError):
        fetched(counted, "b", "it")
    with pytest.raises(ZeroDivisionError):
        counted.put("c", (bytes(1 // n) for n in (1, 0)))
    assert objects.size("c") is None
