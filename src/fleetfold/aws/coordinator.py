"""One process for as long as one run lasts, on Fargate: for apps that keep something between rounds.

    workflow ─▶ this: opens rounds, folds what was closed, publishes ─▶ the run has ended ─▶ workflow

It does what the state machine does, by the same steps; functions for queues and alarms do theirs beside it.
So it may be killed and begun again, and the workflow goes on without it where it has left.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import msgspec
from msgspec.structs import replace

from fleetfold.aws import steps
from fleetfold.aws.workflow import Standing
from fleetfold.errors import Unavailable
from fleetfold.wiring.aws import Cloud

LOOK = 2.0
"""Seconds between two looks at a round that is open."""
TOKEN = "coordinator"
"""What the tokens begin with that this process waits by; only it hears of them."""


class _Heard:
    """What was told to this process, in place of the workflow."""

    def __init__(self) -> None:
        self.standing: Standing | None = None

    def tell(self, token: str, said: bytes) -> None:
        if token.startswith(TOKEN):
            self.standing = msgspec.json.decode(said, type=Standing)


def drive(cloud: Cloud, run: str, sleep: Callable[[float], None] = time.sleep) -> Standing:
    """Until the run has ended or failed. → how it stands then. Raises BadConfig if there is no such run."""
    for number in count():
        heard = _Heard()
        here = replace(cloud, workflow=heard)
        try:
            steps.initiate(here, run, token=f"{TOKEN}-{number}")
            standing = heard.standing
            if standing is not None and standing.phase == "folding":
                folded = [_shard(here, standing, k) for k in standing.shards]
                standing = steps.publish(here, standing, folded)
        except Unavailable as error:
            cloud.troubled(error.sentence)
            standing = None
        if standing is None:
            sleep(LOOK)
        elif standing.phase in ("ended", "failed"):
            return standing
    raise AssertionError  # counting does not end


def main(words: Sequence[str]) -> int:
    """`python -m fleetfold.aws.coordinator RUN`, with the environment of the functions. → exit code."""
    from fleetfold.aws.telling import ignored, logger, measured, troubled
    from fleetfold.wiring.aws import cloud

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Fargate's word; another one goes on from here
    (run,) = words
    logger.append_keys(run=run)
    standing = drive(cloud("coordinator", ignored, troubled, measured), run)
    logger.info("the run is over", extra={"phase": standing.phase, "reason": standing.reason})
    return 0


def _shard(cloud: Cloud, standing: Standing, shard: int) -> dict[str, Any]:
    return steps.fold_shard(cloud, standing.run, standing.round, standing.fold, shard)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
