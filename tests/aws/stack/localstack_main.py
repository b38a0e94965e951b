"""LocalStack 4.9.2 on this machine without Docker, Java or a token, made to emulate what it leaves to those:

    DynamoDB        dynamodb_main.py, a process of its own
    Lambda          real processes (execution.py), with credentials of the function's role
    S3              a signed address is checked against the very credentials that signed it
    CloudFormation  kinds that it does not know are made by what emulates IoT (iot.py), asked over HTTP
    the log         each call, by whom, with its parameters: FOLDER/calls.jsonl

Runs in LocalStack's own environment, never in ours. STACK_* in the environment say where things are.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))

import localstack.services.dynamodb.server as dynamodb
import localstack.services.lambda_.invocation.runtime_executor as executors
import localstack.services.s3.presigned_url as presigned
from child import spawn
from execution import Environment, Function, Outcome
from localstack import config
from localstack.aws import handlers
from localstack.services.cloudformation import resource_provider as cloudformation
from localstack.services.cloudformation.engine.v2 import change_set_model_preproc as preproc
from localstack.services.cloudformation.engine.v2 import change_set_model_validator as validator
from localstack.services.lambda_.invocation.lambda_models import InvocationResult
from localstack.utils.aws.request_context import extract_access_key_id_from_auth_header
from localstack.utils.run import FuncThread

FOLDER = Path(os.environ["STACK_FOLDER"])
MOTO_PYTHON, LAMBDA_PYTHON = os.environ["STACK_MOTO_PYTHON"], os.environ["STACK_LAMBDA_PYTHON"]
STAND_INS = os.environ["STACK_STAND_INS"]
"""Where resources of kinds that LocalStack does not know are made: {type: [name's property, ARN's form]}."""
KINDS: dict[str, list[str]] = json.loads(os.environ["STACK_KINDS"])
EXTRA: dict[str, str] = json.loads(os.environ["STACK_LAMBDA_ENVIRONMENT"])
"""What each function finds in its environment besides its own: the endpoints of other emulators."""
SECRETS: dict[str, str] = {}
"""By access key, the secret of each session that was lent to a function."""
_lock = threading.Lock()


def note(**said: Any) -> None:
    with _lock, (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"at": time.time(), **said}, default=str) + "\n")


# DynamoDB


def start_dynamodb(self: Any) -> FuncThread:
    environment = {**os.environ, "MOTO_ACCOUNT_ID": "000000000000"}
    command = [MOTO_PYTHON, str(Path(__file__).with_name("dynamodb_main.py")), str(self.port)]
    with (FOLDER / "dynamodb.log").open("ab") as log:
        process = spawn(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    thread = FuncThread(lambda *_: process.wait())
    thread.process, thread.auto_restart = process, False
    thread.start()
    return thread


dynamodb.DynamodbServer.do_start_thread = start_dynamodb


# Lambda


class Processes(executors.RuntimeExecutor):
    """One environment of a function; LocalStack keeps as many as are busy at once."""

    def start(self, env_vars: dict[str, str]) -> None:
        own = self.function_version.config
        environment = {name: str(value) for name, value in {**env_vars, **EXTRA}.items()}
        SECRETS[environment["AWS_ACCESS_KEY_ID"]] = environment["AWS_SECRET_ACCESS_KEY"]
        name = self.function_version.id.function_name
        note(kind="environment", key=environment["AWS_ACCESS_KEY_ID"], function=name, role=own.role)
        self._function = Function(
            name=name, arn=self.function_version.id.unqualified_arn(), handler=own.handler,
            code=str(own.code.get_unzipped_code_location()), timeout=own.timeout, memory=own.memory_size,
            environment=environment,
        )  # fmt: skip
        self._environment: Environment | None = None
        self._log = ""

    def stop(self) -> None:
        if self._environment is not None:
            self._environment.stop()

    def invoke(self, payload: dict[str, str]) -> InvocationResult:
        id, body = payload["invoke-id"], payload["payload"].encode()
        asked = self._asked()
        again: list[Outcome] = []
        extra = threading.Thread(target=lambda: again.append(self._once(self._made({}), f"{id}-too", body)))
        if asked.get("repeat") == "at once":
            extra.start()
        if self._environment is None or asked.get("environment") or not self._environment.alive():
            self.stop()
            self._environment = self._made(asked.get("environment", {}))
        outcome = self._environment.invoke(id, body)
        if asked.get("repeat") == "twice" and self._environment.alive():
            outcome = self._environment.invoke(id, body)
        if extra.ident is not None:
            extra.join()
        self._log = "".join(one.log for one in [outcome, *again])
        note(kind="invocation", function=self._function.name, id=id, ok=outcome.ok, asked=asked)
        return InvocationResult(id, outcome.body, is_error=not outcome.ok, logs=self._log)

    def _once(self, environment: Environment, id: str, body: bytes) -> Outcome:
        try:
            return environment.invoke(id, body)
        finally:
            environment.stop()

    def _made(self, more: dict[str, str]) -> Environment:
        function = replace(self._function, environment=self._function.environment | more)
        log = FOLDER / "functions" / f"{function.name}-{time.time_ns()}.log"
        log.parent.mkdir(exist_ok=True)
        log.touch()
        return Environment(function, LAMBDA_PYTHON, log)

    def _asked(self) -> dict[str, Any]:
        """What a test wants of this invocation: the first line of the function's list, which is used up, or
        what it wants of all."""
        folder = FOLDER / "asked"
        with _lock:
            once = folder / f"{self._function.name}.once"
            if once.exists() and (lines := once.read_text().splitlines()):
                once.write_text("".join(f"{line}\n" for line in lines[1:]))
                return dict(json.loads(lines[0]))
            always = folder / f"{self._function.name}.always"
            return dict(json.loads(always.read_text())) if always.exists() else {}

    def get_logs(self) -> str:
        return self._log

    def get_address(self) -> str:
        return "127.0.0.1"

    def get_endpoint_from_executor(self) -> str:
        return "127.0.0.1"

    def get_runtime_endpoint(self) -> str:
        return f"http://127.0.0.1:{config.GATEWAY_LISTEN[0].port}/_localstack_lambda/{self.id}"

    @classmethod
    def prepare_version(cls, function_version: Any) -> None:
        if function_version.config.code:
            function_version.config.code.prepare_for_execution()

    @classmethod
    def cleanup_version(cls, function_version: Any) -> None:
        pass


for module in ("runtime_executor", "execution_environment", "version_manager"):
    __import__(f"localstack.services.lambda_.invocation.{module}")
    sys.modules[f"localstack.services.lambda_.invocation.{module}"].get_runtime_executor = lambda: Processes


# S3

_known = presigned.get_secret_access_key_from_access_key_id
presigned.get_secret_access_key_from_access_key_id = lambda key, region: (
    SECRETS.get(key) or _known(key, region)
)


# CloudFormation


def _of_stand_in(kind: str) -> cloudformation.ResourceProvider:
    name_property, form = KINDS[kind]

    class StandIn(cloudformation.ResourceProvider):
        SCHEMA: ClassVar[dict[str, Any]] = {"primaryIdentifier": [f"/properties/{name_property}"]}

        def create(self, request: Any) -> Any:
            model = dict(request.desired_state)
            name = model.get(name_property) or f"{request.stack_name}-{request.logical_resource_id}"
            arn = form.format(name=name, region=request.region_name, account=request.account_id)
            model |= {name_property: name, "Arn": arn, "Id": name}
            _stand_in("PUT", kind, name, model)
            return cloudformation.ProgressEvent(cloudformation.OperationStatus.SUCCESS, model)

        def update(self, request: Any) -> Any:
            before = request.previous_state or {}
            if before.get(name_property) and not request.desired_state.get(name_property):
                request.desired_state[name_property] = before[name_property]
            return self.create(request)

        def delete(self, request: Any) -> Any:
            _stand_in("DELETE", kind, request.previous_state[name_property], {})
            return cloudformation.ProgressEvent(cloudformation.OperationStatus.SUCCESS, {})

    return StandIn()


def _stand_in(method: str, kind: str, name: str, model: dict[str, Any]) -> None:
    address = f"{STAND_INS}/stand-in/{quote(kind, safe='')}/{quote(name, safe='')}"
    data = json.dumps(model, default=str).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data=data, method=method)):
        pass


cloudformation.ResourceProviderExecutor.deploy_loop.__defaults__ = (config.CFN_PER_RESOURCE_TIMEOUT, 0.25)
"""Seconds between two looks at a function in the making: five of LocalStack's."""
_load = cloudformation.ResourceProviderExecutor.try_load_resource_provider
cloudformation.ResourceProviderExecutor.try_load_resource_provider = staticmethod(
    lambda kind: _of_stand_in(kind) if kind in KINDS else _load(kind)
)


