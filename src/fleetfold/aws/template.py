"""The whole stack as data, and as the text that CloudFormation is given. Nothing in it runs between rounds.

    S3 ─▶ Arrivals ─▶ collect ─┐                          rights.py    who may do what, and why
    IoT rules ─▶ Said ─▶ status ┼─▶ machine ─▶ initiate, fold_shard × n, publish      machine.py  the workflow
    Scheduler ─▶ tick ──────────┘                         watching.py  alarms and the dashboard

Everything is named after the stack, or by CloudFormation. The bucket and the table outlive a stack that is
deleted by hand: `fleetfold aws destroy` says what is in them before it removes them.
"""

import json
from typing import Any

from fleetfold.aws import rights, watching
from fleetfold.aws.machine import text as machine_text
from fleetfold.aws.policies import LONGEST, claim_policy, device_policy, provisioning_template
from fleetfold.aws.rights import FUNCTIONS, MACHINE, allow, arn_of, function_arn, named, resource, role, sub

Data = dict[str, Any]

SECONDS = {"initiate": 300, "collect": 120, "status": 120, "tick": 300, "fold_shard": 900, "publish": 900}
"""How long each function may take. Inviting 10,000 devices takes half a minute; a batch of 1,000 arrivals
some seconds; a round that is not cut is folded by `publish` alone: it and a shard have all that there is."""
BATCH = {"collect": 1000, "status": 100}
"""Messages that a function is given at once: 1,000 notifications of S3 are 1 MB of the 6 MB that it may be
given; what devices say is up to 128 KB each, so that Lambda cuts at 6 MB before."""
WINDOW = 1
"""Seconds that a batch is gathered for: no round waits longer for its last update."""
AT_ONCE = 5
"""Batches of one queue at once: all of them change the same round's record, one after the other."""
TRIES = 5
"""Times that a message is given to a function before it is laid aside."""
DEAD_DAYS, UNCHANGED_DAYS = 14, 30
"""Days that a message is kept aside for a person, and that what was retired or overwritten in the bucket can
be brought back."""

SAID: dict[str, str] = {
    "status": " WHERE state = 'refused' OR state = 'failed'",
    "presence": "",
    "ask": "",
    "answer": "",
}
"""What devices say that a function has to hear, by the last word of its topic. That an update is delivered is
heard from the bucket, so progress is not forwarded."""
CONNECTED = (
    "SELECT {'clientId': clientId, 'eventType': eventType, 'timestamp': timestamp, "
    "'versionNumber': versionNumber} AS lifecycle FROM '$aws/events/presence/+/+'"
)
"""The broker's own word on who is connected, so that no device has to send heartbeats. It tells of every
client of the account; `status` knows the fleet's."""


def template() -> Data:
    """The template, before the SAM transform."""
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Transform": "AWS::Serverless-2016-10-31",
        "Description": "fleetfold: federated learning for a fleet, with nothing running between rounds",
        "Parameters": _parameters(),
        "Conditions": {
            "HasKey": _given("KmsKey"),
            "HasTopic": _given("AlarmTopic"),
            "Scheduled": {"Fn::And": [_given("ScheduleExpression"), _given("ScheduledRun")]},
            "WithCoordinator": {"Fn::Equals": [{"Ref": "Coordinator"}, "yes"]},
        },
        "Globals": {"Function": _every_function()},
        "Resources": {
            **_store(),
            **_queues(),
            **_functions(),
            **_workflow(),
            **_wakes(),
            **_devices(),
            **_claims(),
            **_coordinator(),
            **watching.alarms(),
            "Dashboard": watching.dashboard(),
        },
        "Outputs": _outputs(),
    }


def text() -> str:
    """As JSON, which is YAML too; the same each time."""
    return json.dumps(template(), separators=(",", ":"), ensure_ascii=False) + "\n"


