"""One command for one device, from another process on the hub's machine: left at the desk, answered there.

evaluate  a model of a run, or a file ─▶ its metrics on the device's data
get       ─▶ a file: the device's current tensors          set  a model or a file ─▶ the device's own
cancel    the task that it has in hand
"""

import hashlib
import secrets
import time
from pathlib import Path
from typing import get_args

from msgspec import Struct

from fleetfold import layout
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.hub import desk
from fleetfold.hub.authority import site
from fleetfold.hub.enrol import credential
from fleetfold.messages import Answer, Command
from fleetfold.ports import Objects, Records, fetch
from fleetfold.wiring import hub as wiring
from fleetfold.wiring.local import Place

WHAT: tuple[str, ...] = get_args(Command.__annotations__["what"])
MOST = 1 << 30
"""Bytes that a device may send as its current tensors, where no run says how large its model is."""
LOOK = 0.05
"""Seconds between two looks for the answer."""


class Subject(Struct, frozen=True):
    """The model that a command is about: of a run (newest, or that version), or a file; or neither."""

    run: str = ""
    version: int | None = None
    file: Path | None = None


def ask(home: Path, device: str, what: str, subject: Subject, seconds: float) -> tuple[Answer, bytes]:
    """→ the device's answer, and what `get` got. Raises BadConfig, or Unavailable when none comes."""
    place = site(wiring.folder(home))
    records, (objects, _) = wiring.records(home), wiring.objects(home, place.objects)
    if what not in WHAT:
        raise BadConfig(f"{what[:40]!r} is not one of {', '.join(WHAT)}", next="fleetfold ask --help")
    known = credential(records, layout.checked_name(device, "device"))
    if known is None or not known.counts:
        raise BadConfig(f"{device} does not belong to this fleet", next="fleetfold devices")
    id = secrets.token_hex(8)
    command = _command(home, objects, desk.folder(id), id, device, what, subject)
    now, answered = time.time(), False
    try:
        desk.order(records, command, now, now + seconds)
        answer = _awaited(records, command, seconds)
        answered, got = True, b""
        if what == "get" and answer.state == "done":
            got = _got(objects, command)
            if hashlib.sha256(got).hexdigest() != answer.digest:
                raise Unavailable(f"what {device} sent is not what it said", next="ask again")
        return answer, got
    finally:
        if answered:  # else something may still come, and the hub tidies up
            desk.done(records, id)
        for key in desk.files(command):
            objects.delete(key)


def _command(
    home: Path, objects: Objects, folder: str, id: str, device: str, what: str, subject: Subject
) -> Command:
    model, digest, size, most = "", "", 0, MOST
    if subject.file is not None:
        try:
            data = subject.file.read_bytes()
        except OSError as error:
            raise BadConfig(f"{subject.file}: {error.strerror}") from None
        model, digest, size = f"{folder}model.safetensors", hashlib.sha256(data).hexdigest(), len(data)
        objects.put(model, [data])
    elif subject.run:
        model, digest, size = _of_run(home, objects, subject)
        most = 2 * size + (1 << 20)
    if what == "set" and not model:
        raise BadConfig("set what? a run's model, or a file", next=f"fleetfold ask {device} set --run RUN")
    getting = what == "get"
    return Command(
        id=id, device=device, what=what, run=subject.run, model="" if getting else model,  # type: ignore[arg-type]
        digest=digest, size=most if getting else size,
        upload=f"{folder}{device}.safetensors" if getting else "",
    )  # fmt: skip


def _of_run(home: Path, objects: Objects, subject: Subject) -> tuple[str, str, int]:
    place = Place(home, layout.checked_name(subject.run, "run"))
    found = wiring.ledger(place).run(subject.run) if wiring.is_run(place) else None
    if found is None:
        raise BadConfig(f"there is no run {subject.run!r} of the hub's", next="fleetfold runs")
    version = found[0].version if subject.version is None else subject.version
    key = layout.model(subject.run, version)
    try:
        data = fetch(objects, key)
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


def _awaited(records: Records, command: Command, seconds: float) -> Answer:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if (answer := desk.answer(records, command.id)) is not None:
            return answer
        time.sleep(LOOK)
    status = desk.status(records)
    asleep = status is None or time.time() - status.told_at > 3 * desk.TELL
    step = "fleetfold hub" if asleep else "fleetfold devices"
    why = "no hub is running here" if asleep else "it may be off, or at work"
    raise Unavailable(f"{command.device} has not answered in {seconds:g} s: {why}", next=step)
