"""One request to AWS by boto3: asked again while it is refused for a passing reason, translated once.

    ask ─▶ answer
        ─▶ throttled, 5xx, no connection ─▶ pause with full jitter ─▶ ask again ─▶ … ─▶ Unavailable
        ─▶ what the caller expects ─▶ Declined        anything else ─▶ Unavailable, with what to do next

botocore itself asks once: else a write of which nobody knows how often it was sent would look like one.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)

from fleetfold.errors import BadConfig, FleetfoldError, Unavailable, shown
from fleetfold.ports import pause

_T = TypeVar("_T")
_R = TypeVar("_R")
TRIES = 12
"""Requests after which the other side does not answer: some 15 s of pauses."""
FIRST, MOST = 0.05, 5.0
"""Seconds of pause after the first try, and at most."""
AT_ONCE = 16
"""Requests of one adapter that are on their way at once."""
CONNECT, READ = 3.0, 20.0
"""Seconds in which a connection has to be made, and an answer has to begin."""
PASSING = frozenset(
    {
        "InternalFailure",
        "InternalFailureException",
        "InternalServerError",
        "InternalServerException",
        "OperationAborted",
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
"""What AWS says when the same request may be taken a moment later; so may any other 429 or 5xx."""
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_UNKNOWN = frozenset(
    {
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_ABSENT = frozenset({"NoSuchBucket", "ResourceNotFoundException", "404"})
_WORN = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError)
_STATUS, _CREDENTIALS = "fleetfold aws status", "aws configure"


def client(service: str, **about: object) -> Any:
    """boto3's client of a service, by the environment and ~/.aws. `about`: more of boto3's arguments. Raises
    BadConfig where the environment does not say enough."""
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT,
        read_timeout=READ,
        max_pool_connections=2 * AT_ONCE,
        signature_version="s3v4" if service == "s3" else None,
    )
    try:
        return boto3.client(service, config=config, **about)
    except NoRegionError:
        raise BadConfig(
            "nothing says which region of AWS is meant", next="export AWS_DEFAULT_REGION=eu-central-1"
        ) from None
    except (BotoCoreError, ValueError) as error:
        raise BadConfig(f"AWS's {service} cannot be asked: {first_line(error)}", next=_CREDENTIALS) from None


class Declined(Exception):
    """What the caller expected that could be said instead of an answer: `code`, `answer`."""

    def __init__(self, code: str, answer: dict[str, Any]) -> None:
        super().__init__(code)
        self.code, self.answer = code, answer


class Service:
    """One client's operations on one thing, `place`, as people know it ("table fleet-1"). From any thread.
    `sleep`, `chance`: a clock's and in (0, 1), for the pauses."""

    def __init__(
        self, client: Any, place: str, *, sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random, tries: int = TRIES,
    ) -> None:  # fmt: skip
        self._client, self._place, self._sleep, self._chance = client, place, sleep, chance
        self._tries = tries

    def ask(self, operation: str, *, expected: Sequence[str] = (), **arguments: Any) -> dict[str, Any]:
        """boto3's method `operation`. Raises Declined with one of the `expected` codes, Unavailable."""
        for attempt in range(self._tries):
            try:
                answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
            except (BotoCoreError, ClientError) as error:
                if (code := code_of(error)) in expected:
                    raise Declined(code, error.response) from None
                if not is_passing(error):
                    raise refused(error, self._place) from error
                if attempt == self._tries - 1:
                    raise Unavailable(
                        f"{self._place} does not answer ({code or first_line(error)}); nothing is lost",
                        next=_STATUS,
                    ) from error
                self.rest(attempt)
            else:
                return answer
        raise AssertionError  # tries is at least 1

    def rest(self, attempt: int) -> None:
        """Wait after try number `attempt` (from 0)."""
        self._sleep(pause(attempt, FIRST, MOST, self._chance()))


def together(work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """`work` on each, some at once, in their order. After an error no more are begun, and
    it is passed on when those at work have ended."""
    waiting = list(items)
    if len(waiting) < 2:
        return list(map(work, waiting))
    with ThreadPoolExecutor(min(AT_ONCE, len(waiting))) as pool:
        return list(pool.map(work, waiting))


def code_of(error: Exception) -> str:
    """What AWS calls it; "" if it was not AWS that spoke."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def is_passing(error: Exception) -> bool:
    """Whether the same request may be taken a moment later. What broke off may have been done."""
    if not isinstance(error, ClientError):
        return isinstance(error, _WORN)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code_of(error) in PASSING or status == 429 or status >= 500


def refused(error: Exception, place: str) -> FleetfoldError:
    """What is to be said of an error of boto3's, at `place`."""
    code = code_of(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return Unavailable(f"{place}: there are no AWS credentials here", next=_CREDENTIALS)
    if code in _EXPIRED or isinstance(error, SSOError | TokenRetrievalError):
        return Unavailable(f"{place}: the AWS credentials have expired", next="aws sso login")
    if code in _UNKNOWN or isinstance(error, CredentialRetrievalError):
        why = code or first_line(error)
        return Unavailable(
            f"{place}: these AWS credentials are not known ({why})", next="aws sts get-caller-identity"
        )
    if isinstance(error, ClientError) and (
        code.startswith(("AccessDenied", "Unauthorized", "Forbidden", "NotAuthorized")) or code == "403"
    ):
        return Unavailable(
            f"{place} is denied: it takes leave for {_action(error)}", next="aws sts get-caller-identity"
        )
    if code in _ABSENT:
        return Unavailable(f"{place} is not there", next=_STATUS)
    return Unavailable(f"{place} cannot be read or written: {first_line(error)}", next=_STATUS)


def first_line(error: Exception) -> str:
    """Of what was said, without the query of any address: there may be a signature in it."""
    return shown(re.sub(r"\?\S+", "", str(error).partition("\n")[0]), 300)


def _action(error: ClientError) -> str:
    """The action that is not allowed, as a policy names it where AWS says so."""
    found = re.search(r"perform: ([\w:-]+)", str(error))
    return found[1] if found else error.operation_name
