"""One call of `Strategy.start`, step by step; after each all that follows from it is committed.

configure ─▶ send ─▶ ● ─▶ answers ─▶ aggregate ─▶ ●      train, then evaluate, then the app's evaluate_fn
                                                         ●: a checkpoint (checkpoint.py)
"""

import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, WARNING, getLogger
from typing import Any

import msgspec
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import Result, Strategy
from msgspec import Struct
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.exchange import Terms
from fleetfold.flower import fast, state
from fleetfold.flower.again import Again
from fleetfold.flower.checkpoint import Arrays, Pointer, Shelf
from fleetfold.flower.grid import FleetGrid
from fleetfold.flower.lazy import LazyArray
from fleetfold.flower.leaving import Suspend
from fleetfold.flower.plain import Plain
from fleetfold.flower.state import Piece
from fleetfold.messages import Metrics

log = getLogger("flwr").log
METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
"""Of a `Result`, by round."""
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class Stand(Struct, frozen=True, kw_only=True):
    """Where a call of `start` stands: what is to be done next."""

    call: int  # of `start`, in main(); from 1
    round: int = 0
    phase: str = "test"  # train, evaluate, test: the app's own evaluate_fn
    sent: int = 0  # the exchange of that phase that is on record; 0: none yet
    trained: int = 0  # the exchange by which the round was trained
    next: int = 1  # number of the next exchange
    before: int = 0  # rounds of the calls before
    first: int = 1  # number of the call's own first exchange
    starts: tuple[int, ...] = ()  # first exchanges of the last rounds
    version: int = 0  # of the model
    digest: str = ""
    aggregated: bool = False  # whether any round has given arrays


class Ended(Struct, frozen=True, kw_only=True):
    """What a call of `start` has returned, and the number of the exchange after it."""

    rounds: int
    next: int
    version: int
    digest: str
    aggregated: bool
    metrics: Any


