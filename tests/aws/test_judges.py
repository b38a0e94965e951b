"""What judges the emulated AWS is judged itself: rules of IAM and of IoT, their SQL, metrics in logs."""

import json
from typing import Any

import pytest

from tests.aws import emf, iam, iot_policy
from tests.aws.stack import rules

# IAM


def statement(effect: str, action: Any, resource: Any, **more: Any) -> dict[str, Any]:
    return {"Statement": [{"Effect": effect, "Action": action, "Resource": resource, **more}]}


OBJECT = "arn:aws:s3:::fleet/runs/a/model"


@pytest.mark.parametrize(
    ("documents", "action", "resource", "expected"),
    [
        ([statement("Allow", "s3:GetObject", "arn:aws:s3:::fleet/*")], "s3:GetObject", OBJECT, True),
        ([statement("Allow", "s3:Get*", "arn:aws:s3:::fleet/*")], "s3:GetObject", OBJECT, True),
        ([statement("Allow", "S3:getobject", "*")], "s3:GetObject", OBJECT, True),
        ([statement("Allow", "s3:GetObject", "arn:aws:s3:::fleet")], "s3:GetObject", OBJECT, False),
        ([statement("Allow", "s3:GetObject", "arn:aws:s3:::Fleet/*")], "s3:GetObject", OBJECT, False),
        ([statement("Allow", "s3:PutObject", "*")], "s3:GetObject", OBJECT, False),
        ([statement("Allow", "*", "*"), statement("Deny", "s3:*", OBJECT)], "s3:GetObject", OBJECT, False),
        ([], "s3:GetObject", OBJECT, False),
        (
            [{"Statement": {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}}],
            "s3:GetObject",
            OBJECT,
            True,
        ),
        (
            [{"Statement": {"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"}}],
            "s3:GetObject",
            OBJECT,
            False,
        ),
        (
            [{"Statement": {"Effect": "Allow", "Action": "*", "NotResource": OBJECT}}],
            "s3:GetObject",
            OBJECT,
            False,
        ),
    ],
)
def test_iam_allows_what_is_allowed_and_not_denied(
    documents: list[dict[str, Any]], action: str, resource: str, expected: bool
) -> None:
    assert iam.allowed(documents, action, resource) is expected


def test_a_condition_of_iam_holds_or_the_statement_says_nothing() -> None:
    only = {"StringLike": {"s3:prefix": ["runs/*"]}}
    policy = [statement("Allow", "s3:ListBucket", "arn:aws:s3:::fleet", Condition=only)]
    assert iam.allowed(policy, "s3:ListBucket", "arn:aws:s3:::fleet", {"s3:prefix": "runs/a/"})
    assert not iam.allowed(policy, "s3:ListBucket", "arn:aws:s3:::fleet", {"s3:prefix": "other/"})
    assert not iam.allowed(policy, "s3:ListBucket", "arn:aws:s3:::fleet")
    with pytest.raises(iam.Unknown):
        iam.allowed(
            [statement("Allow", "*", "*", Condition={"IpAddress": {"aws:SourceIp": "::1"}})], "s3:x", "y"
        )


def call(service: str, operation: str, error: str = "", **asked: Any) -> dict[str, Any]:
    return {
        "service": service,
        "operation": operation,
        "request": asked,
        "error": error or None,
        "status": 200,
    }


def needed(*about: Any, **asked: Any) -> list[tuple[str, str]]:
    return [(action, resource) for action, resource, _ in iam.wanted(call(*about, **asked), "machine")]


