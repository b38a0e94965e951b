"""The template under the tools that others would hold against it; each has an environment of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from fleetfold.aws.template import text
from tests.aws.stack.environments import program

pytestmark = pytest.mark.aws


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "template.yaml"
    path.write_text(text())
    return path


def test_sam_validate_lint_finds_nothing(written: Path) -> None:
    command = [program("sam", "sam"), "validate", "--lint", "--template", written]
    environment = os.environ | {"SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "eu-central-1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is a valid SAM Template" in done.stdout


def test_checkov_finds_nothing_but_what_has_its_reason_beside_it(written: Path) -> None:
    command = [
        program("checkov", "checkov"), "--framework", "cloudformation", "--file", written, "--output", "json",
        "--skip-download", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["failed"] == 0, done.stdout
    assert found["summary"]["parsing_errors"] == 0
