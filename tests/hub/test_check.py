"""check-device: a device of ours keeps every rule, a wrong one breaks just those that it breaks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleetfold.hub.check import RULES

APP = """
from fleetfold import Evaluated, Trained

class Same:
    def init(self, seed):
        raise NotImplementedError

    def train(self, model, work):
        return Trained(tensors=dict(model), examples=3, metrics={"loss": 1.0})

    def evaluate(self, model, work):
        return Evaluated(examples=3, metrics={"loss": 1.0})

trainer = Same()
"""


def check(*words: str, patience: float = 30.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleetfold", "check-device", "--json", "--patience", str(patience), *words],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def rules(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {seen["rule"]: seen for seen in json.loads(result.stdout)["rules"]}


@pytest.mark.fleet
def test_our_own_device_keeps_every_rule(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    agent = [
        sys.executable,
        "-m",
        "fleetfold",
        "join",
        "{bundle}",
        "--home",
        "{home}",
        "--app",
        str(tmp_path),
    ]
    result = check("--large", "--", *agent)
    assert result.returncode == 0, result.stdout + result.stderr
    found = rules(result)
    assert [id for id, seen in found.items() if not seen["held"]] == []
    assert found.keys() == {rule.id for rule in RULES if rule.tried}


@pytest.mark.fleet
def test_a_wrong_device_breaks_the_rules_that_it_breaks_and_no_others() -> None:
    wrong = Path(__file__).with_name("wrong_device.py")
    result = check("--", sys.executable, str(wrong), "{bundle}", patience=1.0)
    assert result.returncode == 1, result.stdout + result.stderr
    found = rules(result)
    broken = {id for id, seen in found.items() if seen["held"] is False}
    assert {"C1", "C2", "C3", "P2", "T1", "T2", "T3", "T9", "U1", "A1", "Q1", "Q3"} <= broken
    assert {"P1", "C4", "T4", "T7", "M1"}.isdisjoint(broken)
    assert "fleetfold/check/tried/diary" in found["C3"]["what"]
    assert set(json.loads(result.stdout)["broken"]) <= {rule.id for rule in RULES if rule.must}


def test_a_command_that_ends_at_once_is_quoted() -> None:
    result = check("--", "bash", "-c", "echo no such bundle: {bundle} >&2; exit 3")
    assert result.returncode == 1
    assert "exit code 3" in rules(result)["P1"]["what"]
    assert "no such bundle" in rules(result)["P1"]["what"]
    assert list(rules(result)) == ["P1"]


@pytest.mark.fleet
def test_what_cannot_be_tried_is_said_in_a_sentence() -> None:
    for words, sentence in (
        ((), "say how the device is started"),
        (("--", "true"), "put {bundle} where its path is to stand"),
        (("--", "/no/such/program", "{bundle}"), "cannot run /no/such/program: No such file"),
        (("--model", "/no/such/model", "--", "true", "{bundle}"), "/no/such/model: No such file"),
    ):
        result = check(*words)
        assert result.returncode == 2, result.stdout + result.stderr
        assert result.stderr.startswith("error: ")
        assert sentence in result.stderr.replace("\n", " ")
