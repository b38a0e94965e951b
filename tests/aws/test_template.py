"""The template as CloudFormation would read it: its policies one by one, its workflow, what keeps data."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from cfnlint.api import ManualArgs, lint
from samtranslator.translator.transform import transform

from fleetfold.aws import machine, rights
from fleetfold.aws.policies import device_policy
from fleetfold.aws.rights import FUNCTIONS, resource
from fleetfold.aws.template import SAID, SECONDS, template, text
from fleetfold.tell.numbers import MORE, SIX

Data = dict[str, Any]

LINTED_AWAY = {
    "W1030": "the network of the coordinator's is a parameter that may be empty, where there is none"
}
"""What cfn-lint is told not to say, and why."""
MOST_RESOURCES, MOST_BYTES = 500, 1_000_000
"""Of a template, by CloudFormation's own limits, where it lies in a bucket."""
POLICY_BYTES = 10_240
"""Of all policies within one role, by IAM's limit."""

WRITES_RUNS = {
    "dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query", "dynamodb:PutItem", "dynamodb:UpdateItem",
    "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts", "iot:Publish", "iot:RetainPublish", "scheduler:CreateSchedule",
    "iam:PassRole", "states:SendTaskSuccess", "kms:Decrypt", "kms:GenerateDataKey", "logs:CreateLogStream",
    "logs:PutLogEvents",
}  # fmt: skip
TAKES = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
MAY = {
    "initiate": WRITES_RUNS,
    "collect": WRITES_RUNS | TAKES,
    "status": WRITES_RUNS | TAKES,
    "tick": WRITES_RUNS | {"sqs:SendMessage"},
    "publish": WRITES_RUNS,
    "fold_shard": {
        "s3:GetObject", "s3:PutObject", "s3:ListBucket", "kms:Decrypt", "kms:GenerateDataKey",
        "logs:CreateLogStream", "logs:PutLogEvents",
    },
}  # fmt: skip
"""All that each function may do, and so all that it has to be able to."""


@pytest.fixture(scope="module")
def resources() -> Data:
    """After the SAM transform, as CloudFormation gets them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        plain = transform(deepcopy(template()), {"CodeBucket": "b", "CodeKey": "k"}, _NoManagedPolicies())
    return dict(plain["Resources"])


class _NoManagedPolicies:
    def load(self) -> Data:
        return {}


def statements(document: Data) -> Iterator[Data]:
    for statement in document["Statement"]:
        yield statement["Fn::If"][1] if "Fn::If" in statement else statement


def documents(resources: Data) -> Iterator[tuple[str, Data]]:
    """Every policy of the template, by its resource's name."""
    for name, made in resources.items():
        properties = made.get("Properties", {})
        for policy in properties.get("Policies", []):
            yield name, policy["PolicyDocument"]
        for key in ("PolicyDocument", "AssumeRolePolicyDocument"):
            if key in properties:
                yield name, properties[key]


def words(value: Any) -> list[str]:
    """All texts in it, however deep."""
    if isinstance(value, dict):
        return [word for each in value.values() for word in words(each)]
    if isinstance(value, list):
        return [word for each in value for word in words(each)]
    return [value] if isinstance(value, str) else []


def of_type(resources: Data, type: str) -> dict[str, Data]:
    return {name: made["Properties"] for name, made in resources.items() if made["Type"] == type}


class TestTheWhole:
    def test_it_is_clean_by_cfn_lint(self) -> None:
        found = lint(text(), config=ManualArgs(regions=["eu-central-1", "us-east-1"]))
        assert [f"{one.rule.id} {one.message}" for one in found] == []

    def test_what_cfn_lint_is_told_not_to_say_has_a_reason(self) -> None:
        told = re.findall(r'"ignore_checks":\["(\w+)"\]', text())
        assert set(told) == set(LINTED_AWAY)

    def test_what_checkov_is_told_to_skip_has_a_reason(self) -> None:
        for made in template()["Resources"].values():
            for skip in made.get("Metadata", {}).get("checkov", {}).get("skip", []):
                assert len(skip["comment"]) > 20

    def test_it_is_the_same_text_each_time_and_within_the_limits(self, resources: Data) -> None:
        assert text() == text()
        assert len(text()) < MOST_BYTES
        assert len(resources) < MOST_RESOURCES

    def test_every_parameter_is_used(self) -> None:
        body = json.dumps({k: v for k, v in template().items() if k != "Parameters"})
        for name in template()["Parameters"]:
            assert f'"Ref": "{name}"' in body or f"${{{name}}}" in body


