"""Deployments against a simulated CloudFormation, which fails where it is told to; buckets on the emulator,
which asks nobody for leave and knows no other account."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from fleetfold.aws import destroy
from fleetfold.aws.deploy import Account, checked_stack, code_bucket, deployed, proposed, uploaded
from fleetfold.aws.package import Package
from fleetfold.aws.rights import FUNCTIONS, resource
from fleetfold.aws.stacks import STACK, Change, Happening, Plan, Standing, change, followed
from fleetfold.aws.template import template
from fleetfold.cli.main import main
from fleetfold.errors import BadConfig, Unavailable
from tests.aws.conftest import Aws

GIVEN = {"CodeBucket": "b", "CodeKey": "k", "Runtime": "python3.13"}
OUTPUTS = {
    "Bucket": "bucket", "Table": "table", "Machine": "arn:machine", "Fleet": "main", "IotEndpoint": "host",
    **{resource(f): f"s-{f}" for f in FUNCTIONS},
}  # fmt: skip


class Simulated:
    """CloudFormation with one stack. `breaks`: the resource that cannot be made, and why."""

    def __init__(self, standing: Standing | None = None, breaks: tuple[str, str] | None = None) -> None:
        self.stands, self._breaks = standing, breaks
        self.told: list[Happening] = []
        self.asked: dict[str, str | None] = {}
        self._pending: list[tuple[str, str, str, str]] = []

    def look(self, stack: str, after: str = "") -> tuple[Standing | None, list[Happening]]:
        if self._pending and self.stands is not None:  # one thing happens between two looks
            resource, kind, status, reason = self._pending.pop(0)
            self.told.append(Happening(f"{len(self.told)}", 0.0, resource, kind, status, reason))
            if kind == STACK:
                outputs = OUTPUTS if status in ("CREATE_COMPLETE", "UPDATE_COMPLETE") else {}
                self.stands = Standing(stack, status, reason, outputs, {})
        ids = [h.id for h in self.told]
        return self.stands, self.told[ids.index(after) + 1 if after in ids else 0 :]

    def propose(self, stack: str, template: str, parameters: Mapping[str, str | None], new: bool) -> Plan:
        self.asked = dict(parameters)
        same = self.stands is not None and all(
            v in (None, self.stands.parameters.get(k)) for k, v in parameters.items()
        )
        return Plan(stack, "p", () if same else (Change("add", "Table", "AWS::DynamoDB::Table"),))

    def execute(self, plan: Plan) -> None:
        how = "UPDATE" if self.stands and self.stands.made else "CREATE"
        self.stands = Standing(plan.stack, f"{how}_IN_PROGRESS")
        self._pending = [
            (plan.stack, STACK, f"{how}_IN_PROGRESS", ""),
            ("Table", "AWS::DynamoDB::Table", "CREATE_IN_PROGRESS", ""),
        ]
        if self._breaks:
            name, why = self._breaks
            back = "ROLLBACK" if how == "CREATE" else "UPDATE_ROLLBACK"
            self._pending += [
                (name, "AWS::S3::Bucket", "CREATE_FAILED", why),
                ("Table", "AWS::DynamoDB::Table", "CREATE_FAILED", "Resource creation cancelled"),
                (plan.stack, STACK, f"{back}_IN_PROGRESS", ""),
                (plan.stack, STACK, f"{back}_COMPLETE", ""),
            ]
        else:
            self._pending += [
                ("Table", "AWS::DynamoDB::Table", "CREATE_COMPLETE", ""),
                (plan.stack, STACK, f"{how}_COMPLETE", ""),
            ]

    def withdraw(self, plan: Plan) -> None: ...

    def delete(self, stack: str) -> None: ...


def watched(stacks: Simulated, plan: Plan) -> tuple[Standing | None, Happening | None, list[Happening]]:
    seen: list[Happening] = []
    stacks.execute(plan)
    standing, first = followed(stacks, plan.stack, "", seen.extend, sleep=lambda seconds: None)
    return standing, first, seen


class TestPlanning:
    def test_a_new_stack_has_what_is_given_and_else_what_the_template_says(self) -> None:
        stacks = Simulated()
        assert proposed(stacks, "s", "url", GIVEN).changes
        assert stacks.asked == GIVEN

    def test_what_was_set_before_stays_until_it_is_set_anew(self) -> None:
        before = GIVEN | {"Folders": "8", "LogDays": "7", "OfAnOlderVersion": "x"}
        stacks = Simulated(Standing("s", "CREATE_COMPLETE", parameters=before))
        proposed(stacks, "s", "url", GIVEN | {"LogDays": "14"})
        assert stacks.asked == GIVEN | {"Folders": None, "LogDays": "14"}

    def test_the_same_again_changes_nothing(self) -> None:
        stacks = Simulated(Standing("s", "UPDATE_COMPLETE", parameters=GIVEN))
        assert proposed(stacks, "s", "url", GIVEN).changes == ()

    @pytest.mark.parametrize(
        ("status", "next"),
        [
            ("ROLLBACK_COMPLETE", "fleetfold aws destroy --stack s"),
            ("DELETE_FAILED", "fleetfold aws destroy --stack s"),
            ("UPDATE_ROLLBACK_FAILED", "aws cloudformation continue-update-rollback --stack-name s"),
        ],
    )
    def test_a_stack_that_cannot_be_changed_is_told_with_what_to_do(self, status: str, next: str) -> None:
        with pytest.raises(BadConfig) as caught:
            proposed(Simulated(Standing("s", status)), "s", "url", GIVEN)
        assert caught.value.next == next

    def test_a_deployment_under_way_is_told(self) -> None:
        with pytest.raises(Unavailable, match="under way"):
            proposed(Simulated(Standing("s", "UPDATE_IN_PROGRESS")), "s", "url", GIVEN)

    def test_what_a_dead_deployment_only_planned_is_planned_anew(self) -> None:
        stacks = Simulated(Standing("s", "REVIEW_IN_PROGRESS"))
        assert proposed(stacks, "s", "url", GIVEN | {"Fleet": "f"}).changes

    def test_the_fleet_of_a_stack_is_for_good(self) -> None:
        stands = Standing("s", "CREATE_COMPLETE", parameters=GIVEN | {"Fleet": "main"})
        with pytest.raises(BadConfig, match="bound to that name"):
            proposed(Simulated(stands), "s", "url", GIVEN | {"Fleet": "other"})

    @pytest.mark.parametrize("name", ["Upper", "a--b", "-a", "a-", "a" * 29, "", "a.b"])
    def test_a_name_that_no_bucket_can_have_is_refused(self, name: str) -> None:
        with pytest.raises(BadConfig):
            checked_stack(name)

    @pytest.mark.parametrize(
        ("about", "action", "loses"),
        [
            ({"Action": "Add"}, "add", False),
            ({"Action": "Modify", "Replacement": "False"}, "modify", False),
            ({"Action": "Modify", "Replacement": "True"}, "replace", True),
            ({"Action": "Modify", "Replacement": "Conditional"}, "perhaps replace", True),
            ({"Action": "Remove"}, "remove", True),
        ],
    )
    def test_a_change_that_takes_data_away_says_so(self, about: Any, action: str, loses: bool) -> None:
        detail = {"Target": {"Attribute": "Properties", "Name": "KeySchema"}}
        found = change(
            about
            | {"LogicalResourceId": "Table", "ResourceType": "AWS::DynamoDB::Table", "Details": [detail]}
        )
        assert (found.action, found.loses, found.why) == (action, loses, "KeySchema")


class TestDoing:
    def test_every_event_is_shown_once_and_in_order(self) -> None:
        standing, first, seen = watched(Simulated(), Plan("s", "p", ()))
        assert [h.id for h in seen] == sorted({h.id for h in seen})
        assert standing is not None
        assert standing.status == "CREATE_COMPLETE"
        assert first is None
        found = deployed("s", "eu-central-1", standing, first)
        assert (found.bucket, found.functions["fold_shard"]) == ("bucket", "s-fold_shard")

    @pytest.mark.parametrize("made", [False, True])
    def test_a_failure_is_told_by_the_reason_of_what_failed_first(self, made: bool) -> None:
        stacks = Simulated(Standing("s", "CREATE_COMPLETE") if made else None, ("Objects", "no leave"))
        standing, first, _ = watched(stacks, Plan("s", "p", ()))
        with pytest.raises(Unavailable) as caught:
            deployed("s", "eu-central-1", standing, first)
        assert "Objects (AWS::S3::Bucket): no leave" in caught.value.sentence
        assert ("stands again" in caught.value.sentence) is made
        assert caught.value.next == f"fleetfold aws {'deploy' if made else 'destroy'} --stack s"

    def test_the_template_gives_what_this_machine_has_to_know(self) -> None:
        assert set(OUTPUTS) <= set(template()["Outputs"])


@pytest.fixture
def account(aws: Aws) -> Account:
    clients = {name: aws.client(name) for name in ("s3", "dynamodb", "stepfunctions", "iot", "logs")}
    return Account("123456789012", "eu-central-1", clients)


@pytest.fixture
def zipped(tmp_path: Path) -> Package:
    path = tmp_path / "code.zip"
    path.write_bytes(b"PK")
    return Package(path, "3.13", "d" * 64, 2, 2, False)


def versions(account: Account, bucket: str) -> list[str]:
    found = account.clients["s3"].list_object_versions(Bucket=bucket)
    return sorted(one["Key"] for one in [*found.get("Versions", []), *found.get("DeleteMarkers", [])])


class TestCode:
    def test_zip_and_template_lie_in_a_private_bucket_by_digest_put_once(
        self, account: Account, zipped: Package
    ) -> None:
        url = uploaded(account, "first", zipped)
        assert uploaded(account, "first", zipped) == url
        bucket = code_bucket(account, "first")
        s3 = account.clients["s3"]
        assert len(versions(account, bucket)) == 2
        blocked = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        assert all(blocked.values())


class TestDestroying:
    @pytest.fixture
    def bucket(self, account: Account) -> Iterator[str]:
        s3, name = account.clients["s3"], "farm-123456789012-0a1b2c3d"
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        for key in ("runs/r/models/000001.safetensors", "runs/r/rounds/000001/updates/a.safetensors"):
            for text in (b"one", b"two"):
                s3.put_object(Bucket=name, Key=key, Body=io.BytesIO(text))
        s3.delete_object(Bucket=name, Key="runs/r/rounds/000001/updates/a.safetensors")
        yield name
        destroy.destroy(account, Simulated(), "farm", lambda text: None, lambda news: None, models=True)

    def gone(self, account: Account, *, models: bool) -> list[str]:
        said: list[str] = []
        destroy.destroy(account, Simulated(), "farm", said.append, lambda news: None, models=models)
        return said

    def test_it_says_what_would_go(self, account: Account, bucket: str) -> None:
        found = destroy.remains(account, Simulated(), "farm")
        assert found.buckets == (destroy.Bucket(bucket, 2, 6, 2, 6),)
        assert destroy.remains(account, Simulated(), "far").none

    def test_models_stay_unless_told_and_nothing_else_does(self, account: Account, bucket: str) -> None:
        assert self.gone(account, models=False) == [f"kept the models in s3://{bucket}/runs/"]
        assert set(versions(account, bucket)) == {"runs/r/models/000001.safetensors"}
        assert self.gone(account, models=True) == [f"deleted bucket {bucket}"]
        assert destroy.remains(account, Simulated(), "farm").none

    def test_what_an_interrupted_one_left_is_found_by_the_stacks_name(
        self, account: Account, bucket: str, zipped: Package
    ) -> None:
        uploaded(account, "farm", zipped)
        destroy.emptied(account, bucket, lambda key: True)  # and then it died
        found = destroy.remains(account, Simulated(), "farm")
        assert [one.name for one in found.buckets] == [bucket]
        assert found.code == code_bucket(account, "farm")
        self.gone(account, models=False)
        assert destroy.remains(account, Simulated(), "farm").none

    def test_the_bucket_of_another_stack_is_left_alone(self, account: Account, bucket: str) -> None:
        s3 = account.clients["s3"]
        others = [
            "farm-2-123456789012-0a1b2c3d",
            "farm-123456789012-0a1b2c3d-x",
            "farm-999999999999-0a1b2c3d",
        ]
        for name in others:
            s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        self.gone(account, models=True)
        left = {one["Name"] for one in s3.list_buckets()["Buckets"]}
        assert set(others) <= left
        assert bucket not in left
        for name in others:
            s3.delete_bucket(Bucket=name)

    def test_the_records_go(self, account: Account) -> None:
        client = account.clients["dynamodb"]
        client.create_table(
            TableName="farm-Table-AB12", BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        )  # fmt: skip
        assert self.gone(account, models=False) == ["deleted table farm-Table-AB12"]


class TestTheCommand:
    def say(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(["aws", *words])
        return int(left.value.code or 0), capsys.readouterr().err + capsys.readouterr().out

    def test_without_a_region_it_says_how_to_name_one(
        self, aws: Aws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        code, said = self.say(capsys, "deploy")
        assert code == 2
        assert "AWS_DEFAULT_REGION" in said

    def test_without_credentials_it_says_how_to_have_some(
        self, aws: Aws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/nowhere")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which has found some before
        code, said = self.say(capsys, "deploy")
        assert code == 1
        assert "credentials" in said
        assert "aws configure" in said

    def test_a_parameter_that_the_template_has_not_is_told(
        self, aws: Aws, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, said = self.say(capsys, "deploy", "--set", "Folds=3")
        assert code == 2
        assert "Folders" in said

    def test_destroying_nothing_says_so(
        self, aws: Aws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path))
        with pytest.raises(SystemExit) as left:
            main(["aws", "destroy", "--stack", "nothing"])
        assert not left.value.code
        assert "nothing left" in capsys.readouterr().out

    @pytest.mark.parametrize("command", ["deploy", "status", "logs", "destroy"])
    def test_every_command_has_examples(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["aws", command, "--help"])
        said = capsys.readouterr().out
        assert "Examples" in said
        assert f"fleetfold aws {command}" in said
