"""`Strategy.start`, made durable: a run's app may die between any two lines and goes on where it was.

    main() ─▶ start() ─▶ Call.begin ──▶ Call.run ─▶ Result
                 └── after a death: main() runs again up to here ─▶ Call.resume ─┘ at the newest checkpoint

Several calls in one main() are told apart by their number; those that have returned return the same again.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fleetfold.flower.again import Again
from fleetfold.flower.call import Call, Ended, Evaluate, ended_calls, log
from fleetfold.flower.checkpoint import Shelf
from fleetfold.flower.grid import FleetGrid

ALONE = (
    "the app sends messages itself, outside of a strategy's start: that part lives in its process, which is "
    "kept for it; after a death it is done again, and answered from what had arrived"
)


class Durable:
    """The calls of `start` in one process. `fold`: our fold is used where it is exact. `keep`: rounds whose
    answers are kept, 0: all. `leaves`: where it would wait, Suspend is raised."""

    def __init__(
        self, shelf: Shelf, grid: FleetGrid, *, fold: bool = True, keep: int = 2, leaves: bool = False
    ) -> None:
        self._shelf, self._fold, self._keep, self._leaves = shelf, fold, keep, leaves
        self._calls, self._done, self._body = 0, tuple[Ended, ...](), shelf.newest()
        self._inside, self._said = False, False
        grid.alone = self._alone

    def start(
        self, strategy: Strategy, grid: FleetGrid, initial_arrays: ArrayRecord, num_rounds: int,
        timeout: float, train_config: ConfigRecord, evaluate_config: ConfigRecord,
        evaluate_fn: Evaluate | None,
    ) -> Result:  # fmt: skip
        self._calls += 1
        body = self._body
        if body is not None:
            self._done = ended_calls(body)
        if len(self._done) >= self._calls:
            ended = self._done[self._calls - 1]
            grid.next = ended.next
            return self._result(ended)
        call = Call(
            self._shelf, strategy, grid, timeout, train_config, evaluate_config, evaluate_fn,
            fold=self._fold, keep=self._keep, leaves=self._leaves,
        )  # fmt: skip
        if body is not None and body["stand"]["call"] == self._calls:
            call.resume(body)
        else:
            call.begin(self._calls, initial_arrays, self._done)
        self._body, self._inside = None, True
        try:
            result = call.run(num_rounds)
        finally:
            self._inside = False
        self._done = (*self._done, call.ended())
        return result

    def _alone(self) -> None:
        """The app sends something outside of `start`: what it makes of the answers lives in its process."""
        if not self._inside and not self._said:
            self._said = True
            log(WARNING, ALONE)
            print(ALONE, file=sys.stderr, flush=True)

    def _result(self, ended: Ended) -> Result:
        result = Result()
        for name, metrics in Again({})(ended.metrics, "Result").items():
            getattr(result, name).update(metrics)
        if ended.aggregated:
            result.arrays = self._shelf.model(ended.version, ended.digest).record
        return result


@contextmanager
def installed(durable: Durable) -> Iterator[None]:
    """Put it into Flower's `Strategy`, of which no strategy of Flower's has a `start` of its own; one of the
    user's that has keeps it."""
    flowers = Strategy.start

    @wraps(flowers)
    def start(
        self: Strategy, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, timeout: float = 3600,
        train_config: ConfigRecord | None = None, evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:  # fmt: skip
        if not isinstance(grid, FleetGrid):
            return flowers(
                self, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            )
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        return durable.start(
            self, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )

    Strategy.start = start
    try:
        yield
    finally:
        Strategy.start = flowers