class TestRights:
    def test_a_star_in_any_policy_has_its_reason_beside_it(self, resources: Data) -> None:
        used = set()
        for name, document in documents(resources):
            for statement in statements(document):
                said = words([statement["Action"], statement.get("Resource", [])])
                # What GetAtt gives of a log group ends with a star.
                if any("*" in word or word.endswith("Log") for word in said):
                    sid = statement.get("Sid") or statement["Action"]
                    assert resources[name]["Metadata"]["Wildcards"][sid] == rights.REASONS[sid]
                    used.add(sid)
        assert used == set(rights.REASONS)

    def test_nobody_may_do_anything_to_anything(self, resources: Data) -> None:
        for name, document in documents(resources):
            for statement in statements(document):
                if statement["Effect"] == "Allow":
                    actions = words(statement["Action"])
                    assert not [action for action in actions if "*" in action], name
                    if "*" in words(statement.get("Resource", [])):
                        assert statement["Sid"] in ("Deliver", "Token", "Register"), name
                else:
                    assert statement["Sid"] == "OnlyOverTls"

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_a_function_may_do_what_its_step_does_and_no_more(self, resources: Data, function: str) -> None:
        [document] = [
            document
            for name, document in documents(resources)
            if name == f"{resource(function)}Role" and "Resource" in next(statements(document))
        ]
        may = {action for statement in statements(document) for action in words(statement["Action"])}
        assert may == MAY[function]

    def test_a_function_takes_from_its_own_queue_only(self, resources: Data) -> None:
        for function, queue in (("collect", "Arrivals"), ("status", "Said")):
            [taken] = [s for s in rights.of(function) if s.get("Sid") == "Take"]
            assert taken["Resource"] == [{"Fn::GetAtt": [queue, "Arn"]}]

    def test_every_role_is_taken_by_one_service_and_has_no_policy_of_somebody_elses(
        self, resources: Data
    ) -> None:
        for role in of_type(resources, "AWS::IAM::Role").values():
            [trust] = role["AssumeRolePolicyDocument"]["Statement"]
            assert isinstance(trust["Principal"]["Service"], str)
            assert "ManagedPolicyArns" not in role
            assert len(json.dumps(role["Policies"])) < POLICY_BYTES

    def test_a_role_is_handed_on_to_the_one_service_that_needs_it(self, resources: Data) -> None:
        for name, document in documents(resources):
            for statement in statements(document):
                if "iam:PassRole" in words(statement["Action"]):
                    assert "iam:PassedToService" in statement["Condition"]["StringEquals"], name

    def test_a_device_may_what_its_policy_says_filled_in(self, resources: Data) -> None:
        policy = of_type(resources, "AWS::IoT::Policy")["DevicePolicy"]
        filled = json.dumps(policy["PolicyDocument"])
        for name, value in {
            "AWS::Region": "eu-central-1", "AWS::AccountId": "123456789012", "Fleet": "farm",
            "AWS::Partition": "aws",
        }.items():  # fmt: skip
            filled = filled.replace(f"${{{name}}}", value)
        plain = re.sub(r'\{"Fn::Sub": ("[^"]*")\}', r"\1", filled).replace("${!", "${")
        assert json.loads(plain) == device_policy("eu-central-1", "123456789012", "farm")


