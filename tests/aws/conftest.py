"""An emulated AWS for tests of the adapters: moto behind one lock (moto_double.py), one for each session.

aws   .url · .client("dynamodb") · .table() and .bucket(): the name of a fresh one
      In a module that uses it the environment says the same: AWS_ENDPOINT_URL, and keys that mean nothing.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from fleetfold.adapters import boto
from tests.aws import moto_double
from tests.hub.conftest import free_port

SERIAL = count(1)
"""Of what is made in the emulator, which outlives a module."""


class Aws:
    """The emulator at `url`."""

    def __init__(self, url: str) -> None:
        self.url, self._clients = url, dict[str, Any]()

    def client(self, service: str, **about: Any) -> Any:
        """boto3's, as the adapters want it; one for each service, unless it is `about` something."""
        if about:
            return boto.client(service, endpoint_url=self.url, **about)
        if service not in self._clients:
            self._clients[service] = boto.client(service, endpoint_url=self.url)
        return self._clients[service]

    def table(self) -> str:
        """The name of a fresh table, with its index."""
        name = f"table-{next(SERIAL)}"
        self.client("dynamodb").create_table(TableName=name, **TABLE)
        return name

    def bucket(self) -> str:
        name = f"bucket-{next(SERIAL)}"
        where = {"LocationConstraint": moto_double.ENVIRONMENT["AWS_REGION"]}
        self.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=where)
        return name

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


TABLE: dict[str, Any] = {
    "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [
        {"AttributeName": "pk", "AttributeType": "S"},
        {"AttributeName": "sk", "AttributeType": "S"},
        {"AttributeName": "g", "AttributeType": "S"},
        {"AttributeName": "s", "AttributeType": "N"},
    ],
    "KeySchema": [
        {"AttributeName": "pk", "KeyType": "HASH"},
        {"AttributeName": "sk", "KeyType": "RANGE"},
    ],
    "GlobalSecondaryIndexes": [
        {
            "IndexName": "newest",
            "KeySchema": [
                {"AttributeName": "g", "KeyType": "HASH"},
                {"AttributeName": "s", "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        }
    ],
}


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """The URL of the emulator of this session."""
    with moto_double.running(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def aws(emulator: str) -> Iterator[Aws]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in {**moto_double.ENVIRONMENT, "AWS_ENDPOINT_URL": emulator}.items():
            patch.setenv(name, value)
        served = Aws(emulator)
        yield served
        served.close()
