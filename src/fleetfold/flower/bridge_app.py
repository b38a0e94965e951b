"""What a SuperNode of the bridge starts for a message, in place of `flwr-clientapp`: the device answers it.

    SuperNode ─▶ flower-superexec ─▶ flwr-clientapp (this) ─ Forward ─▶ bridge ─▶ the device's ClientApp

Everything else of that command is Flower's own: how the message comes, the heartbeats, how the answer goes
back. So neither the app nor the SuperLink is changed; only what answers is ours.
"""

import hashlib
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fleetfold.errors import FleetfoldError, Unavailable
from fleetfold.flower import private
from fleetfold.flower.app import fingerprint
from fleetfold.flower.bridge_lines import DEVICE, FOLDER, SPOOL, Back, Forward, ask
from fleetfold.flower.records import content, parts
from fleetfold.fold.tensors import Tensors, header_in, layout_of, views, write_header
from fleetfold.messages import Envelope

private.quiet()
from flwr.app import Context, Error, Message, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

SPARE, SHARE = 10.0, 0.1
"""What is left of a message's time for the answer's way to the SuperLink: so many seconds, or that part."""


class Forwarding(ClientApp):  # type: ignore[misc]
    """Answers a message with the device's answer. `app`: the folder of the app that the SuperLink gave."""

    def __init__(self, folder: Path, device: str, app: Path) -> None:
        super().__init__()
        self._folder, self._device, self._app = folder, device, app

    def __call__(self, message: Message, context: Context) -> Message:
        try:
            file, digest, size, records = self._written(message)
            back = ask(self._folder, self._forward(message, context, file, digest, size, records))
            if back.message.error:
                return Message(Error(*back.message.error), reply_to=message)
            return Message(_content(back), reply_to=message)
        except FleetfoldError as error:
            code = private.UNAVAILABLE if isinstance(error, Unavailable) else private.RAISED
            return Message(Error(code, error.sentence), reply_to=message)

    def _forward(
        self, message: Message, context: Context, file: Path, digest: str, size: int, records: Any
    ) -> Forward:
        about = message.metadata
        return Forward(
            device=self._device, run=about.run_id, settings=dict(context.run_config),
            file=str(file), digest=digest, size=size, until=until(about.created_at, about.ttl),
            message=Envelope(
                id=about.message_id, type=about.message_type, src=about.src_node_id, dst=about.dst_node_id,
                group=about.group_id, ttl=about.ttl, created=about.created_at, app=fingerprint(self._app),
                records=records,
            ),
        )  # fmt: skip

    def _written(self, message: Message) -> tuple[Path, str, int, Any]:
        """The content's tensors in a file. → (it, its sha256, its bytes, the other records)"""
        tensors, records = parts(message.content)
        name = hashlib.sha256(message.metadata.message_id.encode()).hexdigest()[:32]
        path, digest, size = self._folder / SPOOL / f"{name}.safetensors", hashlib.sha256(), 0
        staged = path.with_suffix(f".{os.getpid()}")
        with staged.open("wb") as file:
            for part in _file(tensors):
                digest.update(part)
                size += file.write(part)
        staged.replace(path)
        return path, digest.hexdigest(), size, records


def until(created: float, ttl: float) -> float:
    """When the answer has to be here, so that it is at the SuperLink before the message is too old."""
    return created + ttl - min(SPARE, SHARE * ttl)


def _file(tensors: Tensors) -> Iterator[bytes | memoryview]:
    yield write_header(layout_of(tensors), b"{}")
    for array in tensors.values():
        plain = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        yield plain.reshape(-1).view(np.uint8).data


def _content(back: Back) -> RecordDict:
    """The answer's records; its arrays are read where they lie."""
    if not back.file:
        return content({}, back.message.records)
    with open(back.file, "rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if Path(back.file).parent.name == SPOOL:  # made for this process alone
        os.unlink(back.file)
    return content(views(mapped, header_in(mapped)), back.message.records)


def main() -> None:
    """`flwr-clientapp`, with the arguments that Flower gives it."""
    folder, device = Path(os.environ[FOLDER]), os.environ[DEVICE]
    sys.argv[0] = "flwr-clientapp"
    private.run_client_app(lambda app: Forwarding(folder, device, app))


if __name__ == "__main__":
    main()
