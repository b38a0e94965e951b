"""Gives the stack a run to drive: opened in its table and bucket, then an execution of the state machine.

name taken (waits/{run}) ─▶ link in its folder here ─▶ model, run ─▶ execution
"""

import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from fleetfold.adapters.boto import Declined, Service, client
from fleetfold.adapters.counted import Counted, Wrote, unwatched
from fleetfold.adapters.poll_bus import Divided, PollBus
from fleetfold.agent.app import App
from fleetfold.aws import workflow
from fleetfold.aws.stack import Stack, load, path
from fleetfold.aws.workflow import Wait
from fleetfold.coordinator.messenger import Messenger
from fleetfold.coordinator.opening import open_messages, open_run
from fleetfold.errors import BadConfig
from fleetfold.ledger import Ledger
from fleetfold.messages import encode
from fleetfold.round.run import Run
from fleetfold.settings import Settings
from fleetfold.wiring import aws as wiring
from fleetfold.wiring import local
from fleetfold.wiring.local import CLOUD, Place


def check(home: Path, stack: str) -> Stack:
    """The stack of that name, or the only one. Raises BadConfig where there is none, or nobody in its
    fleet."""
    found = load(home, stack)
    if not _ledger(found).fleet():
        raise BadConfig(
            f"nobody belongs to the fleet of {found.name} yet", next="fleetfold enroll DEVICE --aws"
        )
    return found


def is_taken(stack: Stack, run: str) -> bool:
    """Whether somebody else has a run of that name there; if nobody has, nobody else will."""
    return not wiring.records(stack.table, stack.region).swap(workflow.key(run), encode(Wait()), 0)


def submit(
    stack: Stack, app: App, settings: Settings, model: bytes, place: Place,
    wrote: Wrote = unwatched,
) -> Run:  # fmt: skip
    """A new run of all the fleet that there is, whose name was free. `wrote` hears how far its first model
    is."""
    (place.folder / CLOUD).symlink_to(path(place.home.absolute(), stack.name))
    ledger, objects = local.ledger(place), Counted(local.objects(place), wrote)
    settings = replace(settings, devices=max(1, len(ledger.fleet())))
    run = open_run(place.run, app.place, settings, model, [], ledger, objects, time.time())
    start(stack, run)
    return run


def submit_messages(stack: Stack, app: App, settings: Settings, place: Place) -> Run:
    """A new run of an app that sends messages of its own, whose name was free; its process is elsewhere, and
    no state machine drives it."""
    (place.folder / CLOUD).symlink_to(path(place.home.absolute(), stack.name))
    return open_messages(place.run, app.place, settings, [], local.ledger(place), time.time())


def messenger(place: Place) -> Messenger:
    """Its exchanges, by the app's process."""
    stack, ledger = _stack(place), local.ledger(place)
    found = ledger.run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold flower run APP --aws")
    store = wiring.objects(stack.bucket, stack.region)
    spoken = wiring.bus(stack.fleet, store.signer, stack.iot_endpoint, stack.region)
    polled = PollBus(wiring.records(stack.table, stack.region), store.objects, store.signer, time.time)
    return wiring.messenger(place.run, found[0].settings, store, ledger, Divided(spoken, polled))


def again(place: Place) -> None:
    """Another execution, of a run that has been given more to do, or whose execution has failed."""
    found = local.ledger(place).run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold run APP --aws")
    start(_stack(place), found[0], f"-{time.time():.0f}")


def nudge(place: Place) -> None:
    """A turn of the run now: something was asked of it. The same twice is the same. Raises Unavailable."""
    stack = _stack(place)
    service = Service(client("lambda", region_name=stack.region), "AWS Lambda")
    said = msgspec.json.encode({"run": place.run})
    service.ask("invoke", FunctionName=stack.functions["tick"], InvocationType="Event", Payload=said)


def start(stack: Stack, run: Run, more: str = "") -> None:
    """Have the state machine drive it. The same twice is the same. Raises Unavailable."""
    input = {"run": run.name, "patience": workflow.patience(run.settings.deadline)}
    about: dict[str, Any] = {"stateMachineArn": stack.machine, "name": f"{run.name[:60]}{more}"}
    try:
        _machine(stack).ask(
            "start_execution", expected=["ExecutionAlreadyExists"], input=msgspec.json.encode(input).decode(),
            **about,
        )  # fmt: skip
    except Declined:
        return  # it was started before


def _stack(place: Place) -> Stack:
    return load(place.home, (place.folder / CLOUD).resolve().stem)


def _machine(stack: Stack) -> Service:
    return Service(client("stepfunctions", region_name=stack.region), "AWS Step Functions")


def _ledger(stack: Stack) -> Ledger:
    return Ledger(wiring.records(stack.table, stack.region), alone=False)
