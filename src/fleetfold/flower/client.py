"""The device's end of a Flower app: any ClientApp, behind what the agent asks of an app with messages.

    task + content ─▶ Message, Context ─▶ ClientApp (mods, legacy clients too) ─▶ reply ─▶ Answered
                      state ◀─ journal                                             └▶ state

Python's, numpy's and PyTorch's chance is seeded from the task: an answer made again is the same.
"""

import random
import sys
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from fleetfold.agent.app import App
from fleetfold.agent.trainer import Answered, Device, Model
from fleetfold.errors import BadConfig, BadUpdate
from fleetfold.flower import app as flower
from fleetfold.flower import private, records
from fleetfold.fold.tensors import Tensors, read, write
from fleetfold.messages import Envelope, Task

private.quiet()
from flwr.app import Context, Message, RecordDict  # noqa: E402


def load(app: App) -> "Client":
    """The app's ClientApp, ready to answer. Raises BadConfig that names the line."""
    found = flower.find(app.root)
    return Client(flower.client_app(found), flower.fingerprint(app.folder))


class Client:
    """Answers messages of the app of that fingerprint, for any device of this process."""

    def __init__(self, app: Any, fingerprint: str) -> None:
        self._app, self.fingerprint = app, fingerprint

    def answer(self, task: Task, content: Model, device: Device, state: bytes) -> Answered:
        """As of trainer.Answerer. Raises BadUpdate for a message of another version of the app, and what the
        app raises."""
        asked = task.message
        if asked is None:
            raise BadUpdate("a Flower app answers messages, and the task has none")
        if asked.app != self.fingerprint:
            mine, theirs = self.fingerprint[:12], asked.app[:12]
            raise BadUpdate(f"has another version of the app, {mine}: this message is for {theirs}")
        run, node = private.run_id(task.run), asked.dst
        context = Context(
            run_id=run, node_id=node, node_config=_node_config(device), state=_state(state),
            run_config=dict(task.settings),
        )  # fmt: skip
        message = _message(asked, run, records.content(content.tensors, asked.records))
        private.identify(run, node)
        seed(task.seed)
        reply = self._app(message, context)
        if not isinstance(reply, Message):
            raise BadConfig(f"the ClientApp returned a {type(reply).__name__} instead of a Message")
        return _answered(asked, reply, _kept(context.state, state), self.fingerprint)


def seed(number: int) -> None:
    """Begin all chance that an app may draw from anew."""
    random.seed(number)
    np.random.seed(number % (1 << 32))
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)


def _node_config(device: Device) -> dict[str, Any]:
    config: dict[str, Any] = {"partition-id": device.index, "num-partitions": device.count}
    return {**config, "data-path": str(device.data)} if device.data else config


def _message(asked: Envelope, run: int, content: RecordDict) -> Any:
    return private.message(
        content, None, id=asked.id, run=run, src=asked.src, dst=asked.dst, type=asked.type,
        group=asked.group, ttl=asked.ttl, created=asked.created, reply_to="",
    )  # fmt: skip


def _answered(asked: Envelope, reply: Any, state: bytes | None, fingerprint: str) -> Answered:
    about = reply.metadata
    envelope = Envelope(
        id=f"{asked.id}-reply", type=about.message_type, src=asked.dst, dst=asked.src, group=about.group_id,
        ttl=about.ttl, created=about.created_at, reply_to=asked.id, app=fingerprint,
    )  # fmt: skip
    if reply.has_error():
        error = (reply.error.code, str(reply.error.reason or ""))
        return Answered(tensors=Tensors(), message=replace(envelope, error=error), state=state)
    examples, metrics = records.numbers(reply.content)
    tensors, rest = records.parts(reply.content)
    message = replace(envelope, records=rest)
    return Answered(tensors=tensors, message=message, examples=examples, metrics=metrics, state=state)


# What a ClientApp keeps from one message to the next


def _state(kept: bytes) -> RecordDict:
    if not kept:
        return RecordDict()
    tensors, rest = read(kept)
    return records.content(tensors, msgspec.json.decode(rest))


def _kept(state: RecordDict, before: bytes) -> bytes | None:
    """The state as bytes, None if it is what it was."""
    if not state and not before:
        return None
    tensors, rest = records.parts(state)
    kept = write(tensors, msgspec.json.encode(rest))
    return None if kept == before else kept
