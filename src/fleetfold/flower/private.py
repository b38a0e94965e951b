"""All that is used of Flower beyond its public objects, in one place: what it is, and which versions need it.

metadata._message_id, _run_id, _src_node_id   every version: the properties have no setters
Message(metadata=…)                           every version: the only way to a message that has come
supercore.task_identity.TaskIdentity          by 1.38: what Message(content, node, type) reads
ArrayRecord._data                             every version, where it is there: filled without checks
Run (of Grid.run)                             moved from common.typing to supercore.run by 1.32
codes of `Error`                              every version: numbers that are not public
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fleetfold.errors import BadConfig

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Read by Flower when it is imported: nothing of it asks a network for anything."""

UNKNOWN, RAISED, NO_REPLY, UNAVAILABLE = 0, 2, 4, 5
"""Codes of `Error`: what went wrong, the ClientApp raised, no reply in time, the node is not there."""


def quiet() -> None:
    """To be called before the first import of Flower in a process."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


quiet()


def installed() -> str:
    """Flower's version. Raises BadConfig where there is none."""
    try:
        return version("flwr")
    except PackageNotFoundError:
        raise BadConfig(
            "a Flower app needs Flower, which is not installed here", next="pip install 'fleetfold[flower]'"
        ) from None


def node_id(device: str) -> int:
    """The node id of a device, the same everywhere: 63 bits of its name, never 0."""
    return _number(f"node {device}")


def run_id(run: str) -> int:
    """The number that Flower wants for a run."""
    return _number(f"run {run}")


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1 or 1


SERVER = 1
"""The node id of the ServerApp, as in Flower's own grids."""


def identify(run: int, node: int, task: int = 1) -> None:
    """Say who this process is: a message that an app makes from now on is from there."""
    with suppress(ImportError):
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task, run, node


def named(message: Any, id: str, run: int) -> None:
    """Give an app's own message the id by which its reply is found."""
    about = message.metadata.__dict__
    about["_message_id"], about["_run_id"], about["_src_node_id"] = id, run, SERVER


def message(
    content: Any, error: Any, *, id: str, run: int, src: int, dst: int, type: str, group: str, ttl: float,
    created: float, reply_to: str,
) -> Any:  # fmt: skip
    """A Message that has come: with a content, or with an error."""
    from flwr.app import Message, Metadata

    metadata = Metadata(
        run_id=run, message_id=id, src_node_id=src, dst_node_id=dst, reply_to_message_id=reply_to,
        group_id=group, created_at=created, ttl=ttl, message_type=type,
    )  # fmt: skip
    return Message(metadata=metadata, content=content, error=error)


def fill(record: Any, entries: Mapping[str, Any]) -> None:
    """Put arrays into an ArrayRecord: past the checks of each, which take longer than the message itself."""
    inside = vars(record).get("_data")
    (inside if isinstance(inside, dict) else record).update(entries)


def empty_run(run: int) -> Any:
    """What `Grid.run` says of a run."""
    try:
        from flwr.supercore.run import Run
    except ImportError:
        from flwr.common.typing import Run
    return Run.create_empty(run)


def run_client_app(make: Callable[[Path], Any]) -> None:
    """`flwr-clientapp`, with its arguments, but that `make(folder of the app)` answers and not the ClientApp
    that lies there. Raises BadConfig for a Flower that loads it in another way."""
    command = import_module("flwr.supernode.cli").flwr_clientapp
    loading = import_module("flwr.supernode.runtime.run_clientapp").get_load_client_app_fn.__globals__
    if "load_app" not in loading:
        raise BadConfig(f"flwr {installed()} loads apps in a way that the bridge does not know")
    loading["load_app"] = lambda reference, error, folder, *more: make(Path(folder))
    command()
