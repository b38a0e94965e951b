"""What differs from one store's vendor to the next: how it is named, where it is, and what its errors mean.

    s3://BUCKET/PREFIX      AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    gs://BUCKET/PREFIX      GOOGLE_APPLICATION_CREDENTIALS
    az://CONTAINER/PREFIX   AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY

obstore reads these and others of theirs, but nothing of ~/.aws; without keys it asks for the machine's role.
"""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from msgspec import Struct
from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from fleetfold.errors import BadConfig, Unavailable


class Vendor(Struct, frozen=True):
    """Where an endpoint may be named, and a person's commands to look at a bucket and to make one."""

    endpoints: tuple[str, ...]
    look: str
    make: str


VENDORS: Mapping[str, Vendor] = {
    "s3": Vendor(
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "aws s3 ls s3://{bucket}",
        "aws s3 mb s3://{bucket}",
    ),
    "gs": Vendor(
        ("GOOGLE_BASE_URL",),
        "gcloud storage ls gs://{bucket}",
        "gcloud storage buckets create gs://{bucket}",
    ),
    "az": Vendor(
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        "az storage blob list --container-name {bucket}",
        "az storage container create --name {bucket}",
    ),
}
_FORMS = "it is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|specified bucket does not exist")
_DENIED = re.compile("403 Forbidden|401 Unauthorized")
_ROLE = re.compile(r"/latest/api/token|169\.254\.169\.254|metadata\.google\.internal")


def checked_url(url: str) -> str:
    """The URL, if it names a place in one of the stores. Raises BadConfig, which quotes no password."""
    if "@" in url:
        raise BadConfig(f"a store's URL with an @ in it: credentials belong into the environment; {_FORMS}")
    try:
        place = urlsplit(url)
    except ValueError as error:
        raise BadConfig(f"{url!r} is no store ({error}); {_FORMS}") from None
    if place.scheme not in VENDORS or not place.netloc or place.query or place.fragment:
        raise BadConfig(f"{url!r} is no store; {_FORMS}")
    return url.rstrip("/")


def is_plain(url: str) -> bool:
    """Whether its endpoint is one without TLS. Raises BadConfig if that is not on this machine."""
    found = {name: os.environ.get(name, "") for name in VENDORS[urlsplit(url).scheme].endpoints}
    plain = {
        name: urlsplit(at).hostname or "" for name, at in found.items() if at.lower().startswith("http:")
    }
    for name, host in plain.items():
        if not _is_here(host):
            raise BadConfig(
                f"{name} is http://{host}: without TLS only a store on this machine may be used",
                next=f"export {name}=https://{host}",
            )
    return bool(plain)


def is_by_role(url: str) -> bool:
    """Whether its credentials pass: S3's, asked of the machine's role or lent for a session."""
    return url.startswith("s3:") and (
        not os.environ.get("AWS_ACCESS_KEY_ID") or bool(os.environ.get("AWS_SESSION_TOKEN"))
    )


def is_bucketless(error: Exception) -> bool:
    """Whether it is the bucket that was not found. It cannot be told where the answer has no body (HEAD)."""
    return _NO_BUCKET.search(str(error)) is not None


def refused(error: Exception, url: str, key: str = "") -> Unavailable:
    """What is to be said of a store's error, at `key` of the store at `url`."""
    place, parts = f"{url}/{key}".rstrip("/"), urlsplit(url)
    vendor, text = VENDORS.get(parts.scheme), str(error)
    look, make = (c.format(bucket=parts.netloc) for c in ((vendor.look, vendor.make) if vendor else ("", "")))
    if is_bucketless(error) or isinstance(error, FileNotFoundError):
        return Unavailable(f"{place}: there is no such bucket", next=make)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _DENIED.search(text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        said = f" ({code[1]})" if code else ""
        return Unavailable(f"{place} is denied{said}: it takes leave to list, get, put and delete", next=look)
    if _ROLE.search(text):
        return Unavailable(
            f"{place}: there are no credentials in the environment, and this machine has no role",
            next="export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…" if parts.scheme == "s3" else "",
        )
    if "error sending request" in text:
        return Unavailable(f"{place}: the store does not answer; nothing is lost", next=look)
    return Unavailable(f"{place} cannot be read or written: {first_line(error)}", next=look)


def first_line(error: Exception) -> str:
    """Of what the store said, without the query of any address: there may be a signature in it."""
    return re.sub(r"\?\S+", "", str(error).partition("\n")[0])[:300]


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