class TestData:
    def test_the_bucket_is_private_versioned_encrypted_and_spoken_to_over_tls(self, resources: Data) -> None:
        [bucket] = of_type(resources, "AWS::S3::Bucket").values()
        assert all(bucket["PublicAccessBlockConfiguration"].values())
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
        assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        [policy] = of_type(resources, "AWS::S3::BucketPolicy").values()
        [refusal] = policy["PolicyDocument"]["Statement"]
        assert refusal["Effect"] == "Deny"
        assert refusal["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}

    def test_nothing_that_counts_expires(self, resources: Data) -> None:
        [bucket] = of_type(resources, "AWS::S3::Bucket").values()
        for rule in bucket["LifecycleConfiguration"]["Rules"]:
            assert not {"ExpirationInDays", "ExpirationDate", "Expiration"} & set(rule)

    def test_what_is_retired_or_broken_off_goes(self, resources: Data) -> None:
        [bucket] = of_type(resources, "AWS::S3::Bucket").values()
        rules = {
            name: value for rule in bucket["LifecycleConfiguration"]["Rules"] for name, value in rule.items()
        }
        assert rules["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
        assert rules["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}

    def test_bucket_and_table_outlive_a_stack_that_is_deleted_or_changed_by_hand(
        self, resources: Data
    ) -> None:
        kept = {name for name, made in resources.items() if made.get("UpdateReplacePolicy") == "Retain"}
        assert kept == {"Objects", "Table"}
        assert {resources[name]["DeletionPolicy"] for name in kept} == {"RetainExceptOnCreate"}

    def test_the_table_can_be_taken_back_in_time(self, resources: Data) -> None:
        [table] = of_type(resources, "AWS::DynamoDB::Table").values()
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["BillingMode"] == "PAY_PER_REQUEST"


class TestQueues:
    def test_a_message_is_laid_aside_after_so_many_tries_and_somebody_is_told(self, resources: Data) -> None:
        queues = of_type(resources, "AWS::SQS::Queue")
        watched = {
            dimension["Value"]["Fn::GetAtt"][0]
            for alarm in of_type(resources, "AWS::CloudWatch::Alarm").values()
            for dimension in alarm["Dimensions"]
            if dimension["Name"] == "QueueName"
        }
        aside = {
            queue["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0]
            for queue in queues.values()
            if "RedrivePolicy" in queue
        }
        assert aside == watched == {"ArrivalsDead", "SaidDead"}

    def test_a_batch_may_fail_in_part_and_no_message_comes_back_while_it_is_worked_on(
        self, resources: Data
    ) -> None:
        queues = of_type(resources, "AWS::SQS::Queue")
        mappings = of_type(resources, "AWS::Lambda::EventSourceMapping")
        assert len(mappings) == 2
        for mapping in mappings.values():
            assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
            queue = queues[mapping["EventSourceArn"]["Fn::GetAtt"][0]]
            seconds = SECONDS["collect" if mapping["FunctionName"] == {"Ref": "Collect"} else "status"]
            assert queue["VisibilityTimeout"] >= 6 * seconds

    def test_only_our_own_bucket_may_write_to_its_queue(self, resources: Data) -> None:
        [allowed] = [
            statement
            for policy in of_type(resources, "AWS::SQS::QueuePolicy").values()
            for statement in policy["PolicyDocument"]["Statement"]
            if statement["Effect"] == "Allow"
        ]
        assert allowed["Condition"]["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}


class TestWhatDevicesSay:
    def test_there_is_a_rule_for_every_word_that_has_to_be_heard(self, resources: Data) -> None:
        rules = of_type(resources, "AWS::IoT::TopicRule")
        said = {
            word
            for rule in rules.values()
            for word in re.findall(r"/\+/(\w+)'", str(rule["TopicRulePayload"]["Sql"]))
        }
        assert said == set(SAID)

    def test_what_cannot_be_queued_is_laid_aside(self, resources: Data) -> None:
        for rule in of_type(resources, "AWS::IoT::TopicRule").values():
            payload = rule["TopicRulePayload"]
            assert payload["AwsIotSqlVersion"] == "2016-03-23"
            assert payload["Actions"][0]["Sqs"]["QueueUrl"] == {"Ref": "Said"}
            assert payload["ErrorAction"]["Sqs"]["QueueUrl"] == {"Ref": "SaidDead"}


class TestTheWorkflow:
    @pytest.fixture(params=[False, True], ids=["functions", "coordinator"])
    def definition(self, request: pytest.FixtureRequest) -> Data:
        return machine.machine(coordinator=request.param)

    def states(self, definition: Data) -> Iterator[tuple[str, Data]]:
        for name, state in definition["States"].items():
            yield name, state
            if "ItemProcessor" in state:
                yield from self.states(state["ItemProcessor"])

    def test_it_speaks_jsonpath_only(self, definition: Data) -> None:
        said = json.dumps(definition)
        for word in ("QueryLanguage", "JSONata", '"Arguments"', '"Assign"', "{%", "ItemBatcher"):
            assert word not in said

    def test_every_task_is_tried_again_with_pauses_that_grow_and_differ(self, definition: Data) -> None:
        for name, state in self.states(definition):
            if state["Type"] == "Task":
                tried = [each for each in state["Retry"] if each["MaxAttempts"]]
                assert tried, name
                for each in tried:
                    assert each["BackoffRate"] > 1
                    assert each["JitterStrategy"] == "FULL"
                    assert each["MaxDelaySeconds"]
                assert "Lambda.TooManyRequestsException" in tried[0]["ErrorEquals"]

    def test_every_task_has_a_time_after_which_it_counts_as_failed(self, definition: Data) -> None:
        for name, state in self.states(definition):
            if state["Type"] == "Task" and name not in ("Anew", "Coordinate"):
                assert {"TimeoutSeconds", "TimeoutSecondsPath"} & set(state), name

    def test_an_error_of_the_users_is_not_tried_again(self, definition: Data) -> None:
        for _, state in self.states(definition):
            if state["Type"] == "Task":
                assert state["Retry"][0]["MaxAttempts"] == 0

    def test_every_state_can_be_reached_and_every_way_leads_somewhere(self, definition: Data) -> None:
        states, reached, ahead = definition["States"], set(), [definition["StartAt"]]
        while ahead:
            name = ahead.pop()
            if name not in reached:
                reached.add(name)
                ahead += re.findall(r'"(?:Next|Default)": "([^"]+)"', json.dumps(states[name]))
        assert reached == set(states)

    def test_no_more_shards_are_folded_inline_than_may_be(self, definition: Data) -> None:
        assert definition["States"]["Fold"]["MaxConcurrency"] <= 40

    def test_fifty_rounds_fit_into_one_history(self) -> None:
        assert machine.SPENT + machine.OPEN_EVENTS + machine.FOLD_EVENTS < 25_000
        assert machine.SPENT == 50 * (machine.OPEN_EVENTS + machine.FOLD_EVENTS)

    def test_what_it_leaves_open_the_template_fills_in(self, resources: Data) -> None:
        [workflow] = of_type(resources, "AWS::StepFunctions::StateMachine").values()
        both = "".join(words(workflow["DefinitionString"]))
        assert set(re.findall(r"\$\{(\w+)\}", both)) == set(workflow["DefinitionSubstitutions"])
        _, with_coordinator, without = workflow["DefinitionString"]["Fn::If"]
        assert "ecs:" in with_coordinator
        assert "ecs:" not in without


class TestWatching:
    def test_every_function_is_watched(self, resources: Data) -> None:
        watched = {
            (alarm["MetricName"], dimension["Value"]["Ref"])
            for alarm in of_type(resources, "AWS::CloudWatch::Alarm").values()
            for dimension in alarm["Dimensions"]
            if dimension["Name"] == "FunctionName"
        }
        assert watched == {(m, resource(f)) for f in FUNCTIONS for m in ("Errors", "Throttles")}

    def test_logs_are_kept_for_as_long_as_is_said_and_no_longer(self, resources: Data) -> None:
        for group in of_type(resources, "AWS::Logs::LogGroup").values():
            assert group["RetentionInDays"] == {"Ref": "LogDays"}

    def test_the_dashboard_is_json(self, resources: Data) -> None:
        [board] = of_type(resources, "AWS::CloudWatch::Dashboard").values()
        widgets = json.loads(board["DashboardBody"]["Fn::Sub"][0])["widgets"]
        assert len(widgets) > 10
        drawn = " ".join(words(widgets))
        for number in (*SIX, *MORE):
            assert f'{{fleetfold,fleet,run}} MetricName="{number.name}" fleet="${{Fleet}}"' in drawn
            assert number.title in drawn
