"""Task tokens: what Step Functions may say of one, on the wire of an emulator that says it."""

import pytest

from fleetfold.adapters.stepfunctions import GONE, StepFunctions
from fleetfold.errors import Unavailable
from tests.aws.conftest import Aws
from tests.aws.weather import Weather, answered, refused


@pytest.mark.parametrize("code", GONE)
def test_a_token_by_which_nothing_waits_any_more_is_told_in_vain(aws: Aws, code: str) -> None:
    client = aws.client("stepfunctions", region_name="eu-central-1")
    weather = Weather(client)
    weather.ahead["SendTaskSuccess"] = [refused(code)]
    StepFunctions(client).tell("t", b"{}")
    assert weather.asked["SendTaskSuccess"] == 1
    client.close()


def test_it_is_asked_again_while_it_is_busy_and_what_it_never_takes_is_said(aws: Aws) -> None:
    client = aws.client("stepfunctions", region_name="eu-central-1")
    weather = Weather(client)
    weather.ahead["SendTaskSuccess"] = [refused("ThrottlingException"), answered(200, {})]
    pauses: list[float] = []
    StepFunctions(client, sleep=pauses.append).tell("t", b"{}")
    assert len(pauses) == 1
    weather.ahead["SendTaskSuccess"] = [refused("AccessDeniedException")]
    with pytest.raises(Unavailable):
        StepFunctions(client).tell("t", b"{}")
    client.close()
