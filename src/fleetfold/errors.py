"""Errors come in three kinds: the user's, the device's and the wire's.

An adapter translates its vendor's exceptions once, where it meets them; the command line turns a kind into
one sentence that names the thing, the place and the next command. Nobody else catches them.
"""

import shutil
import sys
import traceback
from pathlib import Path


class FleetfoldError(Exception):
    """What a person is told: one sentence, and the command to run next where there is one."""

    def __init__(self, sentence: str, *, next: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.next = next

    def __str__(self) -> str:
        return f"{self.sentence}\n  next: {self.next}" if self.next else self.sentence


class BadConfig(FleetfoldError):
    """The user's: an app, a setting, a flag or a file is not what it has to be."""


class BadUpdate(FleetfoldError):
    """The device's: what it sent is not an update for this round. It is quarantined, the round goes on.

    Its sentence may quote the device: it is kept in records and shown on screens, and fit for both.
    """

    def __init__(self, sentence: str, *, next: str = "") -> None:
        super().__init__(shown(sentence), next=next)


class Unavailable(FleetfoldError):
    """The wire's: a disk, a database or a peer does not answer. Nothing is lost; try again."""


def told(error: Exception) -> tuple[str, str, int]:
    """What a person at a terminal gets of an error: the sentence, what to do next, the exit code."""
    if isinstance(error, FleetfoldError):
        return error.sentence, typed(error.next), 2 if isinstance(error, BadConfig | BadUpdate) else 1
    kind = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"a fault of fleetfold itself, not yours: {kind}", "run it again with --debug and report it", 1


def typed(command: str) -> str:
    """A command to run next, as it can be typed here: `fleetfold …`, or where it lies if not on PATH."""
    called = Path(sys.argv[0])
    if not command.startswith("fleetfold ") or called.name != "fleetfold" or shutil.which("fleetfold"):
        return command
    place = called.absolute()
    if place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())
    return f"{place} {command.removeprefix('fleetfold ')}"


def shown(text: str, most: int = 500) -> str:
    """What a device said, in so many characters that can be printed: no terminal obeys it."""
    plain = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return "".join(plain)[:most]


def blame(error: BaseException, folder: str = "") -> str:
    """The error in one line, with the newest line of code below `folder` that it passed through."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if folder and frame.filename.startswith(folder)]
    where = "".join(f"{Path(f.filename).name} line {f.lineno}, " for f in (own or frames)[-1:])
    return where + f"{type(error).__name__}: {str(error) or 'no message'}".splitlines()[0]