def _parameters() -> Data:
    def word(default: str, description: str, **more: Any) -> Data:
        return {"Type": "String", "Default": default, "Description": description, **more}

    def number(default: int, least: int, most: int, description: str) -> Data:
        return {
            "Type": "Number", "Default": default, "MinValue": least, "MaxValue": most,
            "Description": description,
        }  # fmt: skip

    return {
        "Fleet": word(
            "main", "the fleet's name: its topics and its registry",
            AllowedPattern=f"[A-Za-z0-9][A-Za-z0-9_-]{{0,{LONGEST - 1}}}",
        ),
        "CodeBucket": {"Type": "String", "Description": "where the functions' zip lies"},
        "CodeKey": {"Type": "String", "Description": "its key there, which says its digest"},
        "Runtime": word(
            "python3.13", "of the functions: what the zip was made for",
            AllowedValues=["python3.11", "python3.12", "python3.13", "python3.14"],
        ),
        "Memory": number(512, 256, 10240, "MB of the functions that drive a run"),
        "FoldMemory": number(512, 256, 10240, "MB of those that fold: fold_shard and publish"),
        "Folders": number(40, 1, 10000, "shards that a round is cut into at most"),
        "FoldExecution": word(
            "STANDARD", "of shards beyond 40: EXPRESS costs less, and may take five minutes each",
            AllowedValues=["STANDARD", "EXPRESS"],
        ),
        "IotEndpoint": word("", "host of the account's IoT data endpoint; none: the region's"),
        "LogDays": {
            **number(30, 1, 3653, "days that logs are kept"),
            "AllowedValues": [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1827, 3653],
        },
        "KmsKey": word("", "ARN of a key of yours that the bucket is encrypted by; none: S3's own"),
        "AlarmTopic": word("", "ARN of an SNS topic that is told of alarms"),
        "ScheduleExpression": word("", "when one round is trained, as rate(1 day) or cron(0 3 * * ? *)"),
        "ScheduledRun": word("", "the run whose round it is"),
        "Coordinator": word(
            "no", "whether runs may have a long-lived process of their own, on Fargate",
            AllowedValues=["yes", "no"],
        ),
        "CoordinatorImage": word("", "its image"),
        "CoordinatorVpc": word("", "the network that it runs in"),
        "CoordinatorSubnets": word("", "subnets of that network, with commas between"),
    }  # fmt: skip


def _store() -> Data:
    """Models, updates and whatever else is large, and one table for what is small.

    Updates cannot be told by a prefix from models that are kept for good, for the run's name stands before
    both. So no rule expires them: the coordinator retires them when no round can credit them any more
    (`keep`), and since the bucket is versioned, a rule removes what was retired so many days ago.
    """
    suffix = {"Fn::Select": [0, {"Fn::Split": ["-", {"Fn::Select": [2, _split("AWS::StackId", "/")]}]}]}
    kept = {"DeletionPolicy": "RetainExceptOnCreate", "UpdateReplacePolicy": "Retain"}
    key = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": {"Ref": "KmsKey"}}
    return {
        "Objects": {
            "Type": "AWS::S3::Bucket",
            "DependsOn": ["ArrivalsPolicy"],
            **kept,
            "Metadata": _skip(
                CKV_AWS_18="a log of accesses would need a second bucket; CloudTrail's data events have them",
                CKV_AWS_145="a key of the user's is the parameter KmsKey; S3's own costs nothing",
            ),
            "Properties": {
                "BucketName": {"Fn::Sub": [f"{_BUCKET}-${{Suffix}}", {"Suffix": suffix}]},
                "PublicAccessBlockConfiguration": {
                    "BlockPublicAcls": True,
                    "BlockPublicPolicy": True,
                    "IgnorePublicAcls": True,
                    "RestrictPublicBuckets": True,
                },
                "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
                "VersioningConfiguration": {"Status": "Enabled"},
                "BucketEncryption": {
                    "ServerSideEncryptionConfiguration": [
                        {
                            "ServerSideEncryptionByDefault": {
                                "Fn::If": ["HasKey", key, {"SSEAlgorithm": "AES256"}]
                            },
                            "BucketKeyEnabled": True,
                        }
                    ]
                },
                "LifecycleConfiguration": {
                    "Rules": [
                        {
                            "Id": "retired-updates",
                            "Status": "Enabled",
                            "Prefix": "",
                            "NoncurrentVersionExpiration": {"NoncurrentDays": UNCHANGED_DAYS},
                            "ExpiredObjectDeleteMarker": True,
                        },
                        {
                            "Id": "broken-uploads",
                            "Status": "Enabled",
                            "Prefix": "",
                            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
                        },
                    ]
                },
                "NotificationConfiguration": {
                    "QueueConfigurations": [
                        {
                            "Event": "s3:ObjectCreated:*",
                            "Queue": arn_of("Arrivals"),
                            "Filter": {"S3Key": {"Rules": [{"Name": "prefix", "Value": "runs/"}]}},
                        }
                    ]
                },
            },
        },
        "ObjectsPolicy": {
            "Type": "AWS::S3::BucketPolicy",
            "Metadata": _why("OnlyOverTls"),
            "Properties": {
                "Bucket": {"Ref": "Objects"},
                "PolicyDocument": _only_over_tls(
                    "s3:*", arn_of("Objects"), sub("${Objects.Arn}/*")
                ),
            },
        },
        "Table": {
            "Type": "AWS::DynamoDB::Table",
            **kept,
            "Metadata": _skip(
                CKV_AWS_119="encrypted by DynamoDB's own key: a key of the user's costs by the request, and "
                "who may read the table is up to its rights",
            ),
            "Properties": {
                "BillingMode": "PAY_PER_REQUEST",
                "AttributeDefinitions": [
                    {"AttributeName": name, "AttributeType": kind}
                    for name, kind in (("pk", "S"), ("sk", "S"), ("g", "S"), ("s", "N"))
                ],
                "KeySchema": _keys("pk", "sk"),
                "GlobalSecondaryIndexes": [
                    {
                        "IndexName": "newest",
                        "KeySchema": _keys("g", "s"),
                        "Projection": {"ProjectionType": "KEYS_ONLY"},
                    }
                ],
                "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
            },
        },
    }  # fmt: skip


