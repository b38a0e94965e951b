"""Step Functions' task tokens: whoever waits by one goes on with what is said, once."""

import random
import time
from collections.abc import Callable
from typing import Any

from fleetfold.adapters.boto import Declined, Service

GONE = ("TaskTimedOut", "TaskDoesNotExist", "InvalidToken")
"""What is said of a token by which nothing waits: it was told, its task has timed out, or it is none."""


class StepFunctions:
    """`client`: boto3's of "stepfunctions", which asks once (boto.client)."""

    def __init__(
        self, client: Any, *,
        sleep: Callable[[float], None] = time.sleep, chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._service = Service(client, "AWS Step Functions", sleep=sleep, chance=chance)

    def tell(self, token: str, said: bytes) -> None:
        """Let the task go on with that, which is JSON. Nothing happens where none waits by the token."""
        try:
            self._service.ask("send_task_success", expected=GONE, taskToken=token, output=said.decode())
        except Declined:
            return
