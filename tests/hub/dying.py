"""A device that is killed (kill -9) at a step of its own: each line of its input says at which, in a folder
of that name. A step is whatever it does to a file, and each piece that it sends or receives."""

import os
import signal
import sys
from pathlib import Path

import msgspec

from fleetfold.adapters.https import SignedTransfer
from fleetfold.bundle import Bundle
from fleetfold.messages import Ask, Grant, Task

STEPS = frozenset({"open", "os.rename", "os.remove", "os.truncate", "os.utime", "os.mkdir"})
UPDATE = b"an update " * 10


class Death:
    def __init__(self) -> None:
        self.left: int | None = None

    def step(self, *_: object) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left is not None:
            self.left -= 1


def main() -> None:
    folder, orders = Path(sys.argv[1]), sys.argv[2:]
    bundle = msgspec.json.decode(orders[0], type=Bundle)
    before, task = (msgspec.json.decode(order, type=Task) for order in orders[1:])
    death = Death()
    sys.addaudithook(lambda event, _: death.step() if event in STEPS else None)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            home = folder / line.strip()
            transfer = SignedTransfer(home, bundle, never, never, spent=death.step)
            transfer.fetch(before)
            death.left = int(line)
            SignedTransfer(home, bundle, never, never, spent=death.step)
            transfer.fetch(task)
            transfer.deliver(task, UPDATE)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("lived" if status == 0 else f"died {status}", flush=True)


def never(_: object) -> Grant:
    raise AssertionError(Ask)


if __name__ == "__main__":
    main()
