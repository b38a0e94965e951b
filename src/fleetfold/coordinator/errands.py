"""Commands for single devices, left in the records by whoever gives them and answered there.

    ask ─▶ hub/commands ─▶ whoever passes it on ⇄ device ─▶ hub/commands ─▶ ask

One record, changed by compare-and-set, which holds what waits and nothing else: it does not grow for ever.
"""

from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.errors import BadConfig, Unavailable
from fleetfold.messages import Answer, Command, encode
from fleetfold.ports import Records, Signer

COMMANDS = "hub/commands"
MOST = 1000
"""Commands that may wait at once."""
ROOM = 4096
"""Bytes of an answer that is kept."""
TRIES = 1000
"""Lost compare-and-sets in a row after which something is wrong with the store."""


class Errand(Struct, frozen=True):
    """A command that somebody waits for. `until`: seconds since the epoch, when nobody does any more."""

    command: Command
    until: float
    answer: Answer | None = None


_T = TypeVar("_T")
_ERRANDS = msgspec.json.Decoder(tuple[Errand, ...])


def order(records: Records, command: Command, now: float, until: float) -> None:
    """Have the hub pass the command on. Raises BadConfig where too many wait."""

    def ordered(errands: tuple[Errand, ...]) -> tuple[Errand, ...]:
        waiting = tuple(each for each in errands if each.until > now)
        if len(waiting) >= MOST:
            raise BadConfig(f"{MOST} commands are waiting for answers already", next="fleetfold hub status")
        return (*(errands if len(errands) < MOST else waiting), Errand(command, until))

    changed(records, COMMANDS, _ERRANDS, ordered)


def done(records: Records, id: str) -> None:
    """Nobody waits for that command any more."""
    changed(records, COMMANDS, _ERRANDS, lambda errands: tuple(e for e in errands if e.command.id != id))


def ordered(records: Records, now: float) -> list[Command]:
    """Commands that somebody waits for and that have no answer, those that were passed on among them."""
    errands = listed(records, COMMANDS, _ERRANDS)
    return [each.command for each in errands if each.answer is None and each.until > now]


def answered(records: Records, answers: Collection[Answer]) -> list[Answer]:
    """Have them found by whoever waits. The first one counts. → those that nobody waits for, from that
    device at least."""
    strays: list[Answer] = []

    def taken(errands: tuple[Errand, ...]) -> tuple[Errand, ...]:
        waiting = {(e.command.id, e.command.device): n for n, e in enumerate(errands)}
        found = list(errands)
        strays.clear()
        for answer in answers:
            place = waiting.get((answer.id, answer.device))
            if place is None or found[place].answer is not None:
                strays.append(answer)
            else:
                found[place] = replace(found[place], answer=answer)
        return tuple(found)

    if answers:
        changed(records, COMMANDS, _ERRANDS, taken)
    return strays


def expired(records: Records, before: float) -> list[Command]:
    """Commands for which nobody has waited since; they are forgotten."""
    gone: list[Command] = []

    def kept(errands: tuple[Errand, ...]) -> tuple[Errand, ...]:
        gone[:] = [each.command for each in errands if each.until < before]
        return tuple(each for each in errands if each.until >= before)

    changed(records, COMMANDS, _ERRANDS, kept)
    return gone


def answer(records: Records, id: str) -> Answer | None:
    found = (each.answer for each in listed(records, COMMANDS, _ERRANDS) if each.command.id == id)
    return next(found, None)


def files(command: Command) -> list[str]:
    """Keys of what lies there for this command alone."""
    return [key for key in (command.model, command.upload) if key.startswith(folder(command.id))]


def folder(id: str) -> str:
    """What keys begin with of what lies there for that command alone."""
    return f"commands/{id}."


def bounded(answer: Answer) -> Answer:
    """As it is kept, where all errands together have to be small."""
    if len(encode(answer)) <= ROOM:
        return answer
    why = f"it answered with more than {ROOM} bytes"
    return Answer(id=answer.id, device=answer.device, state="failed", reason=why)


def signed(command: Command, signer: Signer, lifetime: float) -> Command:
    """The command with addresses instead of keys."""
    model, upload = command.model, command.upload
    return replace(
        command,
        model=signer.to_fetch(model, command.device, lifetime) if model else "",
        upload=signer.to_deliver(upload, command.device, lifetime, command.size) if upload else "",
    )


# Records that are lists


def listed(records: Records, key: str, decoder: "msgspec.json.Decoder[tuple[_T, ...]]") -> tuple[_T, ...]:
    """What lies in a record that is a list."""
    found = records.get(key)
    return decoder.decode(found.value) if found else ()


def changed(
    records: Records, key: str, decoder: "msgspec.json.Decoder[tuple[_T, ...]]",
    change: Callable[[tuple[_T, ...]], tuple[_T, ...]],
) -> None:  # fmt: skip
    """Change such a record, whoever else does."""
    for _ in range(TRIES):
        found = records.get(key)
        old = decoder.decode(found.value) if found else ()
        new = change(old)
        if new == old or records.swap(key, msgspec.json.encode(new), found.version if found else 0):
            return
    raise Unavailable(f"lost {TRIES} compare-and-sets on {key}")
