"""A small stack for the emulator's own tests: one function, a queue, a bucket that tells of objects, a table,
an IoT rule, a machine that waits for a token.

device ─MQTT─▶ rule ─▶ queue ─▶ function ─▶ table, and an address of the bucket, signed, to the device
device ─PUT─▶ bucket ─▶ queue ─▶ function ─▶ the machine's token is answered
"""

import io
import json
import time
import zipfile
from typing import Any

NAME, CODE = "small", "small-code"
FUNCTION = """
import base64, json, os, time
import boto3
from botocore.config import Config

s3 = boto3.client("s3", config=Config(signature_version="s3v4"))
table = boto3.resource("dynamodb").Table(os.environ["TABLE"])
iot, states, scheduler = boto3.client("iot-data"), boto3.client("stepfunctions"), boto3.client("scheduler")

def handler(event, context):
    print(json.dumps({"asked": sorted(event), "memory": context.memory_limit_in_mb}))
    if "token" in event:
        table.put_item(Item={"pk": "token", "sk": "-", "token": event["token"]})
        return {}
    if "sleep" in event:
        time.sleep(event["sleep"])
    if "grab" in event:
        return {"bytes": len(b"x" * (event["grab"] << 20))}
    if "answer" in event:
        return "x" * event["answer"]
    if os.environ.get("DIE"):
        os.kill(os.getpid(), 9)
    if event.get("count"):
        table.update_item(Key={"pk": "count", "sk": "-"}, UpdateExpression="ADD n :one",
                          ExpressionAttributeValues={":one": 1})
    if "at" in event:
        scheduler.create_schedule(
            Name="once", GroupName=os.environ["GROUP"], ScheduleExpression=event["at"],
            FlexibleTimeWindow={"Mode": "OFF"}, ActionAfterCompletion="DELETE",
            Target={"Arn": context.invoked_function_arn, "RoleArn": os.environ["ROLE"],
                    "Input": json.dumps({"count": True})})
    failed = [r["messageId"] for r in event.get("Records", []) if not taken(json.loads(r["body"]))]
    return {"batchItemFailures": [{"itemIdentifier": id} for id in failed]}

def taken(said):
    if said.get("word") == "twice" and not seen(said["device"]):
        return False
    if "device" in said:
        place = {"Bucket": os.environ["BUCKET"], "Key": said["device"]}
        address = s3.generate_presigned_url("put_object", Params=place)
        iot.publish(topic="fleetfold/f/%s/task" % said["device"], qos=1, retain=True,
                    payload=json.dumps({"put": address, "said": base64.b64decode(said["said"]).decode()}))
    elif said.get("eventType"):
        table.put_item(Item={"pk": "presence", "sk": said["clientId"], "what": said["eventType"]})
    else:
        for record in said.get("Records", []):
            key = record["s3"]["object"]["key"]
            token = table.get_item(Key={"pk": "token", "sk": "-"}, ConsistentRead=True)["Item"]["token"]
            body = s3.get_object(Bucket=os.environ["BUCKET"], Key=key)["Body"].read()
            states.send_task_success(taskToken=token, output=json.dumps({"key": key, "size": len(body)}))
    return True

def seen(device):
    said = table.update_item(Key={"pk": "seen", "sk": device}, UpdateExpression="ADD n :one",
                             ReturnValues="ALL_NEW", ExpressionAttributeValues={":one": 1})
    return said["Attributes"]["n"] > 1
"""


def code() -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("small.py", FUNCTION)
    return whole.getvalue()


def policy(name: str) -> dict[str, Any]:
    """Of the small fleet's devices."""

    def own(kind: str, *words: str) -> list[dict[str, str]]:
        thing = "${!iot:Connection.Thing.ThingName}"
        arn = "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}"
        return [{"Fn::Sub": f"{arn}:{kind}/fleetfold/f/{thing}/{word}"} for word in words]

    client = (
        "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}:client/${!iot:Connection.Thing.ThingName}"
    )
    allow = [
        {"Action": "iot:Connect", "Resource": {"Fn::Sub": client}},
        {"Action": "iot:Publish", "Resource": own("topic", "status", "presence")},
        {"Action": "iot:RetainPublish", "Resource": own("topic", "presence")},
        {"Action": "iot:Subscribe", "Resource": own("topicfilter", "task")},
        {"Action": "iot:Receive", "Resource": own("topic", "task")},
    ]
    document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow"} | one for one in allow]}
    return {"Type": "AWS::IoT::Policy", "Properties": {"PolicyName": name, "PolicyDocument": document}}


def rule(sql: str) -> dict[str, Any]:
    sqs = {"QueueUrl": {"Ref": "Queue"}, "RoleArn": {"Fn::GetAtt": ["Rules", "Arn"]}, "UseBase64": False}
    payload = {"Sql": sql, "AwsIotSqlVersion": "2016-03-23", "Actions": [{"Sqs": sqs}]}
    return {"Type": "AWS::IoT::TopicRule", "Properties": {"TopicRulePayload": payload}}


def role(service: str, *statements: dict[str, Any]) -> dict[str, Any]:
    trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow"} | one for one in statements]}
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [trust]},
            "Policies": [{"PolicyName": "own", "PolicyDocument": document}],
        },
    }


