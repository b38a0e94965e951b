"""A worker's reports are told in time: what a long task would keep back, and what could not be told."""

import threading
import time

import pytest

from fleetfold.errors import Unavailable
from fleetfold.local.worker import Telling

PATIENCE = 20.0


def test_what_was_reported_is_told_while_the_next_task_still_takes() -> None:
    told = threading.Event()
    Telling(lambda: True, told.set).soon()
    assert told.wait(PATIENCE)


def test_where_nothing_was_reported_nobody_is_told() -> None:
    told = threading.Event()
    Telling(lambda: False, told.set).now()
    assert not told.is_set()


def test_what_could_not_be_told_ends_the_work_that_follows() -> None:
    def full() -> bool:
        raise Unavailable("no space left")

    telling, give_up = Telling(full, lambda: None), time.monotonic() + PATIENCE

    def work() -> None:
        while time.monotonic() < give_up:
            telling.soon()
            time.sleep(0.01)

    with pytest.raises(Unavailable, match="no space left"):
        work()
