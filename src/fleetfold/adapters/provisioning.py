"""Becoming a device of AWS IoT Core by a claim: what its fleet provisioning is asked over MQTT.

create     signing request ─▶ certificate, and a token that shows whose it is      good for an hour
register   token, name ─▶ the thing, its policy attached, the certificate active

An answer is for whoever asked; where a broker brings those of others too, they are passed over.
"""

import queue
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from fleetfold.adapters.connection import Connection
from fleetfold.adapters.doors import context
from fleetfold.bundle import Claim
from fleetfold.errors import BadConfig, Unavailable, shown

_S = TypeVar("_S", bound=Struct)
CREATE = "$aws/certificates/create-from-csr/json"
CLAIMS = "claim:"
"""What client ids of those begin with who have no name yet; no device's name can."""
SECONDS = 30.0
"""In which an answer has to come."""
SESSION = 0
"""Seconds that the broker keeps anything for whoever is here once."""


class Made(Struct, frozen=True):
    """A certificate that allows nothing yet. `token`: with which it is registered."""

    certificate: str = msgspec.field(name="certificatePem")
    token: str = msgspec.field(name="certificateOwnershipToken")


class Registered(Struct, frozen=True):
    thing: str = msgspec.field(name="thingName")


class Refusal(Struct, frozen=True):
    code: str = msgspec.field(name="errorCode", default="")
    said: str = msgspec.field(name="errorMessage", default="")


class Refused(BadConfig):
    """IoT Core says no; `code` is its word for why."""

    def __init__(self, what: str, refusal: Refusal) -> None:
        super().__init__(f"{what} is refused: {shown(refusal.said or refusal.code)}")
        self.code = refusal.code


class Provisioning:
    """To be closed."""

    def __init__(self, claim: Claim, **more: Any) -> None:
        self._register = f"$aws/provisioning-templates/{claim.template}/provision/json"
        client = f"{CLAIMS}{claim.fleet}:{secrets.token_hex(8)}"
        self._connection = Connection(client, claim.brokers, context(claim), session=SESSION, **more)
        self._answers: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._connection.filters = tuple(
            f"{ask}/{how}" for ask in (CREATE, self._register) for how in ("accepted", "rejected")
        )
        self._connection.heard = self._heard
        self._connection.start()

    def close(self) -> None:
        self._connection.close()

    def create(self, csr: str, ours: Callable[[str], bool], seconds: float = SECONDS) -> Made:
        """`ours`: whether that certificate is of the request's key. Raises Refused, Unavailable."""
        said = {"certificateSigningRequest": csr}
        return self._asked("a certificate", CREATE, said, Made, lambda made: ours(made.certificate), seconds)

    def register(self, token: str, device: str, seconds: float = SECONDS) -> None:
        """Raises Refused, Unavailable."""
        said = {"certificateOwnershipToken": token, "parameters": {"Device": device}}
        what = f"to become {device}"
        self._asked(what, self._register, said, Registered, lambda found: found.thing == device, seconds)

    def _asked(
        self, what: str, ask: str, said: dict[str, Any], kind: type[_S], ours: Callable[[_S], bool],
        seconds: float,
    ) -> _S:  # fmt: skip
        self._connection.post(ask, msgspec.json.encode(said), False)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with suppress(queue.Empty, msgspec.MsgspecError):
                topic, payload = self._answers.get(timeout=left)
                if topic == f"{ask}/rejected":
                    raise Refused(what, msgspec.json.decode(payload, type=Refusal))
                if topic == f"{ask}/accepted" and ours(found := msgspec.json.decode(payload, type=kind)):
                    return found
        why = self._connection.why or "no answer"
        raise Unavailable(f"{self._connection.address} does not say whether {what} is granted: {why}")

    def _heard(self, message: Any, receipt: str) -> None:
        self._connection.acknowledge(receipt)
        self._answers.put((message.topic, bytes(message.payload)))
