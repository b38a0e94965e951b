"""Records in DynamoDB. The table is an emulator's: tests/aws/moto_double.py says what it does not show."""

import pytest

from fleetfold.adapters.dynamo import DynamoRecords
from fleetfold.ports import Records
from tests.aws.conftest import Aws
from tests.contract.records import RecordsContract


class TestDynamoRecords(RecordsContract):
    @pytest.fixture
    def table(self, aws: Aws) -> str:
        return aws.table()

    @pytest.fixture
    def records(self, aws: Aws, table: str) -> Records:
        return DynamoRecords(aws.client("dynamodb"), table)

    @pytest.fixture
    def same(self, aws: Aws, table: str, records: Records) -> Records:
        return DynamoRecords(aws.client("dynamodb"), table)