def _queues() -> Data:
    """What comes to the bucket and what devices say, each with a queue for what no function could take in."""
    made: Data = {}
    encrypted = _skip(
        CKV_AWS_27="encrypted by SQS's own key (SqsManagedSseEnabled), which S3 may write under"
    )
    sources = {
        "Arrivals": ("s3", {"aws:SourceArn": sub(f"arn:${{AWS::Partition}}:s3:::{_BUCKET}-*")}, "collect"),
        "Said": ("", {}, "status"),
    }
    for queue, (source, where, function) in sources.items():
        made[f"{queue}Dead"] = {
            "Type": "AWS::SQS::Queue",
            "Metadata": encrypted,
            "Properties": {"MessageRetentionPeriod": DEAD_DAYS * 86400, "SqsManagedSseEnabled": True},
        }
        made[queue] = {
            "Type": "AWS::SQS::Queue",
            "Metadata": encrypted,
            "Properties": {
                "VisibilityTimeout": 6
                * SECONDS[function],  # what Lambda's guide asks for: its tries, and time
                "MessageRetentionPeriod": 4 * 86400,
                "SqsManagedSseEnabled": True,
                "RedrivePolicy": {
                    "deadLetterTargetArn": arn_of(f"{queue}Dead"),
                    "maxReceiveCount": TRIES,
                },
            },
        }
        sender = {
            "Sid": "FromTheBucket",
            "Effect": "Allow",
            "Principal": {"Service": "s3.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": arn_of(queue),
            "Condition": {
                "ArnLike": where,
                "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}},
            },
        }
        for name in (queue, f"{queue}Dead"):
            document = _only_over_tls("sqs:*", arn_of(name))
            if source and name == queue:
                document["Statement"].append(sender)
            made[f"{name}Policy"] = {
                "Type": "AWS::SQS::QueuePolicy",
                "Metadata": _why("OnlyOverTls"),
                "Properties": {"Queues": [{"Ref": name}], "PolicyDocument": document},
            }
    return made


def _every_function() -> Data:
    return {
        "CodeUri": {"Bucket": {"Ref": "CodeBucket"}, "Key": {"Ref": "CodeKey"}},
        "Runtime": {"Ref": "Runtime"},
        "Architectures": ["x86_64"],
        "Environment": {
            "Variables": {
                "FLEETFOLD_FLEET": {"Ref": "Fleet"},
                "FLEETFOLD_BUCKET": {"Ref": "Objects"},
                "FLEETFOLD_TABLE": {"Ref": "Table"},
                "FLEETFOLD_MACHINE": MACHINE,
                "FLEETFOLD_SCHEDULES": {"Ref": "Schedules"},
                "FLEETFOLD_TICK": function_arn("tick"),
                "FLEETFOLD_SCHEDULER_ROLE": arn_of("SchedulerRole"),
                "FLEETFOLD_FOLDERS": {"Ref": "Folders"},
                "FLEETFOLD_IOT": {"Ref": "IotEndpoint"},
                "POWERTOOLS_SERVICE_NAME": {"Ref": "Fleet"},  # in every line, and of every metric
                "OPENBLAS_NUM_THREADS": "1",  # nothing of ours multiplies matrices; its threads cost memory
            }
        },
    }


def _functions() -> Data:
    made: Data = {}
    no_queue = "its caller, a queue or the workflow, tries again and keeps what fails"
    for function in FUNCTIONS:
        name, queue = resource(function), {"collect": "Arrivals", "status": "Said"}.get(function)
        skipped = {
            "CKV_AWS_115": "a limit of its own would take from the account's; queues and Map have theirs",
            "CKV_AWS_116": no_queue,
            "CKV_AWS_117": "it talks to AWS only, and a network of its own would cost more than the rounds",
            "CKV_AWS_173": "names and addresses, nothing secret; encrypted by Lambda's own key",
        }
        made[f"{name}Log"] = _log(f"/aws/lambda/{named(function)}")
        made[f"{name}Role"] = role("lambda", rights.of(function))
        properties: Data = {
            "FunctionName": sub(named(function)),
            "Handler": f"fleetfold.aws.handlers.{function}",
            "MemorySize": {"Ref": "FoldMemory" if function in ("fold_shard", "publish") else "Memory"},
            "Timeout": SECONDS[function],
            "Role": arn_of(f"{name}Role"),
            "LoggingConfig": {"LogGroup": {"Ref": f"{name}Log"}},
        }
        if queue:
            properties["Events"] = {
                queue: {
                    "Type": "SQS",
                    "Properties": {
                        "Queue": arn_of(queue),
                        "BatchSize": BATCH[function],
                        "MaximumBatchingWindowInSeconds": WINDOW,
                        "FunctionResponseTypes": ["ReportBatchItemFailures"],
                        "ScalingConfig": {"MaximumConcurrency": AT_ONCE},
                    },
                }
            }
        if function == "tick":  # which Scheduler calls, and does not wait for
            properties["DeadLetterQueue"] = {"Type": "SQS", "TargetArn": arn_of("SaidDead")}
            del skipped["CKV_AWS_116"]
        made[name] = {
            "Type": "AWS::Serverless::Function",
            "Metadata": _skip(**skipped),
            "Properties": properties,
        }
    return made


def _workflow() -> Data:
    executions = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:execution:${AWS::StackName}"
    invoked = [function_arn(name) for name in ("initiate", "fold_shard", "publish")]
    run_task: list[Data] = [
        {
            "Fn::If": [
                "WithCoordinator",
                statement,
                {"Ref": "AWS::NoValue"},
            ]
        }
        for statement in (
            allow("Begin", ["ecs:RunTask"], {"Ref": "Task"}),
            allow(
                "Track",
                ["ecs:StopTask", "ecs:DescribeTasks"],
                sub("arn:${AWS::Partition}:ecs:${AWS::Region}:${AWS::AccountId}:task/${AWS::StackName}/*"),
            ),
            allow(
                "Lend", ["iam:PassRole"], arn_of("TaskRole"), arn_of("TaskStartRole"),
                when={"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}},
            ),
            allow(
                "Watch",
                ["events:PutTargets", "events:PutRule", "events:DescribeRule"],
                sub(
                    "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:"
                    "rule/StepFunctionsGetEventsForECSTaskRule"
                ),
            ),
        )
    ]  # fmt: skip
    machine_role = role(
        "states",
        [
            allow("Call", ["lambda:InvokeFunction"], *invoked),
            allow("Anew", ["states:StartExecution"], MACHINE),
            allow(
                "Children",
                ["states:DescribeExecution", "states:StopExecution", "states:RedriveExecution"],
                sub(f"{executions}:*"), sub(f"{executions}/*"),
            ),
            allow(
                "Deliver",
                [
                    f"logs:{action}"
                    for action in (
                        "CreateLogDelivery", "GetLogDelivery", "UpdateLogDelivery", "DeleteLogDelivery",
                        "ListLogDeliveries", "PutResourcePolicy", "DescribeResourcePolicies",
                        "DescribeLogGroups",
                    )
                ],
                "*",
            ),
            *run_task,
        ],
        when={"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
    )  # fmt: skip
    machine_role["Metadata"] = {"Wildcards": {s: rights.REASONS[s] for s in ("Children", "Deliver", "Track")}}
    fargate = {
        "Cluster": {"Fn::GetAtt": ["Cluster", "Arn"]},
        "Task": {"Ref": "Task"},
        "Subnets": {"Ref": "CoordinatorSubnets"},
        "SecurityGroup": {"Fn::GetAtt": ["TaskGroup", "GroupId"]},
        "Container": CONTAINER,
    }
    return {
        "WorkflowLog": _log("/aws/vendedlogs/states/${AWS::StackName}"),
        "WorkflowRole": machine_role,
        "Workflow": {
            "Type": "AWS::StepFunctions::StateMachine",
            "Metadata": _skip(
                CKV_AWS_284="the ledger has the timeline of every round; X-Ray would need rights to `*`"
            ),
            "Properties": {
                "StateMachineName": {"Ref": "AWS::StackName"},
                "StateMachineType": "STANDARD",
                "RoleArn": arn_of("WorkflowRole"),
                "DefinitionString": {
                    "Fn::If": ["WithCoordinator", machine_text(coordinator=True), machine_text()]
                },
                "DefinitionSubstitutions": {
                    "Partition": {"Ref": "AWS::Partition"},
                    **{resource(f): function_arn(f) for f in ("initiate", "fold_shard", "publish")},
                    "FoldExecution": {"Ref": "FoldExecution"},
                    **{
                        name: {"Fn::If": ["WithCoordinator", value, {"Ref": "AWS::NoValue"}]}
                        for name, value in fargate.items()
                    },
                },
                "LoggingConfiguration": {
                    "Level": "ERROR",
                    "IncludeExecutionData": True,
                    "Destinations": [{"CloudWatchLogsLogGroup": {"LogGroupArn": arn_of("WorkflowLog")}}],
                },
            },
        },
    }


def _wakes() -> Data:
    """One-time wake-ups at deadlines, which the functions make, and the schedule of the user's, if any."""
    from_here = {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
    started = role("scheduler", [allow("Start", ["states:StartExecution"], MACHINE)], when=from_here)
    return {
        "Schedules": {
            "Type": "AWS::Scheduler::ScheduleGroup",
            "Properties": {"Name": {"Ref": "AWS::StackName"}},
        },
        "SchedulerRole": role(
            "scheduler", [allow("Call", ["lambda:InvokeFunction"], function_arn("tick"))], when=from_here
        ),
        "ScheduleRole": {"Condition": "Scheduled", **started},
        "Schedule": {
            "Type": "AWS::Scheduler::Schedule",
            "Condition": "Scheduled",
            "Metadata": _skip(CKV_AWS_297="a run's name, nothing secret; encrypted by Scheduler's own key"),
            "Properties": {
                "GroupName": {"Ref": "Schedules"},
                "ScheduleExpression": {"Ref": "ScheduleExpression"},
                "FlexibleTimeWindow": {"Mode": "OFF"},
                "Target": {
                    "Arn": MACHINE,
                    "RoleArn": arn_of("ScheduleRole"),
                    "Input": sub('{"run": "${ScheduledRun}", "rounds": 1}'),
                    "RetryPolicy": {"MaximumRetryAttempts": 10, "MaximumEventAgeInSeconds": 3600},
                },
            },
        },
    }


def _devices() -> Data:
    """Whom devices are, what a certificate of theirs allows, and the rules that bring what they say."""
    policy = device_policy(
        "${AWS::Region}", "${AWS::AccountId}", "${Fleet}", "${AWS::Partition}",
        thing="${!iot:Connection.Thing.ThingName}",
    )  # fmt: skip
    rules: Data = {}
    for word, where in SAID.items():
        sql = (
            f"SELECT encode(*, 'base64') AS said, topic(3) AS device, topic(4) AS word "
            f"FROM 'fleetfold/${{Fleet}}/+/{word}'{where}"
        )
        rules[f"{word.capitalize()}Rule"] = _rule(sub(sql), f"what devices say in {word}")
    rules["ConnectedRule"] = _rule(CONNECTED, "which devices are connected, as the broker knows it")
    return {
        "Devices": {
            "Type": "AWS::IoT::ThingGroup",
            "Properties": {"ThingGroupName": {"Ref": "AWS::StackName"}},
        },
        "DevicePolicy": {
            "Type": "AWS::IoT::Policy",
            "Properties": {
                "PolicyName": sub("${AWS::StackName}-device"),
                "PolicyDocument": _subbed(policy),
            },
        },
        "RuleRole": role(
            "iot",
            [allow("Forward", ["sqs:SendMessage"], arn_of("Said"), arn_of("SaidDead"))],
            when={"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
        ),
        **rules,
    }


def _claims() -> Data:
    """What many new devices may share until each has a certificate of its own. There is no claim until
    somebody makes one."""
    name = "${AWS::StackName}-claim"
    policy = claim_policy("${AWS::Region}", "${AWS::AccountId}", "${Fleet}", name, "${AWS::Partition}")
    body = provisioning_template("${Fleet}", "${AWS::StackName}", "${AWS::StackName}-device")
    iot = "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}"
    may = [
        "AddThingToThingGroup", "AttachPolicy", "AttachPrincipalPolicy", "AttachThingPrincipal",
        "CreateThing", "DescribeCertificate", "DescribeThing", "DescribeThingGroup", "GetPolicy",
        "ListPolicyPrincipals", "ListPrincipalPolicies", "ListThingGroupsForThing", "ListThingPrincipals",
        "UpdateCertificate",
    ]  # fmt: skip
    return {
        "ClaimPolicy": {
            "Type": "AWS::IoT::Policy",
            "Metadata": _why("iot:Connect"),
            "Properties": {"PolicyName": sub(name), "PolicyDocument": _subbed(policy)},
        },
        "ProvisioningRole": role(
            "iot",
            [
                allow(
                    "Provision", [f"iot:{action}" for action in may],
                    sub(f"{iot}:thing/*"), sub(f"{iot}:cert/*"), sub(f"{iot}:thinggroup/${{Devices}}"),
                    sub(f"{iot}:policy/${{DevicePolicy}}"),
                ),
                allow("Register", ["iot:RegisterThing"], "*"),
            ],
            when={"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
        ),
        "ProvisioningTemplate": {
            "Type": "AWS::IoT::ProvisioningTemplate",
            "Properties": {
                "TemplateName": sub(name),
                "Description": "a new device of the fleet, under a name that is free",
                "Enabled": True,
                "ProvisioningRoleArn": arn_of("ProvisioningRole"),
                "TemplateBody": sub(json.dumps(body)),
            },
        },
    }  # fmt: skip


def _coordinator() -> Data:
    """For apps that need a process that lives as long as the run. None runs until a run asks for it."""
    only = {"Condition": "WithCoordinator"}
    tell = allow("Tell", ["logs:CreateLogStream", "logs:PutLogEvents"], arn_of("TaskLog"))
    pull = [
        allow(
            "Image",
            ["ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"],
            sub(
                "arn:${AWS::Partition}:ecr:${AWS::Region}:${AWS::AccountId}:repository/fleetfold-coordinator"
            ),
        ),
        allow("Token", ["ecr:GetAuthorizationToken"], "*"),
    ]
    return {
        "Cluster": {
            "Type": "AWS::ECS::Cluster",
            **only,
            "Properties": {
                "ClusterName": {"Ref": "AWS::StackName"},
                "ClusterSettings": [{"Name": "containerInsights", "Value": "enabled"}],
            },
        },
        "TaskLog": {**_log("/fleetfold/${AWS::StackName}/coordinator"), **only},
        "TaskRole": {**role("ecs-tasks", list(rights.DRIVE)), **only},
        "TaskStartRole": {**role("ecs-tasks", [*pull, tell]), **only},
        "TaskGroup": {
            "Type": "AWS::EC2::SecurityGroup",
            **only,
            # The network's parameter may be empty, where there is no coordinator.
            "Metadata": {"cfn-lint": {"config": {"ignore_checks": ["W1030"]}}},
            "Properties": {
                "GroupDescription": "a coordinator asks AWS, and nobody asks it",
                "VpcId": {"Ref": "CoordinatorVpc"},
                "SecurityGroupEgress": [
                    {
                        "IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIp": "0.0.0.0/0",
                        "Description": "AWS",
                    }
                ],
            },
        },
        "Task": {
            "Type": "AWS::ECS::TaskDefinition",
            **only,
            "Properties": {
                "Family": sub("${AWS::StackName}-coordinator"),
                "Cpu": "512",
                "Memory": "1024",
                "NetworkMode": "awsvpc",
                "RequiresCompatibilities": ["FARGATE"],
                "ExecutionRoleArn": arn_of("TaskStartRole"),
                "TaskRoleArn": arn_of("TaskRole"),
                "ContainerDefinitions": [
                    {
                        "Name": CONTAINER,
                        "Image": {"Ref": "CoordinatorImage"},
                        "Essential": True,
                        "ReadonlyRootFilesystem": True,
                        "Environment": [
                            {"Name": name, "Value": value}
                            for name, value in _every_function()["Environment"]["Variables"].items()
                        ],
                        "LogConfiguration": {
                            "LogDriver": "awslogs",
                            "Options": {
                                "awslogs-group": {"Ref": "TaskLog"},
                                "awslogs-region": {"Ref": "AWS::Region"},
                                "awslogs-stream-prefix": "coordinator",
                            },
                        },
                    }
                ],
            },
        },
    }  # fmt: skip


CONTAINER = "coordinator"


def _outputs() -> Data:
    values = {
        "Bucket": {"Ref": "Objects"},
        "Table": {"Ref": "Table"},
        "Machine": {"Ref": "Workflow"},
        "Fleet": {"Ref": "Fleet"},
        "IotEndpoint": {"Ref": "IotEndpoint"},
        "DevicePolicy": {"Ref": "DevicePolicy"},
        "ThingGroup": {"Ref": "Devices"},
        "ClaimPolicy": {"Ref": "ClaimPolicy"},
        "ProvisioningTemplate": {"Ref": "ProvisioningTemplate"},
        "Schedules": {"Ref": "Schedules"},
        **{name: {"Ref": name} for name in ("Arrivals", "ArrivalsDead", "Said", "SaidDead")},
        **{resource(f): {"Ref": resource(f)} for f in FUNCTIONS},
    }
    return {name: {"Value": value} for name, value in values.items()}


_BUCKET = "${AWS::StackName}-${AWS::AccountId}"
"""What the bucket's name begins with; behind it is what no other stack of that name had, so that a bucket
that was kept is never in the way."""


def _rule(sql: str | Data, description: str) -> Data:
    """Into the queue; what cannot be queued is laid aside with the reason."""

    def queued(queue: str) -> Data:
        return {"Sqs": {"QueueUrl": {"Ref": queue}, "RoleArn": arn_of("RuleRole"), "UseBase64": False}}

    return {
        "Type": "AWS::IoT::TopicRule",
        "Properties": {
            "TopicRulePayload": {
                "AwsIotSqlVersion": "2016-03-23",
                "Description": description,
                "RuleDisabled": False,
                "Sql": sql,
                "Actions": [queued("Said")],
                "ErrorAction": queued("SaidDead"),
            }
        },
    }


def _log(name: str) -> Data:
    return {
        "Type": "AWS::Logs::LogGroup",
        "Metadata": _skip(CKV_AWS_158="encrypted by CloudWatch's own key; there are no secrets in logs"),
        "Properties": {"LogGroupName": sub(name), "RetentionInDays": {"Ref": "LogDays"}},
    }


def _only_over_tls(action: str, *resources: Any) -> Data:
    statement = {
        "Sid": "OnlyOverTls",
        "Effect": "Deny",
        "Principal": "*",
        "Action": action,
        "Resource": list(resources),
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def _subbed(document: Any) -> Any:
    """The same, with what is `${…}` in its words left to CloudFormation."""
    if isinstance(document, dict):
        return {key: _subbed(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_subbed(value) for value in document]
    return sub(document) if isinstance(document, str) and "${" in document else document


def _skip(**reasons: str) -> Data:
    """What checkov would have otherwise, and why it is not so here."""
    return {"checkov": {"skip": [{"id": id, "comment": why} for id, why in reasons.items()]}}


def _why(*sids: str) -> Data:
    return {"Wildcards": {sid: rights.REASONS[sid] for sid in sids}}


def _given(parameter: str) -> Data:
    return {"Fn::Not": [{"Fn::Equals": [{"Ref": parameter}, ""]}]}


def _split(what: str, at: str) -> Data:
    return {"Fn::Split": [at, {"Ref": what}]}


def _keys(partition: str, sort: str) -> list[Data]:
    return [
        {"AttributeName": partition, "KeyType": "HASH"},
        {"AttributeName": sort, "KeyType": "RANGE"},
    ]
