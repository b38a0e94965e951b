"""The emulated AWS of tests/aws, for adapters that are tried here."""

from tests.aws.conftest import aws as aws
from tests.aws.conftest import emulator as emulator
