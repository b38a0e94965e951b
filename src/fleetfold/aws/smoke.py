"""A whole round in the account of a stack, with devices made up for it, and no trace of it afterwards.

    enroll smoke-… ─▶ processes of the agent, without keys of AWS ─▶ run for these devices only ─▶ tidied

All that it makes bears its name, so that an interrupted one can be tidied by the next.
"""

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.dynamo import DynamoRecords
from fleetfold.aws import enrol, workflow
from fleetfold.aws.deploy import Account
from fleetfold.aws.destroy import emptied
from fleetfold.aws.stack import Stack
from fleetfold.bundle import Bundle, save
from fleetfold.errors import Unavailable
from fleetfold.ledger import Ledger

_OURS = re.compile(r"(smoke-[0-9a-f]{6})(-[0-9])?")
"""Names of its runs, and of their devices: what a person calls a smoke detector is none."""
PATIENCE = 60.0
"""Seconds in which its devices have to be heard of."""
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_MEMBER = """
import os, sys, threading
def leave():
    sys.stdin.buffer.read()
    os._exit(1)
threading.Thread(target=leave, daemon=True).start()
from fleetfold.__main__ import main
main()
"""
"""`fleetfold`, for as long as whoever started it lives: then its standard input ends."""
Say = Callable[[str], None]


class Emulator(Struct, frozen=True):
    """Where an emulated broker is, and whom its clients trust, in place of Amazon's."""

    broker: str
    authority: str


def name() -> str:
    return f"smoke-{secrets.token_hex(3)}"


def where(name: str) -> str:
    """The condition that is true of its devices, and of nobody else's."""
    return f'name >= "{name}-0" and name <= "{name}-9"'


@contextmanager
def devices(
    stack: Stack, name: str, count: int, app: Path, folder: Path, say: Say, emulator: Emulator | None
) -> Iterator[None]:
    """Enroll and start them, and have them heard of; at the end stop them. `count`: at most 10."""
    account = enrol.account(stack)
    names = [f"{name}-{index}" for index in range(count)]
    started: list[subprocess.Popen[bytes]] = []
    plain = {key: value for key, value in os.environ.items() if key not in _KEYS}
    try:
        for index, device in enumerate(names):
            bundle = enrol.enroll(account.iot, account.records, account.place, device, time.time())
            save(_emulated(bundle, emulator), path := folder / f"{device}.bundle")
            command = [
                sys.executable, "-c", _MEMBER, "join", str(path), "--home", str(folder / device),
                "--app", str(app), "--index", str(index), "--count", str(count), "--threads", "1",
            ]  # fmt: skip
            with (folder / f"{device}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(command, env=plain, stdin=subprocess.PIPE, stdout=log, stderr=log)
                )
        say(f"{count} devices are enrolled, and begin")
        _await(account.records, names, started, folder)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def tidied(account: Account, stack: Stack, name: str = "") -> list[str]:
    """Remove the devices, the run and the objects of that smoke test, or of all that there were. → what was
    removed."""
    own = enrol.account(stack)
    records = DynamoRecords(account.clients["dynamodb"], stack.table)
    said: list[str] = []
    for run in _runs(records, name):
        _stopped(account, stack, run)
        emptied(account, stack.bucket, lambda key: True, f"{layout.run(run)}/")
        records.remove(_records(records, run))
        said.append(f"run {run}")
    # From the registry too: whoever died while enrolling has a record or a thing, or both.
    known = [key.removeprefix(layout.FLEET) for key, _ in records.scan(layout.FLEET)]
    kept = [each.device for each in enrol.credentials(records)]
    for device in sorted({each for each in [*known, *kept] if _is_of(each, name)}):
        enrol.remove(own.iot, own.records, own.place, device)
        records.remove([layout.device(device), f"{enrol.CREDENTIALS}{device}"])
        said.append(f"device {device}")
    return said


def _is_of(what: str, name: str) -> bool:
    found = _OURS.fullmatch(what)
    return found is not None and name in ("", found[1])


def _runs(records: DynamoRecords, name: str) -> list[str]:
    """Also those of which only the name was taken."""
    found = {key.removeprefix("runs/") for key, _ in records.scan("runs/")}
    found |= {key.removeprefix(workflow.WAITS) for key, _ in records.scan(workflow.WAITS)}
    return sorted(run for run in found if _is_of(run, name))


def _records(records: DynamoRecords, run: str) -> list[str]:
    """All keys of a run's, its own last: as long as that is there the rest is found."""
    rounds = [key for key, _ in records.scan(layout.rounds(run))]
    folders = [folder for round in rounds for folder in (f"{round}/", layout.arrivals(round))]
    folders += [f"{layout.run(run)}/", layout.releases(run)]
    below = [key for folder in folders for key, _ in records.scan(folder)]
    return list(dict.fromkeys([*below, *rounds, workflow.key(run), layout.run(run)]))


def _stopped(account: Account, stack: Stack, run: str) -> None:
    service = account.service("stepfunctions", "the workflow")
    found = service.ask("list_executions", stateMachineArn=stack.machine, statusFilter="RUNNING")
    for one in found["executions"]:
        if one["name"].startswith(run):
            service.ask("stop_execution", executionArn=one["executionArn"])


def _await(
    records: Any, names: Sequence[str], processes: Sequence["subprocess.Popen[bytes]"], folder: Path
) -> None:  # fmt: skip
    ledger, until = Ledger(records, alone=False), time.monotonic() + PATIENCE
    while True:
        there = [d.name for d in ledger.devices(names) if d.says and d.says.online]
        if len(there) == len(names):
            return
        dead = [n for n, process in zip(names, processes, strict=True) if process.poll() is not None]
        if dead or time.monotonic() > until:
            who = (dead or sorted(set(names) - set(there)))[0]
            written = (folder / f"{who}.log").read_text(errors="replace").strip().splitlines()
            why = f": {written[-1]}" if written else ""
            raise Unavailable(
                f"{who} was not heard of within {PATIENCE:.0f} s{why}", next="fleetfold aws status"
            )
        time.sleep(1)


def _emulated(bundle: Bundle, emulator: Emulator | None) -> Bundle:
    if emulator is None:
        return bundle
    return replace(bundle, brokers=(emulator.broker,), authority=emulator.authority)
