"""AWS, emulated on this machine: everything that a deployed fleet needs, started and stopped together.

with Stack(folder) as aws:
    aws.environment       for whoever speaks to it: endpoints, region, keys that pass for an account's own
    aws.client("s3")      boto3's, the same way
    aws.core              IoT Core (iot.py)      aws.schedules   the Scheduler's clock     aws.calls   the log
    aws.ask("f", ...)     what is to happen to the next invocations of a function

None of this is AWS. What each part does not show is said in its own file.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config

from tests.aws.stack import environments
from tests.aws.stack.calls import Calls
from tests.aws.stack.child import spawn, stop
from tests.aws.stack.iot import Core
from tests.aws.stack.registry import KINDS
from tests.aws.stack.schedules import Schedules
from tests.hub.conftest import free_port

REGION, ACCOUNT = "us-east-1", "000000000000"
READY = 120.0
"""Seconds that LocalStack may take to start."""
FALLBACK = "deployed as a fallback"
"""What LocalStack says of a resource that it only pretends to have made."""


class Stack:
    """`folder`: where everything lies, empty or not there yet. `lambdas`: more for each function's
    environment."""

    def __init__(self, folder: Path, lambdas: Mapping[str, str] | None = None) -> None:
        self.folder, self._lambdas = folder, dict(lambdas or {})
        folder.mkdir(parents=True, exist_ok=True)
        self.calls = Calls(folder)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._clients: dict[str, Any] = {}

    def __enter__(self) -> Self:
        since = time.monotonic()
        self._localstack: subprocess.Popen[bytes] | None = None
        python = environments.program("localstack")
        runtime = environments.program("lambda")
        self.core = Core(self.folder, self.calls, REGION, ACCOUNT)
        try:
            self._launch(python, runtime)
            self.core.start()
            self.core.send = self._send
            self._await()
            self.schedules = Schedules(
                self.client("scheduler"), self.client("lambda"), self.client("stepfunctions"), self.calls
            )
            self.schedules.start()
        except BaseException:
            if self._localstack is not None:
                stop(self._localstack)
            raise
        print(f"AWS is emulated at {self.url} after {time.monotonic() - since:.1f} s", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.schedules.stop()
        for client in self._clients.values():
            client.close()
        self.core.stop()
        if self._localstack is not None:
            stop(self._localstack, 5.0)

    @property
    def endpoints(self) -> dict[str, str]:
        """Of the emulators, as boto3 and obstore find them."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL_IOT": self.core.url,
            "AWS_ENDPOINT_URL_IOT_DATA_PLANE": self.core.url,
        }

    @property
    def environment(self) -> dict[str, str]:
        """Of a person with all rights in the account."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        return self.endpoints | keys | {"AWS_DEFAULT_REGION": REGION, "AWS_REGION": REGION}

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self.session().client(
                service, endpoint_url=self.core.url if service in ("iot", "iot-data") else self.url,
                config=Config(signature_version="s3v4", retries={"max_attempts": 3})
                if service == "s3"
                else Config(retries={"max_attempts": 3}, max_pool_connections=32),
            )  # fmt: skip
        return self._clients[service]

    def session(self) -> Any:
        return boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)

    # What is to happen to functions

    def ask(self, function: str, *wanted: Mapping[str, Any]) -> None:
        """Have this happen to the next invocations of the function, one after another: {"environment": …} a
        fresh process with more in its environment, {"repeat": "twice" | "at once"}, {} nothing."""
        place = self._asked(f"{function}.once")
        before = place.read_text() if place.exists() else ""
        place.write_text(before + "".join(f"{json.dumps(one)}\n" for one in wanted))

    def ask_always(self, function: str, wanted: Mapping[str, Any] | None) -> None:
        """Have this happen to all of its invocations; None: nothing any more."""
        place = self._asked(f"{function}.always")
        if wanted is None:
            place.unlink(missing_ok=True)
        else:
            place.write_text(json.dumps(wanted))

    def is_asked(self, function: str) -> bool:
        """Whether what was asked of its next invocations has not happened yet."""
        place = self._asked(f"{function}.once")
        return place.exists() and bool(place.read_text())

    def _asked(self, name: str) -> Path:
        (self.folder / "asked").mkdir(exist_ok=True)
        return self.folder / "asked" / name

    # What happened

    def logs(self, function: str) -> list[str]:
        """Lines that the function wrote to its log group."""
        group, lines = f"/aws/lambda/{function}", list[str]()
        client = self.client("logs")
        for page in client.get_paginator("filter_log_events").paginate(logGroupName=group):
            lines += [event["message"] for event in page["events"]]
        return lines

    def written(self, function: str) -> str:
        """All that the function's processes wrote, also those that were killed in it."""
        folder = self.folder / "functions"
        return "".join(path.read_text() for path in sorted(folder.glob(f"{function}-*.log")))

    def pretended(self, stack: str) -> dict[str, str]:
        """Resources of a stack that nothing stands for: logical id → type."""
        pages = self.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=stack)
        return {
            event["LogicalResourceId"]: event["ResourceType"]
            for page in pages
            for event in page["StackEvents"]
            if FALLBACK in event.get("ResourceStatusReason", "")
        }

    def roles(self, stack: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(ARN, policy documents) of each role of a stack."""
        iam = self.client("iam")
        for resource in self.resources(stack):
            if resource["ResourceType"] == "AWS::IAM::Role":
                name = resource["PhysicalResourceId"]
                inline = iam.list_role_policies(RoleName=name)["PolicyNames"]
                documents = [
                    iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
                    for policy in inline
                ]
                for one in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]:
                    arn = one["PolicyArn"]
                    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
                    found = iam.get_policy_version(PolicyArn=arn, VersionId=version)
                    documents.append(found["PolicyVersion"]["Document"])
                yield iam.get_role(RoleName=name)["Role"]["Arn"], documents

    def resources(self, stack: str) -> list[dict[str, Any]]:
        pages = self.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
        return [one for page in pages for one in page["StackResourceSummaries"]]

    def left(self) -> dict[str, list[str]]:
        """Everything that there is in the account, by its kind; none of what is there from the beginning."""
        asked: dict[str, tuple[str, str, str, str]] = {
            "buckets": ("s3", "list_buckets", "Buckets", "Name"),
            "tables": ("dynamodb", "list_tables", "TableNames", ""),
            "queues": ("sqs", "list_queues", "QueueUrls", ""),
            "functions": ("lambda", "list_functions", "Functions", "FunctionName"),
            "mappings": ("lambda", "list_event_source_mappings", "EventSourceMappings", "UUID"),
            "log groups": ("logs", "describe_log_groups", "logGroups", "logGroupName"),
            "roles": ("iam", "list_roles", "Roles", "RoleName"),
            "machines": ("stepfunctions", "list_state_machines", "stateMachines", "name"),
            "schedules": ("scheduler", "list_schedules", "Schedules", "Name"),
            "schedule groups": ("scheduler", "list_schedule_groups", "ScheduleGroups", "Name"),
            "alarms": ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
            "rules": ("events", "list_rules", "Rules", "Name"),
            "topics": ("sns", "list_topics", "Topics", "TopicArn"),
        }
        found = self.core.registry.left()
        stacks = self.client("cloudformation").list_stacks()["StackSummaries"]
        if names := [one["StackName"] for one in stacks if one["StackStatus"] != "DELETE_COMPLETE"]:
            found["stacks"] = names
        for kind, (service, operation, member, name) in asked.items():
            listed = getattr(self.client(service), operation)().get(member, [])
            names = sorted(one[name] if name else one for one in listed)
            if names := [one for one in names if (kind, one) != ("schedule groups", "default")]:
                found[kind] = names
        return found

    # Inside

    def _launch(self, python: Path, runtime: Path) -> None:
        here = Path(__file__).parent
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        scratch = self.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        environment |= {
            "GATEWAY_LISTEN": self.url.removeprefix("http://"),
            "TMPDIR": str(scratch), "FILESYSTEM_ROOT": str(self.folder / "localstack"),
            "SKIP_SSL_CERT_DOWNLOAD": "1", "DISABLE_EVENTS": "1", "DNS_ADDRESS": "0",
            "S3_SKIP_SIGNATURE_VALIDATION": "0", "LOCALSTACK_HOST": self.url.removeprefix("http://"),
            "LAMBDA_RETRY_BASE_DELAY": "1", "LAMBDA_EVENT_SOURCE_MAPPING_POLL_INTERVAL_SEC": "0.1",
            "LAMBDA_EVENT_SOURCE_MAPPING_MAX_BACKOFF_ON_EMPTY_POLL_SEC": "0.5",
            "LAMBDA_EVENT_SOURCE_MAPPING_MAX_BACKOFF_ON_ERROR_SEC": "1",
            "STACK_FOLDER": str(self.folder), "STACK_MOTO_PYTHON": sys.executable,
            "STACK_LAMBDA_PYTHON": str(runtime), "STACK_STAND_INS": self.core.url,
            "STACK_KINDS": json.dumps(KINDS),
            "STACK_LAMBDA_ENVIRONMENT": json.dumps({**self.endpoints, **self._lambdas}),
        }  # fmt: skip
        with (self.folder / "localstack.log").open("ab") as log:
            self._localstack = spawn(
                [str(python), str(here / "localstack_main.py")], env=environment, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _await(self) -> None:
        give_up = time.monotonic() + READY
        assert self._localstack is not None
        while True:
            said = (self.folder / "localstack.log").read_text(errors="replace")[-2000:]
            assert self._localstack.poll() is None, f"LocalStack ended:\n{said}"
            assert time.monotonic() < give_up, f"LocalStack does not answer:\n{said}"
            try:
                with urllib.request.urlopen(f"{self.url}/_localstack/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)

    def _send(self, url: str, text: str, role: str) -> None:
        name = url.rpartition("/")[2]
        self.calls.note(
            kind="call", role=role, by="a rule", service="sqs", operation="SendMessage", status=200,
            request={"QueueUrl": url},
        )  # fmt: skip
        assert name, url
        self.client("sqs").send_message(QueueUrl=url, MessageBody=text)
