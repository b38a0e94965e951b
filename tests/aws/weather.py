"""Bad weather between a client of boto3's and AWS, put in on the wire: what an emulator never does.

weather = Weather(client)
weather.ahead["PutItem"] = [THROTTLED, LOST]    # the first is refused, the second done and its answer lost
weather.asked["PutItem"]                        # how often it was sent, whatever became of it
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ConnectionClosedError, ConnectTimeoutError
from botocore.httpsession import URLLib3Session

Fate = Callable[[AWSPreparedRequest], AWSResponse | None]
"""What becomes of a request: an answer, an error, or None: it is sent as it is."""


class _Raw:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: object, **__: object) -> list[bytes]:
        return [self._body]

    def read(self, *_: object, **__: object) -> bytes:
        return self._body


def answered(status: int, body: object, **headers: str) -> Fate:
    """AWS says that, and does nothing."""
    text = json.dumps(body).encode()
    said = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return lambda request: AWSResponse(request.url, status, said, _Raw(text))


def refused(code: str, status: int = 400, message: str = "no") -> Fate:
    """AWS refuses by that code."""
    return answered(status, {"__type": f"com.amazonaws#{code}", "message": message}, x_amzn_errortype=code)


def lost(request: AWSPreparedRequest) -> AWSResponse | None:
    """It is done, and the connection breaks before the answer."""
    session = URLLib3Session()
    session.send(request)
    session.close()
    raise ConnectionClosedError(endpoint_url=request.url)


def unreached(request: AWSPreparedRequest) -> AWSResponse | None:
    """It never arrives."""
    raise ConnectTimeoutError(endpoint_url=request.url)


SENT: Fate = lambda request: None  # noqa: E731
THROTTLED = refused("ProvisionedThroughputExceededException")
LOST: Fate = lost
UNREACHED: Fate = unreached


class Weather:
    """Over one client. `ahead`: operation → the fates of its next requests; the rest go through."""

    def __init__(self, client: Any) -> None:
        self.ahead: dict[str, list[Fate]] = {}
        self.asked = Counter[str]()
        self._lock = threading.Lock()
        client.meta.events.register("before-send", self._meets)

    def _meets(self, request: AWSPreparedRequest, event_name: str, **_: object) -> AWSResponse | None:
        operation = event_name.rpartition(".")[2]
        with self._lock:
            self.asked[operation] += 1
            fates = self.ahead.get(operation)
            fate = fates.pop(0) if fates else None
        return fate(request) if fate else None