def test_a_call_needs_the_action_that_iam_knows_it_by() -> None:
    here = "us-east-1:000000000000"
    assert needed("s3", "HeadObject", Bucket="b", Key="k") == [("s3:GetObject", "arn:aws:s3:::b/k")]
    assert needed("s3", "UploadPart", Bucket="b", Key="k") == [("s3:PutObject", "arn:aws:s3:::b/k")]
    assert needed("s3", "ListObjectsV2", Bucket="b") == [("s3:ListBucket", "arn:aws:s3:::b")]
    assert needed("dynamodb", "Query", TableName="t", IndexName="i") == [
        ("dynamodb:Query", f"arn:aws:dynamodb:{here}:table/t/index/i")
    ]
    assert needed("iot-data", "Publish", topic="a/b", retain=True) == [
        ("iot:Publish", f"arn:aws:iot:{here}:topic/a/b"),
        ("iot:RetainPublish", f"arn:aws:iot:{here}:topic/a/b"),
    ]
    lent = needed("scheduler", "CreateSchedule", GroupName="g", Name="n", Target={"RoleArn": "r", "Arn": "f"})
    assert lent[1] == ("iam:PassRole", "r")
    with pytest.raises(iam.Unknown):
        needed("s3", "PutBucketPolicy", Bucket="b")


def test_whoever_asks_for_what_is_not_there_needs_to_be_allowed_to_list() -> None:
    asked = needed("s3", "GetObject", "NoSuchKey", Bucket="b", Key="k")
    assert asked == [("s3:GetObject", "arn:aws:s3:::b/k"), ("s3:ListBucket", "arn:aws:s3:::b")]


# IoT policies

ARN = "arn:aws:iot:us-east-1:000000000000"
THING = "${iot:Connection.Thing.ThingName}"
D1 = iot_policy.connection("d1", ["d1"])


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow"} | one for one in statements]}


OWN = policy(
    {"Action": "iot:Connect", "Resource": f"{ARN}:client/{THING}",
     "Condition": {"Bool": {"iot:Connection.Thing.IsAttached": ["true"]}}},
    {"Action": ["iot:Publish", "iot:Receive"], "Resource": f"{ARN}:topic/f/{THING}/status"},
    {"Action": "iot:Subscribe", "Resource": [f"{ARN}:topicfilter/f/{THING}/task"]},
)  # fmt: skip


@pytest.mark.parametrize(
    ("action", "resource", "by", "expected"),
    [
        ("iot:Connect", "client/d1", D1, True),
        ("iot:Connect", "client/d2", D1, False),
        ("iot:Connect", "client/d2", iot_policy.connection("d2", ["d1"]), False),
        ("iot:Connect", "client/d1", iot_policy.connection("d1", []), False),
        ("iot:Publish", "topic/f/d1/status", D1, True),
        ("iot:Publish", "topic/f/d2/status", D1, False),
        ("iot:Publish", "topic/f/d1/status/x", D1, False),
        ("iot:RetainPublish", "topic/f/d1/status", D1, False),
        ("iot:Subscribe", "topicfilter/f/d1/task", D1, True),
        ("iot:Subscribe", "topicfilter/f/+/task", D1, False),
        ("iot:Subscribe", "topicfilter/f/d1/#", D1, False),
        ("iot:Subscribe", "topicfilter/#", D1, False),
        ("iot:Subscribe", "topicfilter/$aws/#", D1, False),
        ("iot:Subscribe", "topicfilter/$aws/things/d1/shadow/get", D1, False),
        ("iot:Receive", "topic/f/d2/status", D1, False),
    ],
)
def test_a_policy_of_iot_core_fills_in_the_name_of_the_thing(
    action: str, resource: str, by: dict[str, str], expected: bool
) -> None:
    assert iot_policy.allows(OWN, action, resource, by) is expected


def test_wildcards_are_the_policys_own_and_those_of_mqtt_are_letters_to_it() -> None:
    some = policy({"Action": "iot:*", "Resource": [f"{ARN}:topicfilter/a/*", f"{ARN}:topicfilter/b/?/+"]})
    for filter, expected in (("a/#", True), ("b/x/+", True), ("b/x/y", False), ("b/xx/+", False)):
        assert iot_policy.allows(some, "iot:Subscribe", f"topicfilter/{filter}", D1) is expected


def test_a_name_is_never_taken_for_a_wildcard_and_deny_wins() -> None:
    assert not iot_policy.allows(OWN, "iot:Publish", "topic/f/d2/status", iot_policy.connection("*", ["*"]))
    never = {"Effect": "Deny", "Action": "iot:Publish", "Resource": "*"}
    never_own = {"Statement": [*OWN["Statement"], never]}
    assert not iot_policy.allows(never_own, "iot:Publish", "topic/f/d1/status", D1)


