"""What is put on a bus for a device, whichever bus: addresses instead of keys, and no more than a message
holds."""

from msgspec import Struct
from msgspec.structs import replace

from fleetfold.errors import BadConfig
from fleetfold.messages import LIMIT, Task, encode
from fleetfold.ports import Signer

LIFETIME = 3600.0
"""Seconds that a signed address is good for; a device that needs longer asks for a fresh one."""
COMMANDED = 60.0
"""Seconds in which a device that is off may come back and still find a command."""
GRANTED = 30.0
"""Seconds for which the answer to an `Ask` waits."""


def signed(task: Task, signer: Signer) -> Task:
    """The task with addresses instead of keys."""

    def fetch(key: str) -> str:
        return signer.to_fetch(key, task.device, LIFETIME) if key else ""

    update = signer.to_deliver(task.update, task.device, LIFETIME, task.most)
    return replace(task, model=fetch(task.model), difference=fetch(task.difference), update=update)


def packed(device: str, word: str, message: Struct | None) -> bytes:
    """What is sent; None: the empty message, which takes a retained one back. Raises BadConfig if it is too
    large."""
    payload = encode(message) if message else b""
    if len(payload) > LIMIT:
        raise BadConfig(
            f"the {word} for {device} has {len(payload)} bytes, a message at most {LIMIT}",
            next="make the app's settings smaller",
        )
    return payload
