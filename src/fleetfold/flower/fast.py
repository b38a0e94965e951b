"""Strategies whose aggregation our fold does exactly; and what replies have to be for Flower's own.

    FedAvg, FedProx                          mean                    the fold is the result
    FedMedian, FedTrimmedAvg                 median, trimmed_mean    likewise
    Krum, MultiKrum                          multi_krum              likewise; metrics are of the chosen alone
    FedAvgM, FedAdagrad, FedAdam, FedYogi    mean                    the strategy is given one reply, the mean

Known by whose methods they run, not by name: a subclass that aggregates itself does so.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from msgspec import Struct

from fleetfold.coordinator.exchange import Terms


class Way(Struct, frozen=True):
    """How replies are folded: `Terms.fold` and what it needs. `given`: the strategy goes on from the fold."""

    fold: str
    given: bool = False
    trim: float = 0.0
    byzantine: int = 0
    kept: int = 0


_MEAN = frozenset({flower.FedAvg})
_GIVEN = (flower.FedAvgM, flower.FedAdagrad, flower.FedAdam, flower.FedYogi)


def way(strategy: Strategy) -> Way | None:
    """How our fold does what this strategy does; None: it does not, or not exactly."""
    overridden = {"aggregate_train", "_check_and_log_replies"} & vars(strategy).keys()
    if overridden or _definers(strategy, "_check_and_log_replies") != _MEAN:
        return None
    definers = _definers(strategy, "aggregate_train")
    if definers == _MEAN:
        return Way("mean")
    if any(definers == {kind, flower.FedAvg} for kind in _GIVEN):
        return Way("mean", given=True)
    if definers == {flower.FedMedian, flower.FedAvg}:
        return Way("median")
    if definers == {flower.FedTrimmedAvg, flower.FedAvg}:
        return Way("trimmed_mean", trim=float(strategy.beta))
    if definers == {flower.MultiKrum, flower.FedAvg}:
        byzantine, kept = int(strategy.num_malicious_nodes), int(strategy.num_nodes_to_select)
        return Way("multi_krum", byzantine=byzantine, kept=kept) if byzantine >= 0 and kept > 0 else None
    return None


def terms(strategy: Strategy, messages: Sequence[Message], *, train: bool) -> Terms:
    """What replies have to be where Flower's own aggregation would fail for all if one were not so.

    Where the user's own code aggregates they may be anything: what is wrong with them is its to say.
    """
    inner = innermost(strategy)
    method = "aggregate_train" if train else "aggregate_evaluate"
    theirs = all(_is_flowers(s, method) for s in (strategy, inner)) and isinstance(inner, flower.FedAvg)
    if not theirs or not _is_flowers(inner, "_check_and_log_replies"):
        return Terms()
    trees = isinstance(inner, flower.FedXgbBagging | flower.FedXgbCyclic)
    return Terms(
        alike=train and not trees and all(map(_is_plain, {id(m.content): m for m in messages}.values())),
        weight=inner.weighted_by_key, same_metrics=True,
    )  # fmt: skip


def aggregate(
    strategy: Strategy, way: Way, round: int, replies: Sequence[Message], chosen: Sequence[Message],
    folded: ArrayRecord,
) -> tuple[ArrayRecord | None, MetricRecord | None]:  # fmt: skip
    """What `strategy.aggregate_train(round, replies)` gives, from the fold of those that were `chosen`."""
    strategy._check_and_log_replies(list(replies), is_train=True)
    contents = [reply.content for reply in chosen]
    if not way.given:
        return folded, strategy.train_metrics_aggr_fn(contents, strategy.weighted_by_key)
    name, record = next(iter(contents[0].metric_records.items()))
    weights = [next(iter(c.metric_records.values()))[strategy.weighted_by_key] for c in contents]
    arrays = next(iter(contents[0].array_records))
    one = RecordDict({arrays: folded, name: MetricRecord({**record, strategy.weighted_by_key: sum(weights)})})
    metrics_of = strategy.train_metrics_aggr_fn
    with _instead(
        strategy,
        train_metrics_aggr_fn=lambda _, key: metrics_of(contents, key),
        _check_and_log_replies=lambda replies, is_train, validate=True: (replies, []),
    ):
        found: tuple[ArrayRecord | None, MetricRecord | None] = strategy.aggregate_train(
            round, [_mean(chosen[0], one)]
        )
        return found


def needs_arrays(strategy: Strategy) -> bool:
    """Whether somebody may look at the arrays of answers that are folded: a user's function for metrics."""
    return not getattr(strategy.train_metrics_aggr_fn, "__module__", "").startswith("flwr.")


def is_one_of_each(reply: Message) -> bool:
    """Whether it has one ArrayRecord and one MetricRecord, as those strategies ask."""
    found = list(reply.content.values())
    arrays, metrics = (sum(isinstance(r, kind) for r in found) for kind in (ArrayRecord, MetricRecord))
    return arrays == 1 == metrics


def usual(replies: Sequence[Message]) -> list[Message]:
    """Those whose records have the names, and arrays the shapes, that most have; if undecided, the first."""
    forms = [_form(reply) for reply in replies]
    return [r for r, form in zip(replies, forms, strict=True) if form == Counter(forms).most_common(1)[0][0]]


def _form(reply: Message) -> Any:
    arrays = (
        (k, tuple(a.shape)) for record in reply.content.array_records.values() for k, a in record.items()
    )
    metrics = (key for record in reply.content.metric_records.values() for key in record)
    return tuple(map(str, reply.content)), frozenset(arrays), frozenset(metrics)


def innermost(strategy: Strategy) -> Strategy:
    """The strategy that others are wrapped around."""
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        strategy = inner
    return strategy


def _definers(strategy: Strategy, method: str) -> frozenset[type]:
    return frozenset(kind for kind in type(strategy).__mro__ if method in vars(kind)) - {Strategy}


def _is_flowers(strategy: Strategy, method: str) -> bool:
    own = method in vars(strategy)
    return not own and all(kind.__module__.startswith("flwr.") for kind in _definers(strategy, method))


def _is_plain(message: Message) -> bool:
    """Whether its tensors are called as its arrays are, and so are those of an answer like it."""
    records = list(message.content.array_records.values())
    values = (v for record in message.content.config_records.values() for v in record.values())
    return len(records) == 1 and len(records[0]) > 0 and not any(isinstance(v, bytes | list) for v in values)


def _mean(like: Message, content: RecordDict) -> Message:
    return Message(metadata=like.metadata, content=content)


@contextmanager
def _instead(strategy: Strategy, **attributes: Any) -> Iterator[None]:
    """The strategy with other attributes of its own, for as long."""
    before = {name: vars(strategy)[name] for name in attributes if name in vars(strategy)}
    vars(strategy).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del vars(strategy)[name]
        vars(strategy).update(before)
