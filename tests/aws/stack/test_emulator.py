"""The emulated AWS does what the fleet's tests rely on, tried with a stack that is none of ours."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.aws import iam
from tests.aws.stack import small
from tests.aws.stack.stack import ACCOUNT, Stack

pytestmark = pytest.mark.aws
PATIENCE = 40.0


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("aws")) as stack:
        stack.client("s3").create_bucket(Bucket=small.CODE)
        stack.client("s3").put_object(Bucket=small.CODE, Key="small.zip", Body=small.code())
        since = time.monotonic()
        assert small.deploy(stack.client("cloudformation"), small.template()) == "CREATE_COMPLETE"
        print(f"deployed in {time.monotonic() - since:.1f} s")
        yield stack


def until(found: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    give_up = time.monotonic() + seconds
    while not (it := found()):
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.05)
    return it


def invoke(aws: Stack, **event: Any) -> tuple[bool, Any]:
    said = aws.client("lambda").invoke(FunctionName="small", Payload=json.dumps(event).encode())
    return "FunctionError" not in said, json.loads(said["Payload"].read())


def item(aws: Stack, pk: str, sk: str = "-") -> Any:
    key = {"pk": {"S": pk}, "sk": {"S": sk}}
    table = next(one for one in aws.resources(small.NAME) if one["LogicalResourceId"] == "Table")
    return aws.client("dynamodb").get_item(TableName=table["PhysicalResourceId"], Key=key).get("Item")


class Device:
    """A thing with a certificate of its own, connected; `tasks`: what came. `client`: another id than its
    name."""

    def __init__(self, aws: Stack, folder: Path, name: str, client: str = "") -> None:
        iot, key = aws.client("iot"), ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        pem = request.public_bytes(Encoding.PEM).decode()
        made = iot.create_certificate_from_csr(certificateSigningRequest=pem, setAsActive=True)
        iot.create_thing(thingName=name)
        self.arn, self.id, self.tasks = made["certificateArn"], made["certificateId"], list[Any]()
        iot.attach_policy(policyName="small-devices", target=self.arn)
        iot.attach_thing_principal(thingName=name, principal=self.arn)
        (folder / f"{name}.pem").write_text(made["certificatePem"])
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.key").write_bytes(secret)
        self.connected, self.granted, self.published = list[str](), list[Any](), list[Any]()
        self.mqtt = Client(
            CallbackAPIVersion.VERSION2, client_id=client or name, protocol=MQTTProtocolVersion.MQTTv5
        )
        self.mqtt.tls_set(
            str(aws.core.folder / "ca.pem"), str(folder / f"{name}.pem"), str(folder / f"{name}.key")
        )
        self.mqtt.on_connect = lambda c, d, f, code, p: self.connected.append(str(code))
        self.mqtt.on_disconnect = lambda c, d, f, code, p: self.connected.append(str(code))
        self.mqtt.on_message = lambda c, d, message: self.tasks.append(json.loads(message.payload))
        self.mqtt.on_subscribe = lambda c, d, mid, codes, p: self.granted.extend(str(one) for one in codes)
        self.mqtt.on_publish = lambda c, d, mid, code, p: self.published.append(str(code))
        self.mqtt.connect("localhost", aws.core.broker.port)
        self.mqtt.loop_start()
        until(lambda: self.connected)

    def close(self) -> None:
        self.mqtt.disconnect()
        self.mqtt.loop_stop()


@pytest.fixture
def device(aws: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(*names: str) -> Device:
        made.append(Device(aws, tmp_path, *names))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_message_a_signed_address_and_a_token_go_all_the_way_round(
    aws: Stack, device: Callable[..., Device]
) -> None:
    states = aws.client("stepfunctions")
    machine = f"arn:aws:states:us-east-1:{ACCOUNT}:stateMachine:small"
    execution = states.start_execution(stateMachineArn=machine, input='{"patience": 60}')["executionArn"]
    until(lambda: item(aws, "token"))
    it = device("d1")
    it.mqtt.subscribe("fleetfold/f/d1/task", 1)
    it.mqtt.publish("fleetfold/f/d1/status", b"\x00 not JSON", 1)
    task = until(lambda: it.tasks)[0]
    assert task["said"] == "\x00 not JSON"
    put = urllib.request.Request(task["put"], data=b"seven b", method="PUT")
    urllib.request.urlopen(put).close()
    ended = until(
        lambda: (x := states.describe_execution(executionArn=execution))["status"] != "RUNNING" and x
    )
    assert ended["status"] == "SUCCEEDED"
    assert json.loads(ended["output"]) == {"key": "d1", "size": 7}
    assert item(aws, "presence", "d1")["what"]["S"] == "connected"


def test_a_signed_address_is_good_for_one_method_and_key(aws: Stack, device: Callable[..., Device]) -> None:
    it = device("d2")
    it.mqtt.subscribe("fleetfold/f/d2/task", 1)
    it.mqtt.publish("fleetfold/f/d2/status", b"x", 1)
    address = until(lambda: it.tasks)[0]["put"]
    assert "X-Amz-Security-Token" in address
    for wrong in (
        urllib.request.Request(address),
        urllib.request.Request(address.replace("/d2?", "/d3?"), b""),
    ):
        wrong.get_method = lambda: "GET" if wrong.data is None else "PUT"  # noqa: B023
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(wrong)
        assert refused.value.code == 403
        refused.value.close()


def test_a_wait_that_is_over_is_caught(aws: Stack) -> None:
    states = aws.client("stepfunctions")
    machine = f"arn:aws:states:us-east-1:{ACCOUNT}:stateMachine:small"
    execution = states.start_execution(stateMachineArn=machine, input='{"patience": 1}')["executionArn"]
    ended = until(
        lambda: (x := states.describe_execution(executionArn=execution))["status"] != "RUNNING" and x
    )
    assert json.loads(ended["output"]) == "late"


def test_a_message_of_a_batch_that_failed_comes_again_and_the_others_do_not(
    aws: Stack, device: Callable[..., Device]
) -> None:
    queue = next(r for r in aws.resources(small.NAME) if r["LogicalResourceId"] == "Queue")[
        "PhysicalResourceId"
    ]
    for number in range(3):
        said = {"word": "twice" if number == 1 else "once", "device": f"x{number}", "said": "eA=="}
        aws.client("sqs").send_message(QueueUrl=queue, MessageBody=json.dumps(said))
    until(lambda: (item(aws, "seen", "x1") or {}).get("n", {}).get("N") == "2")
    assert item(aws, "seen", "x0") is None


def test_a_function_dies_of_time_and_memory_and_answers_no_more_than_six_megabytes(aws: Stack) -> None:
    ok, said = invoke(aws, sleep=20)
    assert (ok, said["errorType"]) == (False, "Sandbox.Timedout")
    ok, said = invoke(aws, grab=400)
    assert (ok, said["errorType"]) == (False, "Runtime.OutOfMemory")
    ok, said = invoke(aws, answer=7 << 20)
    assert (ok, said["errorType"]) == (False, "Function.ResponseSizeTooLarge")
    assert invoke(aws)[0], "and the next one is well again"


def test_what_is_asked_of_an_invocation_happens_to_it_alone(aws: Stack) -> None:
    before = int((item(aws, "count") or {"n": {"N": "0"}})["n"]["N"])
    aws.ask("small", {"environment": {"DIE": "1"}}, {"repeat": "twice"}, {"repeat": "at once"})
    assert invoke(aws, count=True)[1]["errorType"] == "Runtime.ExitError"
    assert [invoke(aws, count=True)[0] for _ in range(3)] == [True, True, True]
    assert not aws.is_asked("small")
    assert int(item(aws, "count")["n"]["N"]) == before + 5


def test_a_schedule_fires_once_and_is_gone(aws: Stack) -> None:
    before = len(aws.schedules.fired)
    assert invoke(aws, at=time.strftime("at(%Y-%m-%dT%H:%M:%S)", time.gmtime()))[0]
    until(lambda: len(aws.schedules.fired) > before)
    scheduler = aws.client("scheduler")
    until(lambda: not scheduler.list_schedules(GroupName="small")["Schedules"])
    assert len(aws.schedules.fired) == before + 1


def test_a_device_may_do_what_its_policy_says_and_no_more(aws: Stack, device: Callable[..., Device]) -> None:
    it = device("d4")
    for topic in ("fleetfold/f/d5/task", "fleetfold/f/+/task", "$aws/#", "#", "fleetfold/f/d4/#"):
        it.granted.clear()
        it.mqtt.subscribe(topic, 1)
        assert until(lambda: it.granted) == ["Not authorized"], topic
    it.mqtt.publish("fleetfold/f/d5/status", b"x", 1)
    assert until(lambda: it.published) == ["Not authorized"]
    aws.client("iot").update_certificate(certificateId=it.id, newStatus="INACTIVE")
    until(lambda: len(it.connected) > 1)
    until(lambda: (item(aws, "presence", "d4") or {}).get("what", {}).get("S") == "disconnected")


def test_nobody_connects_under_the_name_of_another(aws: Stack, device: Callable[..., Device]) -> None:
    it = device("d6", "d7")
    until(lambda: len(it.connected) > 1)
    assert "iot:Connect d7" in aws.core.refusals


def test_every_call_was_one_that_the_role_allows(aws: Stack) -> None:
    roles = dict(aws.roles(small.NAME))
    calls = aws.calls.by_roles()
    assert len(calls) > 10
    for role, by, call in calls:
        for action, resource, about in iam.wanted(call, small.NAME):
            assert iam.allowed(roles[role], action, resource, about), (by, action, resource)


def test_what_is_only_pretended_is_told(aws: Stack) -> None:
    assert aws.pretended(small.NAME) == {}
    more = {"Board": {"Type": "AWS::CloudWatch::Dashboard", "Properties": {"DashboardBody": "{}"}}}
    assert small.deploy(aws.client("cloudformation"), small.template(6, more), "UPDATE") == "UPDATE_COMPLETE"
    assert aws.pretended(small.NAME) == {"Board": "AWS::CloudWatch::Dashboard"}
