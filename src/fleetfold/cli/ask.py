"""fleetfold ask: one device of a hub's fleet, outside of any round."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from fleetfold.cli.board import number
from fleetfold.cli.hub import installed
from fleetfold.cli.run import installed_aws
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.settings import seconds, size
from fleetfold.wiring.local import home

if TYPE_CHECKING:
    from fleetfold.coordinator.asking import Subject
    from fleetfold.messages import Answer


def ask(
    device: str,
    what: str,
    /,
    *,
    run: Annotated[str, Parameter(help="whose model to evaluate or to set; whose task to cancel")] = "",
    version: Annotated[int | None, Parameter(help="of that run's model; default: the newest")] = None,
    model: Annotated[Path | None, Parameter(help="this file (.safetensors) instead of a run's model")] = None,
    out: Annotated[Path | None, Parameter(help="get: where to write the tensors")] = None,
    wait: Annotated[str, Parameter(help="how long to wait for the answer")] = "60s",
    aws: Annotated[
        bool, Parameter(help="a device of a stack on AWS, instead of the hub here", negative="")
    ] = False,
    stack: Annotated[str, Parameter(help="with --aws: which stack, if this machine knows several")] = "",
    json: Annotated[bool, Parameter(help="print the answer as JSON", negative="")] = False,
) -> None:
    """Have DEVICE do one thing: `evaluate` a model on its data, `get` its current tensors, `set` a model
    there without training, `cancel` the task that it has in hand. The hub has to run; on AWS nothing has to.

    **Examples**

    - `fleetfold ask camera-7 evaluate --run digits-1`
    - `fleetfold ask camera-7 get --out camera-7.safetensors`
    - `fleetfold ask camera-7 set --model better.safetensors`
    - `fleetfold ask camera-7 cancel`
    - `fleetfold ask camera-7 evaluate --run digits-1 --aws`
    """
    from fleetfold.coordinator.asking import Subject

    if what == "get" and out is None:
        out = Path(f"{device}.safetensors")
    try:
        patience = seconds(wait)
    except ValueError:
        raise BadConfig(f"--wait {wait!r} is not a time such as 30s or 5m") from None
    asked = _asked_on_aws if aws else _asked_on_hub
    answer, got = asked(device, what, Subject(run, version, model), patience, stack)
    if json:
        print(msgspec.json.encode(answer).decode())
    if answer.state != "done":
        raise Unavailable(f"{device} {answer.state} to {what}: {answer.reason}", next="fleetfold devices")
    if what == "get" and out is not None:
        try:
            out.write_bytes(got)
        except OSError as error:
            raise BadConfig(f"{out}: {error.strerror}") from None
    if not json:
        print(
            _told(device, what, answer.examples, answer.metrics, out if what == "get" else None, answer.size)
        )


def _asked_on_hub(
    device: str, what: str, subject: "Subject", patience: float, stack: str
) -> "tuple[Answer, bytes]":
    installed()
    from fleetfold.hub import asking

    return asking.ask(home(), device, what, subject, patience)


def _asked_on_aws(
    device: str, what: str, subject: "Subject", patience: float, stack: str
) -> "tuple[Answer, bytes]":
    installed_aws()
    from fleetfold.aws import asking

    return asking.ask(home(), stack, device, what, subject, patience)


def _told(
    device: str,
    what: str,
    examples: int | None,
    metrics: "dict[str, float | None]",
    out: Path | None,
    bytes: int,
) -> str:
    if what == "evaluate":
        found = ", ".join(f"{name} {number(value)}" for name, value in metrics.items())
        return f"{device}: {found} on {examples} examples of its own"
    if out is not None:
        return f"{out}: what {device} has now, {size(bytes)}"
    return f"{device}: done"
