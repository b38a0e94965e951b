"""The whole service on the emulated AWS, by the commands that a person types: deployed, trained on, killed at
its steps, destroyed. Nothing here ran on AWS itself; what the emulators do not show is said in their files.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec
import pytest

from fleetfold.view import rows
from fleetfold.wiring import aws as wiring
from tests.aws import emf, iam
from tests.aws.stack.fleet import AwsFleet
from tests.aws.stack.stack import Stack
from tests.hub.fleet import alone

pytestmark = pytest.mark.aws
APPS = Path(__file__).parents[2] / "examples"
PRETENDED = {"Dashboard": "AWS::CloudWatch::Dashboard"}
"""Resources that nothing here stands for: a dashboard is looked at by people, and cfn-lint reads its text."""
SETTINGS = ("--rounds", "5", "--deadline", "120s")


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with Stack(tmp_path / "aws") as stack:
        for name, value in stack.environment.items():
            monkeypatch.setenv(name, value)
        yield stack


def check_calls(fleet: AwsFleet) -> None:
    """Every call that a function, a rule or a schedule made, its role allows."""
    roles, refused = dict(fleet.aws.roles(fleet.name)), set[tuple[str, str, str]]()
    calls = fleet.aws.calls.by_roles()
    for role, by, call in calls:
        for action, resource, about in iam.wanted(call, fleet.name):
            if not iam.allowed(roles[role], action, resource, about):
                refused.add((by, action, resource))
    assert not refused
    assert {by for _, by, _ in calls} >= {
        f"{fleet.name}-{name}" for name in ("initiate", "collect", "publish")
    }


def check_quiet(fleet: AwsFleet) -> None:
    """Nothing was laid aside, refused, or not understood."""
    assert fleet.dead() == {"ArrivalsDead": 0, "SaidDead": 0}
    assert fleet.aws.core.refusals == []
    assert fleet.aws.core.troubles == []
    assert fleet.aws.schedules.troubles == []


@pytest.mark.needs_torch
def test_ten_devices_train_digits_on_aws_as_ten_simulated_devices_do(aws: Stack, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    app = APPS / "digits"
    with AwsFleet(aws, tmp_path, app, devices=10) as fleet:
        assert aws.pretended(fleet.name) == PRETENDED
        since = time.monotonic()
        fleet.begin(*SETTINGS)
        fleet.finished()
        print(f"{len(fleet.rounds())} rounds: {time.monotonic() - since:.1f} s")
        said, expected = alone(tmp_path, app, 10, *SETTINGS)
        assert fleet.model() == expected
        theirs = [msgspec.json.decode(line) for line in said.splitlines()]
        ours = rows(fleet.ledger, wiring.objects(fleet.stack.bucket).objects, fleet.run, 0.0)
        # Nothing in the cloud scores models: devices do, those that they are given.
        assert [row.metrics["devices"] for row in ours] == [row["metrics"]["devices"] for row in theirs]
        assert [row.arrived for row in ours] == [10] * 5
        fleet.until(lambda: [one["status"] for one in fleet.executions()] == ["SUCCEEDED"])
        check_quiet(fleet)
        check_calls(fleet)
        written = chain.from_iterable(aws.logs(name) for name in fleet.stack.functions.values())
        told = [m for m in emf.metrics(written) if m.name == "reported_accuracy"]
        assert [metric.value for metric in told] == [row.metrics["devices"]["accuracy"] for row in ours]
        assert "nothing changes" in fleet.deploy()


def test_functions_that_are_killed_repeated_and_doubled_train_the_same_model(
    aws: Stack, tmp_path: Path
) -> None:
    """Each dies at a sample of its steps; then all are called twice each time, then beside themselves."""
    app, devices = APPS / "digits-numpy", 4
    with AwsFleet(aws, tmp_path, app, devices) as fleet:
        killed = ("initiate", "collect", "publish")
        for name in killed:
            kill(fleet, name, (1, 2, 3, 4, 6, 8))
        compare(fleet, tmp_path, "killed", devices)
        deaths = {name: aws.calls.deaths(fleet.stack.functions[name]) for name in killed}
        print(f"killed: {deaths}")
        assert min(deaths.values()) >= 3
        for how in ("twice", "at once"):
            for function in fleet.stack.functions.values():
                aws.ask_always(function, {"repeat": how})
            compare(fleet, tmp_path, how, devices)
        check_quiet(fleet)
        check_calls(fleet)


WIDE = """

class Wide(Mlp):
    \"\"\"The same beside 20 MB that only get a number added: a model of several parts.\"\"\"

    def init(self, seed):
        return super().init(seed) | {"wide": np.arange(5_000_000, dtype=np.float32)}

    def train(self, model, work):
        trained = super().train({k: v for k, v in model.items() if k != "wide"}, work)
        wide = model["wide"] + np.float32(0.001) * (work.seed % 97)
        tensors = trained.tensors | {"wide": wide}
        return Trained(tensors=tensors, examples=trained.examples, metrics=trained.metrics)


trainer = Wide()
"""


def test_a_model_of_several_parts_is_folded_by_functions_that_are_killed_and_then_nothing_is_left(
    aws: Stack, tmp_path: Path
) -> None:
    app, devices = tmp_path / "wide", 3
    app.mkdir()
    (app / "app.py").write_text((APPS / "digits-numpy" / "app.py").read_text() + WIDE)
    assert aws.left() == {}
    with AwsFleet(aws, tmp_path, app, devices) as fleet:
        killed = ("fold_shard", "publish")
        for name in killed:
            kill(fleet, name, (1, 2, 3, 4))
        compare(fleet, tmp_path, "killed", devices)
        deaths = {name: aws.calls.deaths(fleet.stack.functions[name]) for name in killed}
        print(f"killed: {deaths}")
        assert min(deaths.values()) >= 2
        for function in fleet.stack.functions.values():
            aws.ask_always(function, {"repeat": "at once"})
        compare(fleet, tmp_path, "at once", devices)
        check_quiet(fleet)
        check_calls(fleet)
        said = fleet.timed("destroy", "aws", "destroy", "--stack", fleet.name, "--delete-models", "--yes")
        assert "is gone" in said
        assert aws.left() == {}


def kill(fleet: AwsFleet, name: str, steps: Sequence[int]) -> None:
    """Have every other invocation of the function die at one of these steps, one after another."""
    faults = ({"environment": {"FLEETFOLD_FAULTS": f"{name}:{at}"}} for at in steps)
    fleet.aws.ask(fleet.stack.functions[name], *chain.from_iterable((fault, {}) for fault in faults))


def compare(fleet: AwsFleet, folder: Path, what: str, devices: int) -> None:
    """A run while a person's `tick` comes in between now and then is what it is on one machine."""
    fleet.begin(*SETTINGS)
    ended = threading.Event()

    def tick() -> None:
        client = fleet.aws.session().client("lambda", endpoint_url=fleet.aws.url)
        while not ended.wait(2.0):
            body = msgspec.json.encode({"run": fleet.run})
            client.invoke(FunctionName=fleet.stack.functions["tick"], InvocationType="Event", Payload=body)
        client.close()

    ticking = threading.Thread(target=tick)
    since = time.monotonic()
    ticking.start()
    try:
        fleet.finished()
        print(f"{what}, {len(fleet.rounds())} rounds: {time.monotonic() - since:.1f} s")
    finally:
        ended.set()
        ticking.join()
    _, expected = alone(folder, fleet.app, devices, *SETTINGS)
    assert fleet.model() == expected, what
    assert [len(round.arrived) for round in fleet.rounds()] == [devices] * 5