class Call:
    """The rest as of `Durable`."""

    def __init__(
        self, shelf: Shelf, strategy: Strategy, grid: FleetGrid, timeout: float, train_config: ConfigRecord,
        evaluate_config: ConfigRecord, evaluate_fn: Evaluate | None, *, fold: bool, keep: int,
        leaves: bool = False,
    ) -> None:  # fmt: skip
        self._shelf, self._strategy, self._timeout = shelf, strategy, timeout
        self._keep, self._leaves = keep, leaves
        self._grid = grid
        self._configs = {"train": train_config, "evaluate": evaluate_config}
        self._evaluate_fn, self._result = evaluate_fn, Result()
        self._way = fast.way(strategy) if fold else None
        self._stand, self._done = Stand(call=0), tuple[Ended, ...]()
        self._arrays = ArrayRecord()
        self._old = 0  # exchanges before it are to be retired; 0: none

    # Beginning, and going on

    def begin(self, number: int, initial: ArrayRecord, done: tuple[Ended, ...]) -> None:
        """The first step of all; what cannot be stored is found out here."""
        name = type(self._strategy).__name__
        log(INFO, "Starting %s strategy:", name)
        log(INFO, "\t├── ArrayRecord (%.2f MB)", _bytes(initial) / 2**20)
        self._strategy.summary()
        self._done = done
        version = done[-1].version + 1 if done else 0
        if done and self._shelf.refer(initial) == layout.model(self._shelf.run, done[-1].version):
            model = Arrays(done[-1].version, done[-1].digest, initial)
        else:
            model = self._shelf.keep(version, initial)
        self._arrays = model.record
        initial.update(model.record)  # the same numbers, read where they lie: no memory is kept for them
        here = self._grid.next
        self._stand = Stand(
            call=number, next=here, first=here, before=sum(ended.rounds for ended in done),
            version=model.version, digest=model.digest,
        )  # fmt: skip
        self._commit()

    def resume(self, body: dict[str, Any]) -> None:
        """All as it was at that checkpoint."""
        pieces = self._shelf.pieces(body)
        own = {k.removeprefix("strategy."): p for k, p in pieces.items() if k.startswith("strategy.")}
        state.restore(self._strategy, own, self._shelf.open)
        for phase, config in self._configs.items():
            config.clear()
            config.update(_again(pieces[f"{phase}_config"]))
        for name, metrics in _again(pieces["metrics"]).items():
            getattr(self._result, name).update(metrics)
        self._done = ended_calls(body)
        self._stand = msgspec.convert(body["stand"], Stand)
        self._arrays = self._shelf.model(self._stand.version, self._stand.digest).record
        if self._stand.aggregated:
            self._result.arrays = self._arrays
        self._grid.next = self._stand.next
        self._grid.messenger.publish(self._stand.version, self._stand.digest)
        state.set_chance(pieces["chance"].node)
        name = type(self._strategy).__name__
        log(INFO, "Going on with %s strategy: round %s, %s", name, self._stand.round, self._stand.phase)

    def ended(self) -> Ended:
        stand = self._stand
        return Ended(
            rounds=max(0, stand.round - 1), next=stand.next, version=stand.version, digest=stand.digest,
            aggregated=stand.aggregated, metrics=Plain()(self._metrics(), "Result"),
        )  # fmt: skip

    # The rounds

    def run(self, rounds: int) -> Result:
        began = time.time()
        self._grid.messenger.plan(self._stand.before + rounds)
        steps = {"train": self._train, "evaluate": self._evaluate, "test": self._test}
        while self._stand.round <= rounds:
            if (self._stand.phase, self._stand.sent) == ("train", 0):
                log(INFO, "")
                log(INFO, "[ROUND %s/%s]", self._stand.round, rounds)
            steps[self._stand.phase]()
        self._retire()
        log(INFO, "")
        log(INFO, "Strategy execution finished in %.2fs", time.time() - began)
        for name, metrics in self._metrics().items():
            log(INFO, "\t%s: %s", name, {round: dict(one) for round, one in metrics.items()})
        return self._result

    def _train(self) -> None:
        replies = self._exchange(self._strategy.configure_train)
        trained, sent = self._stand.sent, bool(self._stand.sent)
        arrays, metrics = self._aggregated(replies, trained) if sent else self._slowly(replies)
        version, digest = self._stand.version, self._stand.digest
        if arrays is not None:
            model = self._kept(arrays, trained)
            self._result.arrays = self._arrays = model.record
            version, digest = model.version, model.digest
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            self._result.train_metrics_clientapp[self._stand.round] = metrics
        self._stand = replace(
            self._stand, phase="evaluate", sent=0, trained=trained, version=version, digest=digest,
            aggregated=self._stand.aggregated or arrays is not None,
        )  # fmt: skip
        self._commit()
        self._grid.messenger.publish(version, digest)

    def _evaluate(self) -> None:
        round = self._stand.round
        replies = self._exchange(self._strategy.configure_evaluate)
        sent = self._stand.sent
        metrics = _again_usual(lambda those: self._strategy.aggregate_evaluate(round, those), replies)
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            self._result.evaluate_metrics_clientapp[round] = metrics
        self._stand = replace(self._stand, phase="test", sent=0)
        if sent and self._evaluate_fn:
            self._commit()
        elif not self._evaluate_fn:
            self._next_round()

    def _test(self) -> None:
        round, evaluate = self._stand.round, self._evaluate_fn
        metrics = evaluate(round, self._arrays) if evaluate else None
        if evaluate and round:
            log(INFO, "Global evaluation")
            log(INFO, "\t└──> MetricRecord: %s", metrics)
        elif evaluate:
            log(INFO, "Initial global evaluation results: %s", metrics)
        if metrics is not None:
            self._result.evaluate_metrics_serverapp[round] = metrics
            if self._stand.trained:
                numbers: Metrics = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
                self._grid.messenger.note(self._stand.trained, "test", numbers)
        self._next_round()

    def _next_round(self) -> None:
        starts = (*self._stand.starts, self._grid.next)
        kept = starts[-self._keep - 1 :] if self._keep else starts[:1]
        self._stand = replace(
            self._stand, round=self._stand.round + 1, phase="train", sent=0, trained=0, starts=kept
        )
        self._commit()
        self._retire()  # if no exchange has been sent since it was due
        self._old = kept[0] if self._keep and len(starts) > len(kept) else 0

    # One exchange

    def _exchange(self, configure: Callable[..., Iterable[Message]]) -> list[Message]:
        """Send what the strategy says, if it was not sent, and wait. → replies; errors are left out."""
        stand = self._stand
        if not stand.sent:
            config = self._configs[stand.phase]
            messages = list(configure(stand.round, self._arrays, config, self._grid))
            if not messages:
                return []
            if not self._grid.is_batch(messages):
                return self._replies(self._grid.send_and_receive(messages, timeout=self._timeout))
            sent = self._grid.send(messages, self._terms(messages))
            self._stand = replace(stand, sent=sent)
            self._commit()
            self._retire()
        self._grid.messenger.step()
        if self._leaves and not self._grid.ended(self._stand.sent):
            raise Suspend
        number = self._stand.sent
        self._grid.wait(number)
        folded = self._way is not None and self._grid.messenger.fold(number) is not None
        return self._replies(self._grid.found(number, arrays=not folded or fast.needs_arrays(self._strategy)))

    def _retire(self) -> None:
        """What no later step asks for goes: while devices are at work, for it takes its time."""
        if self._old:
            self._grid.retire(self._old, after=self._stand.first - 1)
            self._old = 0

    def _replies(self, answers: Iterable[Message]) -> list[Message]:
        """Those without errors; of the others it is told that they are left out."""
        answers = list(answers)
        for answer in answers:
            if answer.has_error():
                log(WARNING, "\t> left out: node %d: %s", answer.metadata.src_node_id, answer.error.reason)
        return [answer for answer in answers if not answer.has_error()]

    def _terms(self, messages: Sequence[Message]) -> Terms:
        stand, train, way = self._stand, self._stand.phase == "train", self._way
        terms = fast.terms(self._strategy, messages, train=train)
        terms = replace(terms, timeout=self._timeout, label=stand.phase, turn=stand.before + stand.round)
        if not train or way is None:
            return terms
        into = "" if way.given else layout.model(self._shelf.run, stand.version + 1)
        return replace(terms, fold=way.fold, trim=way.trim, byzantine=way.byzantine, kept=way.kept, into=into)

    def _aggregated(
        self, replies: Sequence[Message], number: int
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The strategy's aggregation, by our fold where there is one."""
        fold = self._grid.messenger.fold(number) if self._way else None
        if fold is None or self._way is None:
            return self._slowly(replies)
        if not all(map(fast.is_one_of_each, replies)):
            return self._slowly(self._replies(self._grid.found(number)))
        folded = self._shelf.open(fold.key, fold.digest)
        chosen = self._shelf.chosen(fold.key)
        of = [r for r in replies if chosen is None or r.metadata.src_node_id in chosen]
        return fast.aggregate(self._strategy, self._way, self._stand.round, replies, of, folded)

    def _slowly(self, replies: Sequence[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        round = self._stand.round
        found: tuple[ArrayRecord | None, MetricRecord | None] = _again_usual(
            lambda those: self._strategy.aggregate_train(round, those), replies
        )
        return found

    def _kept(self, arrays: ArrayRecord, trained: int) -> Arrays:
        """Aggregated arrays as the run's newest model, if they are not that already."""
        version, run = self._stand.version, self._shelf.run
        key = self._shelf.refer(arrays)
        if key == layout.model(run, version):
            return Arrays(version, self._stand.digest, arrays)
        if key == layout.model(run, version + 1) and (fold := self._grid.messenger.fold(trained)):
            return Arrays(version + 1, fold.digest, arrays)
        return self._shelf.keep(version + 1, arrays)

    # Committing

    def _commit(self) -> None:
        stand = self._stand = replace(self._stand, next=self._grid.next)
        pieces = {f"strategy.{k}": p for k, p in state.save(self._strategy, self._shelf.refer).items()}
        for phase, config in self._configs.items():
            pieces[f"{phase}_config"] = _piece(config)
        pieces["metrics"] = _piece(self._metrics())
        pieces["chance"] = Piece(state.chance())
        body = {"stand": msgspec.to_builtins(stand), "done": msgspec.to_builtins(self._done)}
        about = Pointer(
            body="", call=stand.call, round=stand.round, phase=stand.phase, exchange=stand.sent or stand.next
        )
        self._shelf.commit(body, pieces, about)

    def _metrics(self) -> dict[str, dict[int, MetricRecord]]:
        return {name: getattr(self._result, name) for name in METRICS}


def ended_calls(body: dict[str, Any]) -> tuple[Ended, ...]:
    """What the calls before that of a checkpoint have returned."""
    return msgspec.convert(body["done"], tuple[Ended, ...])


def _again_usual(aggregate: Callable[[list[Message]], Any], replies: Sequence[Message]) -> Any:
    """What the strategy makes of replies; where it finds them unlike, of those that are as most are."""
    try:
        return aggregate(list(replies))
    except InconsistentMessageReplies as error:
        usual = fast.usual(replies)
        if not usual or len(usual) == len(replies):
            raise
        for reply in replies:
            if reply not in usual:
                node = reply.metadata.src_node_id
                log(
                    WARNING,
                    "\t> left out: node %d: its records are not those of most replies (%s)",
                    node,
                    error,
                )
        return aggregate(usual)


def _bytes(arrays: ArrayRecord) -> int:
    """Without making data of what is stored."""
    return sum(
        int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize if isinstance(a, LazyArray) else len(a.data)
        for a in arrays.values()
    )


def _piece(value: Any) -> Piece:
    plain = Plain()
    return Piece(plain(value, "it"), plain.tensors)


def _again(piece: Piece) -> Any:
    return Again(piece.tensors)(piece.node, "it")
