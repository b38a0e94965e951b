"""A deployed stack as this machine knows it: written when it was deployed, read by whoever uses it from here.

HOME/aws/{stack}.json    what a run, an enrolment or a smoke test has to know to find everything there
"""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.errors import BadConfig, Unavailable


class Stack(Struct, frozen=True, kw_only=True):
    """Names and addresses of what one deployment made. `functions`: their names in the account by what they
    do (initiate, collect, status, tick, fold_shard, publish); `outputs`: all of the template's."""

    name: str
    region: str
    bucket: str
    table: str
    machine: str  # ARN of the state machine
    fleet: str
    iot_endpoint: str = ""  # host of the account's IoT data endpoint
    functions: dict[str, str] = {}
    outputs: dict[str, str] = {}


_STACK = msgspec.json.Decoder(Stack)


def folder(home: Path) -> Path:
    return home / "aws"


def path(home: Path, name: str) -> Path:
    return folder(home) / f"{layout.checked_name(name, 'stack')}.json"


def save(home: Path, stack: Stack) -> Path:
    """Whole or not at all; the same stack twice is written twice. → where it lies."""
    where = path(home, stack.name)
    where.parent.mkdir(parents=True, exist_ok=True)
    fresh = where.with_suffix(f".{os.getpid()}.new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(stack)))
    fresh.replace(where)
    return where


def known(home: Path) -> list[str]:
    """Names of the stacks that this machine knows."""
    return sorted(found.stem for found in folder(home).glob("*.json"))


def load(home: Path, name: str = "") -> Stack:
    """The stack of that name, or the only one there is. Raises BadConfig."""
    if not name:
        names = known(home)
        if len(names) != 1:
            why = f"which of {', '.join(names)}? --stack NAME" if names else "no stack is known here"
            raise BadConfig(why, next="" if names else "fleetfold aws deploy")
        name = names[0]
    try:
        return _STACK.decode(path(home, name).read_bytes())
    except FileNotFoundError:
        raise BadConfig(f"no stack {name} is known here", next="fleetfold aws deploy") from None
    except OSError as error:
        raise Unavailable(f"cannot read {path(home, name)}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise BadConfig(f"{path(home, name)}: {error}", next="fleetfold aws deploy") from None


def forget(home: Path, name: str) -> None:
    """The stack is no more."""
    path(home, name).unlink(missing_ok=True)