class _Findall:
    """`re` for Fn::Sub, which takes `${!Literal}` for a variable: here it is none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    def findall(self, pattern: str, text: str) -> list[str]:
        return [name for name in re.findall(pattern, text) if not name.startswith("!")]


def _with_literals(engine: Any) -> None:
    visit = engine.visit_node_intrinsic_function_fn_sub

    def visit_and_unescape(self: Any, node: Any) -> Any:
        made = visit(self, node)
        for side in ("before", "after"):
            if isinstance(text := getattr(made, side), str):
                setattr(made, side, text.replace("${!", "${"))
        return made

    engine.visit_node_intrinsic_function_fn_sub = visit_and_unescape


_resolve_attribute = preproc.ChangeSetModelPreproc._resolve_attribute


def _resolve_attribute_or_not(self: Any, arguments: Any, select_before: bool) -> Any:
    """It looks also at what is under a condition that does not hold, and there at what else is: real
    CloudFormation does not. A reference that really dangles cfn-lint finds."""
    name = (arguments.split(".") if isinstance(arguments, str) else arguments)[0]
    node = self._get_node_resource_for(name, self._change_set.update_model.node_template)
    if not preproc.is_nothing(node.condition_reference):
        condition = self._get_node_condition_if_exists(node.condition_reference.value)
        holds = self._resolve_condition(condition.name)
        if not (holds.before if select_before else holds.after):
            return f"not-made-{name}"
    return _resolve_attribute(self, arguments, select_before)


preproc.ChangeSetModelPreproc._resolve_attribute = _resolve_attribute_or_not

for module, engine in ((preproc, "ChangeSetModelPreproc"), (validator, "ChangeSetModelValidator")):
    module.re = _Findall()
    _with_literals(getattr(module, engine))


# The log of calls


def log_call(chain: Any, context: Any, response: Any) -> None:
    if context.service is None or context.operation is None:
        return
    query = context.request.args.get("X-Amz-Credential", "")
    key = extract_access_key_id_from_auth_header(context.request.headers) or query.partition("/")[0]
    inner = context.internal_request_params or {}
    asked = {
        name: value if isinstance(value, str | int | float | bool | dict | list) else None
        for name, value in (context.service_request or {}).items()
    }
    note(
        kind="call", key=key, service=context.service.service_name, operation=context.operation.name,
        request=asked if context.service.service_name != "cloudformation" else {},
        status=response.status_code,
        error=getattr(context.service_exception, "code", None), internal=bool(context.is_internal_call),
        signed=bool(query), principal=inner.get("service_principal"), source=inner.get("source_arn"),
    )  # fmt: skip


handlers.run_custom_response_handlers.append(log_call)


if __name__ == "__main__":
    from localstack.runtime.main import main

    main()
