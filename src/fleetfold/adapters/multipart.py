"""Uploads to S3 by boto3: many processes put the parts of one object, completing the upload makes it.

    begin ─▶ id ─▶ put 1, put 2, … from anywhere, in any order, twice if need be ─▶ finish

A part that is put again replaces itself. What S3 asks for a while later (409, 503, no answer) is asked for
again here. An upload that nobody ends is stored and paid for: a rule of the bucket deletes it after a day.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError

from fleetfold.errors import Unavailable
from fleetfold.ports import pause

TRIES = 7
"""Of one request, before the store is Unavailable."""
FIRST, MOST = 0.1, 5.0
"""Seconds of pause after the first failure, and at most."""
AGAIN = frozenset({409, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""
CODES = frozenset({"SlowDown", "InternalError", "RequestTimeout", "OperationAborted", "InvalidPart"})
"""Their names where the status is another one. A part that was put again after it was listed is no part."""
CHECKSUMS = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")
"""Of a part, as S3 lists them: an upload that has them cannot be completed without them."""
_T = TypeVar("_T")


class Uploads:
    """Over boto3's `client` of S3, below `prefix` in `bucket`. `wait(n)`: waits after failure n (from 0)."""

    def __init__(
        self, client: Any, bucket: str, prefix: str = "", *, wait: Callable[[int], None] | None = None
    ) -> None:
        self._client, self._bucket, self._prefix = client, bucket, f"{prefix.strip('/')}/" if prefix else ""
        self._wait = wait or (lambda failed: time.sleep(pause(failed, FIRST, MOST, random.random())))

    def begin(self, key: str) -> str:
        place = self._place(key)
        return str(self._asked(key, lambda: self._client.create_multipart_upload(**place)["UploadId"]))

    def put(self, key: str, upload: str, number: int, data: bytes | bytearray) -> None:
        place = self._place(key, upload)
        self._asked(key, lambda: self._client.upload_part(**place, PartNumber=number, Body=data))

    def finish(self, key: str, upload: str, size: int) -> bool:
        place = self._place(key, upload)

        def finished() -> bool:
            parts, found = self._parts(place)
            if found != size:
                return False
            self._client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
            return True

        try:
            return self._asked(key, finished)
        except KeyError:
            if self._asked(key, lambda: self._size(key)) != size:
                raise
            return True

    def abandon(self, key: str, upload: str) -> None:
        place = self._place(key, upload)
        with suppress(KeyError):
            self._asked(key, lambda: self._client.abort_multipart_upload(**place))

    def _place(self, key: str, upload: str = "") -> dict[str, str]:
        place = {"Bucket": self._bucket, "Key": self._prefix + key}
        return place | {"UploadId": upload} if upload else place

    def _parts(self, place: dict[str, str]) -> tuple[list[dict[str, Any]], int]:
        """All that lie there, as completing wants them named, and their bytes together."""
        found: list[dict[str, Any]] = []
        size, after = 0, 0
        while True:
            page = self._client.list_parts(**place, PartNumberMarker=after)
            for part in page.get("Parts", ()):
                sums = {name: part[name] for name in CHECKSUMS if name in part}
                found.append({"PartNumber": part["PartNumber"], "ETag": part["ETag"], **sums})
                size += part["Size"]
            if not page.get("IsTruncated"):
                return found, size
            after = page["NextPartNumberMarker"]

    def _size(self, key: str) -> int | None:
        try:
            return int(self._client.head_object(**self._place(key))["ContentLength"])
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise

    def _asked(self, key: str, request: Callable[[], _T]) -> _T:
        """What S3 answers, asked again while that may help. Raises KeyError where there is no such upload."""
        failed = 0
        while True:
            try:
                return request()
            except (ClientError, BotoCoreError) as error:
                if isinstance(error, ClientError) and _code(error) == "NoSuchUpload":
                    raise KeyError(key) from None
                if not _passes(error) or failed == TRIES - 1:
                    raise self._refused(error, key) from error
            self._wait(failed)
            failed += 1

    def _refused(self, error: Exception, key: str) -> Unavailable:
        place = f"s3://{self._bucket}/{self._prefix}{key}"
        if isinstance(error, NoCredentialsError):
            return Unavailable(
                f"{place}: there are no credentials in the environment, and this machine has no role",
                next="export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…",
            )
        look = f"aws s3 ls s3://{self._bucket}"
        if not isinstance(error, ClientError):
            kind = type(error).__name__
            return Unavailable(f"{place}: the store does not answer ({kind}); nothing is lost", next=look)
        if _code(error) == "NoSuchBucket":
            return Unavailable(f"{place}: there is no such bucket", next=f"aws s3 mb s3://{self._bucket}")
        if _status(error) in (401, 403):
            return Unavailable(f"{place} is denied ({_code(error)}): it takes leave to put parts", next=look)
        return Unavailable(f"{place} cannot be written in parts: {_code(error)}", next=look)


def _passes(error: Exception) -> bool:
    if isinstance(error, ClientError):
        return _status(error) in AGAIN or _code(error) in CODES
    return isinstance(error, HTTPClientError)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