def template(timeout: int = 5, more: dict[str, Any] | None = None) -> str:
    def arn(name: str) -> dict[str, Any]:
        return {"Fn::GetAtt": [name, "Arn"]}

    sub = "arn:${AWS::Partition}:"
    here = "${AWS::Region}:${AWS::AccountId}"
    machines, schedules = f"{sub}states:{here}:stateMachine:small", f"{sub}scheduler:{here}:schedule/small/*"
    bucket = {"Fn::Sub": "small-${AWS::AccountId}"}
    objects = {"Fn::Sub": sub + "s3:::small-${AWS::AccountId}/*"}
    wait = {
        "Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken", "End": True,
        "Parameters": {"FunctionName": "${Function}", "Payload": {"token.$": "$$.Task.Token"}},
        "TimeoutSecondsPath": "$.patience",
        "Catch": [{"ErrorEquals": ["States.Timeout"], "Next": "Late"}],
    }  # fmt: skip
    machine = {
        "StartAt": "Wait", "States": {"Wait": wait, "Late": {"Type": "Pass", "Result": "late", "End": True}},
    }  # fmt: skip
    table = arn("Table")
    small = {"Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "sqs:SendMessage"}
    small |= {"Resource": arn("Queue")}
    call = {"Action": "lambda:InvokeFunction", "Resource": arn("Function")}
    halves = ["ReportBatchItemFailures"]
    resources: dict[str, Any] = {
        "Queue": {"Type": "AWS::SQS::Queue", "Properties": {"VisibilityTimeout": 5}},
        "QueuePolicy": {
            "Type": "AWS::SQS::QueuePolicy",
            "Properties": {
                "Queues": [{"Ref": "Queue"}],
                "PolicyDocument": {"Version": "2012-10-17", "Statement": [small]},
            },
        },
        "Bucket": {
            "Type": "AWS::S3::Bucket",
            "DependsOn": "QueuePolicy",
            "Properties": {
                "BucketName": bucket,
                "NotificationConfiguration": {
                    "QueueConfigurations": [{"Event": "s3:ObjectCreated:*", "Queue": arn("Queue")}]
                },
            },
        },
        "Table": {
            "Type": "AWS::DynamoDB::Table",
            "Properties": {
                "BillingMode": "PAY_PER_REQUEST",
                "AttributeDefinitions": [{"AttributeName": n, "AttributeType": "S"} for n in ("pk", "sk")],
                "KeySchema": [
                    {"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"},
                ],
            },
        },
        "Own": role(
            "lambda.amazonaws.com",
            {"Action": ["dynamodb:PutItem", "dynamodb:GetItem", "dynamodb:UpdateItem"], "Resource": table},
            {"Action": ["s3:GetObject", "s3:PutObject"], "Resource": objects},
            {"Action": ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"],
             "Resource": arn("Queue")},
            {"Action": ["iot:Publish", "iot:RetainPublish"],
             "Resource": {"Fn::Sub": sub + "iot:${AWS::Region}:${AWS::AccountId}:topic/fleetfold/f/*/task"}},
            {"Action": "states:SendTaskSuccess", "Resource": {"Fn::Sub": machines}},
            {"Action": "scheduler:CreateSchedule", "Resource": {"Fn::Sub": schedules}},
            {"Action": "iam:PassRole", "Resource": arn("Timer")},
        ),
        "Rules": role("iot.amazonaws.com", {"Action": "sqs:SendMessage", "Resource": arn("Queue")}),
        "Timer": role("scheduler.amazonaws.com", {"Action": "lambda:InvokeFunction", "Resource": {
            "Fn::Sub": sub + "lambda:${AWS::Region}:${AWS::AccountId}:function:small"}}),
        "Driver": role("states.amazonaws.com", call),
        "Function": {
            "Type": "AWS::Serverless::Function",
            "Properties": {
                "FunctionName": "small", "Runtime": "python3.11", "Handler": "small.handler",
                "CodeUri": f"s3://{CODE}/small.zip", "Role": arn("Own"), "Timeout": timeout,
                "MemorySize": 256,
                "Environment": {"Variables": {
                    "TABLE": {"Ref": "Table"}, "BUCKET": bucket, "GROUP": "small", "ROLE": arn("Timer")}},
                "Events": {"Mail": {"Type": "SQS", "Properties": {
                    "Queue": arn("Queue"), "BatchSize": 10, "FunctionResponseTypes": halves}}},
            },
        },
        "Machine": {
            "Type": "AWS::Serverless::StateMachine",
            "Properties": {
                "Name": "small", "Role": arn("Driver"), "Definition": machine,
                "DefinitionSubstitutions": {"Function": arn("Function")},
            },
        },
        "Schedules": {"Type": "AWS::Scheduler::ScheduleGroup", "Properties": {"Name": "small"}},
        "Devices": policy("small-devices"),
        "Said": rule("SELECT encode(*, 'base64') AS said, topic(3) AS device, topic(4) AS word "
                     "FROM 'fleetfold/f/+/status'"),
        "Lives": rule("SELECT * FROM '$aws/events/presence/+/+'"),
        **(more or {}),
    }  # fmt: skip
    return json.dumps(
        {
            "AWSTemplateFormatVersion": "2010-09-09",
            "Transform": "AWS::Serverless-2016-10-31",
            "Resources": resources,
        }
    )


def deploy(client: Any, body: str, kind: str = "CREATE") -> str:
    """By a change set of its own. → the stack's status"""
    change = f"change-{time.time_ns()}"
    client.create_change_set(
        StackName=NAME, ChangeSetName=change, ChangeSetType=kind, TemplateBody=body,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
    )  # fmt: skip
    client.get_waiter("change_set_create_complete").wait(
        StackName=NAME, ChangeSetName=change, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    client.execute_change_set(StackName=NAME, ChangeSetName=change)
    waiter = client.get_waiter(f"stack_{kind.lower()}_complete")
    waiter.wait(StackName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    return str(client.describe_stacks(StackName=NAME)["Stacks"][0]["StackStatus"])
