"""Asking AWS for something from here: what it refuses and why, in a sentence and with what to do next."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from fleetfold.errors import BadConfig, Unavailable

AGAIN = "the same command once more"
_DENIED = (
    "UnauthorizedException", "ForbiddenException", "AccessDeniedException", "UnrecognizedClientException",
    "ExpiredTokenException", "InvalidSignatureException",
)  # fmt: skip
_USERS = (
    "InvalidRequestException", "ResourceNotFoundException", "ResourceAlreadyExistsException",
    "ValidationException", "ConflictException",
)  # fmt: skip


class Gone(Exception):
    """What was meant is not there."""


@contextmanager
def asked(what: str, gone: str | None = None) -> Iterator[None]:
    """`what`: "make a thing". `gone`: what it is if the other side does not have what is meant.
    "": well; "none": Gone; else a reason; None: the user's. Raises BadConfig, or Unavailable."""
    try:
        yield
    except ClientError as error:
        code, said = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        if code == "ResourceNotFoundException" and gone is not None:
            if gone == "none":
                raise Gone from None
            if gone:
                raise Unavailable(f"cannot {what}: {gone}", next=AGAIN) from None
            return
        if code in _DENIED:
            sentence = f"cannot {what}, which these credentials are not good for: {said or code}"
            raise BadConfig(sentence, next="aws sts get-caller-identity") from None
        if code in _USERS:
            raise BadConfig(f"cannot {what}: {said or code}") from None
        raise Unavailable(f"cannot {what}: {said or code}", next=AGAIN) from None
    except BotoCoreError as error:
        raise Unavailable(f"cannot {what}: {error}", next=AGAIN) from None


def pages(client: Any, operation: str, member: str, **about: str) -> list[Any]:
    """All that an operation lists, page after page."""
    found: list[Any] = []
    more: dict[str, str] = {}
    while True:
        with asked(operation.replace("_", " ")):
            page = getattr(client, operation)(**about, **more)
        found += page.get(member, [])
        if not page.get("nextToken"):
            return found
        more = {"nextToken": page["nextToken"]}