def test_what_the_matcher_does_not_understand_it_refuses() -> None:
    strange = policy(
        {"Action": "iot:Publish", "Resource": "*", "Condition": {"DateLessThan": {"aws:x": "1"}}}
    )
    with pytest.raises(iot_policy.OutsideSubset):
        iot_policy.allows(strange, "iot:Publish", "topic/a", D1)
    with pytest.raises(iot_policy.OutsideSubset):
        iot_policy.rights(policy({"Action": "iot:Publish", "Resource": f"{ARN}:topic/a*b"}), D1)


def test_the_broker_is_told_what_the_policy_says() -> None:
    told = [(one["acltype"], one["topic"]) for one in iot_policy.rights(OWN, D1)]
    assert told == [
        ("publishClientSend", "f/d1/status"), ("publishClientReceive", "f/d1/status"),
        ("subscribeLiteral", "f/d1/task"),
    ]  # fmt: skip
    assert iot_policy.rights(OWN, iot_policy.connection("d1", [])) == []


# Rules


def selected(sql: str, topic: str, payload: bytes) -> Any:
    return rules.parse(sql).select(rules.Message(topic, payload, at=1.5))


def test_a_rule_selects_and_refuses() -> None:
    sql = (
        "SELECT encode(*, 'base64') AS said, topic(3) AS device, topic(4) AS word FROM 'f/m/+/status' "
        "WHERE state = 'refused' OR state = 'failed'"
    )
    assert rules.parse(sql).filter == "f/m/+/status"
    said = b'{"state": "failed"}'
    assert selected(sql, "f/m/d/status", said) == {
        "said": "eyJzdGF0ZSI6ICJmYWlsZWQifQ==", "device": "d", "word": "status",
    }  # fmt: skip
    assert selected(sql, "f/m/d/status", b'{"state": "accepted"}') is None
    assert selected(sql, "f/m/d/status", b"not JSON") is None


def test_a_rule_makes_objects_and_leaves_out_what_is_not_there() -> None:
    sql = "SELECT {'clientId': clientId, 'no': no.such} AS lifecycle, timestamp() AS at FROM '$aws/events/#'"
    assert selected(sql, "t", b'{"clientId": "d"}') == {"lifecycle": {"clientId": "d"}, "at": 1500}
    assert selected("SELECT * FROM 'a'", "a", b'{"x": 1}') == {"x": 1}
    assert selected("SELECT x FROM 'a' WHERE NOT (x IN [1, 2] AND topic() = 'a')", "a", b'{"x": 3}') == {
        "x": 3
    }


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT substring(topic(), 1) AS x FROM 'a'", "SELECT 1 FROM 'a'", "SELECT * FROM a", "SELECT *",
        "SELECT * FROM 'a' WHERE x LIKE 'y'", "SELECT (SELECT 1) FROM 'a'",
        "SELECT decode(x, 'base64') AS y FROM 'a'",
    ],
)  # fmt: skip
def test_sql_outside_of_what_is_understood_is_refused(sql: str) -> None:
    with pytest.raises(rules.OutsideSubset):
        rules.parse(sql)


# Metrics


def line(**more: Any) -> str:
    about = {
        "Timestamp": 1_700_000_000_000,
        "CloudWatchMetrics": [
            {
                "Namespace": "fleetfold",
                "Dimensions": [["run"]],
                "Metrics": [{"Name": "arrived", "Unit": "Count"}],
            }
        ],
    }
    return json.dumps({"_aws": about, "run": "a", "arrived": 3} | more)


def test_metrics_are_found_within_logs() -> None:
    assert emf.metrics(["START RequestId", line(), '{"level": "INFO"}']) == [
        ("fleetfold", "arrived", 3.0, "Count", (("run", "a"),))
    ]


@pytest.mark.parametrize(
    "wrong", [{"arrived": "3"}, {"arrived": None}, {"run": 7}, {"run": ""}, {"arrived": []}, {"_aws": {}}]
)
def test_a_line_that_cloudwatch_would_pass_over_is_found(wrong: dict[str, Any]) -> None:
    with pytest.raises(emf.Wrong):
        emf.metrics([line(**wrong)])
