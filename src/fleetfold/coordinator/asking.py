"""One command for one device, outside of any round: left among the errands, passed on, answered there.

evaluate  a model of a run, or a file ─▶ its metrics on the device's data
get       ─▶ a file: the device's current tensors          set  a model or a file ─▶ the device's own
cancel    the task that it has in hand
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from msgspec import Struct

from fleetfold import layout
from fleetfold.coordinator import errands
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.messages import Answer, Command
from fleetfold.ports import Objects, Records, fetch
from fleetfold.round.run import Run

WHAT: tuple[str, ...] = get_args(Command.__annotations__["what"])
MOST = 1 << 30
"""Bytes that a device may send as its current tensors, where no run says how large its model is."""
LOOK = 0.05
"""Seconds between two looks for the answer, at first; each pause is half as long again, up to a second."""


class Subject(Struct, frozen=True):
    """The model that a command is about: of a run (newest, or that version), or a file; or neither."""

    run: str = ""
    version: int | None = None
    file: Path | None = None


class Desk(Struct, frozen=True):
    """Where commands are left. `run`: finds one; `passed_on`: has the device told, where nobody else does so;
    `silence`: why no answer comes, and what to do next."""

    records: Records
    objects: Objects
    run: Callable[[str], Run | None]
    silence: Callable[[], tuple[str, str]]
    passed_on: Callable[[Command], None] = lambda command: None


def ask(desk: Desk, device: str, what: str, subject: Subject, seconds: float) -> tuple[Answer, bytes]:
    """→ the answer of a device of the fleet, and what `get` got. Raises BadConfig, or Unavailable when none
    comes."""
    if what not in WHAT:
        raise BadConfig(f"{what[:40]!r} is not one of {', '.join(WHAT)}", next="fleetfold ask --help")
    id = secrets.token_hex(8)
    command = _command(desk, id, device, what, subject)
    now, answered = time.time(), False
    try:
        errands.order(desk.records, command, now, now + seconds)
        desk.passed_on(command)
        answer = _awaited(desk, command, seconds)
        answered, got = True, b""
        if what == "get" and answer.state == "done":
            got = _got(desk.objects, command)
            if hashlib.sha256(got).hexdigest() != answer.digest:
                raise Unavailable(f"what {device} sent is not what it said", next="ask again")
        return answer, got
    finally:
        if answered:  # else something may still come
            errands.done(desk.records, id)
        for key in errands.files(command):
            desk.objects.delete(key)


def _command(desk: Desk, id: str, device: str, what: str, subject: Subject) -> Command:
    model, digest, size, most = "", "", 0, MOST
    folder = errands.folder(id)
    if subject.file is not None:
        try:
            data = subject.file.read_bytes()
        except OSError as error:
            raise BadConfig(f"{subject.file}: {error.strerror}") from None
        model, digest, size = f"{folder}model.safetensors", hashlib.sha256(data).hexdigest(), len(data)
        desk.objects.put(model, [data])
    elif subject.run:
        model, digest, size = _of_run(desk, subject)
        most = 2 * size + (1 << 20)
    if what == "set" and not model:
        raise BadConfig("set what? a run's model, or a file", next=f"fleetfold ask {device} set --run RUN")
    getting = what == "get"
    return Command(
        id=id, device=device, what=what, run=subject.run, model="" if getting else model,  # type: ignore[arg-type]
        digest=digest, size=most if getting else size,
        upload=f"{folder}{device}.safetensors" if getting else "",
    )  # fmt: skip


def _of_run(desk: Desk, subject: Subject) -> tuple[str, str, int]:
    run = desk.run(layout.checked_name(subject.run, "run"))
    if run is None:
        raise BadConfig(f"there is no run {subject.run!r} of this fleet's", next="fleetfold runs")
    version = run.version if subject.version is None else subject.version
    key = layout.model(subject.run, version)
    try:
        data = fetch(desk.objects, key)
    except KeyError:
        raise BadConfig(
            f"run {subject.run} has no model {version}", next=f"fleetfold show {subject.run}"
        ) from None
    return key, hashlib.sha256(data).hexdigest(), len(data)


def _got(objects: Objects, command: Command) -> bytes:
    """What the device put there: no more than it may, whatever a store lets it."""
    size = objects.size(command.upload)
    if size is None or size > command.size:
        what = "has sent nothing" if size is None else f"sent {size} bytes, at most {command.size} were asked"
        raise Unavailable(f"{command.device} {what}", next="ask again")
    return fetch(objects, command.upload)


def _awaited(desk: Desk, command: Command, seconds: float) -> Answer:
    give_up, look = time.monotonic() + seconds, LOOK
    while time.monotonic() < give_up:
        if (answer := errands.answer(desk.records, command.id)) is not None:
            return answer
        time.sleep(look)
        look = min(1.0, 1.5 * look)
    why, step = desk.silence()
    raise Unavailable(f"{command.device} has not answered in {seconds:g} s: {why}", next=step)
