"""Our fold gives what Flower's own aggregation gives, to 1e-6, for each strategy of which it is said."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import InconsistentMessageReplies
from hypothesis import given
from hypothesis import strategies as st

from fleetfold.adapters.memory import MemoryObjects, MemoryRecords
from fleetfold.coordinator.exchange import Terms
from fleetfold.coordinator.folding import HERE
from fleetfold.coordinator.merging import merged
from fleetfold.flower import fast, private
from fleetfold.flower.checkpoint import Shelf
from fleetfold.fold.tensors import header_in, write
from fleetfold.ledger import Arrival
from fleetfold.messages import UpdateHeader
from fleetfold.round.state import Policy, Round

LIMIT = 1e-6
SHAPES: dict[str, tuple[int, ...]] = {"conv": (3, 3, 4), "dense": (40, 30), "bias": (30,), "none": (0, 3)}
if tuple(map(int, private.installed().split(".")[:2])) > (1, 22):
    SHAPES["scale"] = ()  # of which that one's strategies make no arrays
EVERY: dict[str, Callable[[], flower.Strategy]] = {
    "FedAvg": flower.FedAvg,
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1),
    "FedAvgM": lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "FedAvgM without an optimizer": flower.FedAvgM,
    "FedAdagrad": flower.FedAdagrad,
    "FedAdam": flower.FedAdam,
    "FedYogi": flower.FedYogi,
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(beta=0.3),
    "FedTrimmedAvg of nothing": lambda: flower.FedTrimmedAvg(beta=0.0),
    "Krum": lambda: flower.Krum(num_malicious_nodes=1),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
    "MultiKrum of more than there are": lambda: flower.MultiKrum(
        num_malicious_nodes=9, num_nodes_to_select=20
    ),
}
SLOW: dict[str, Callable[[], flower.Strategy]] = {
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1),
    "Bulyan": flower.Bulyan,
    "FedXgbBagging": flower.FedXgbBagging,
    "FedXgbCyclic": flower.FedXgbCyclic,
    "private": lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 0.1, 1.0, 3),
}


@pytest.fixture(autouse=True)
def as_the_server() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    private.identify(1, private.SERVER)


class Nodes:
    """As much of a Grid as choosing the nodes of a round takes."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


def model(chance: np.random.Generator, dtype: Any) -> dict[str, Any]:
    return {name: np.asarray(chance.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def updates(
    base: dict[str, Any], n: int, chance: np.random.Generator, weights: Sequence[Any]
) -> list[RecordDict]:
    """After local training, each a little elsewhere; the last of more than three lies."""
    contents = []
    for i in range(n):
        far = 5.0 if i == n - 1 > 2 else 0.02 * (1 + i)
        arrays = {k: np.asarray(v + far * chance.normal(size=v.shape), v.dtype) for k, v in base.items()}
        metrics = {"num-examples": weights[i], "loss": float(chance.normal()), "each": [0.5 * i, 2.0]}
        record = ArrayRecord({k: Array(v) for k, v in arrays.items()})
        contents.append(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}))
    return contents


def replies(contents: Sequence[RecordDict]) -> list[Message]:
    return [
        private.message(
            RecordDict(dict(content.items())), None, id=f"a{i}", run=1, src=private.node_id(f"d{i}"), dst=1,
            type="train", group="", ttl=60.0, created=1e9, reply_to=f"q{i}",
        )
        for i, content in enumerate(contents)
    ]  # fmt: skip


def copied(contents: Sequence[RecordDict]) -> list[RecordDict]:
    """FedMedian empties what it is given."""
    return [RecordDict({k: v.copy() for k, v in content.items()}) for content in contents]


def folded(contents: Sequence[RecordDict], way: fast.Way) -> tuple[Shelf, str, str] | None:
    """The contents as answers that have arrived, merged by the core."""
    objects = MemoryObjects()
    round = Round(
        run="r", number=1, kind="message", base=0, cohort="", invited=len(contents), opened_at=0.0,
        policy=Policy(target=1, quorum=1, deadline=60.0),
    )  # fmt: skip
    arrivals = []
    for i, content in enumerate(contents):
        numbers = {k: float(v) for k, v in content["metrics"].items() if not isinstance(v, list)}
        about = UpdateHeader(run="r", round=1, kind="message", device=f"d{i}", examples=1, metrics=numbers)
        data = write({k: a.numpy() for k, a in content["arrays"].items()}, msgspec.json.encode(about))
        objects.put(key := f"runs/r/rounds/000001-message/updates/d{i}.safetensors", [data])
        arrivals.append(
            Arrival(
                device=f"d{i}",
                seat=i,
                state="admitted",
                key=key,
                size=len(data),
                metrics=numbers,
                begin=header_in(data).begin,
            )
        )
    objects.put("runs/r/models/000000.safetensors", [write({})])
    terms = Terms(
        weight="num-examples", fold=way.fold, trim=way.trim, byzantine=way.byzantine, kept=way.kept,
        into="runs/r/models/000001.safetensors",
    )  # fmt: skip
    fold = merged(objects, round, arrivals, terms, HERE)
    return (Shelf("r", objects, MemoryRecords()), fold.key, fold.digest) if fold else None


def quickly(strategy: Any, contents: Sequence[RecordDict], round: int) -> tuple[ArrayRecord, MetricRecord]:
    way = fast.way(strategy)
    assert way is not None
    found = folded(contents, way)
    assert found is not None
    shelf, key, digest = found
    chosen = shelf.chosen(key)
    every = replies(contents)
    of = [reply for reply in every if chosen is None or reply.metadata.src_node_id in chosen]
    arrays, metrics = fast.aggregate(strategy, way, round, every, of, shelf.open(key, digest))
    assert arrays is not None
    assert metrics is not None
    return arrays, metrics


def gap(a: ArrayRecord, b: ArrayRecord) -> float:
    assert list(a) == list(b)
    assert [x.dtype for x in a.values()] == [x.dtype for x in b.values()]
    assert [tuple(x.shape) for x in a.values()] == [tuple(x.shape) for x in b.values()]
    return max(
        float(np.abs(x.numpy() - y.numpy()).max(initial=0))
        for x, y in zip(a.values(), b.values(), strict=True)
    )


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(seed=st.integers(0, 2**32), n=st.integers(1, 9), whole=st.booleans(), zeros=st.integers(0, 2))
def test_our_fold_gives_what_flowers_own_gives(
    name: str, dtype: Any, seed: int, n: int, whole: bool, zeros: int
) -> None:
    """Three rounds, each from Flower's model of the round before; in some, replies of no weight."""
    n += 4 * ("Krum" in name)  # with one neighbour each two are as good, and which is taken nobody says
    chance = np.random.default_rng(seed)
    theirs, ours = EVERY[name](), EVERY[name]()
    base = model(chance, dtype)
    for round in (1, 2, 3):
        weights = [int(w) if whole else float(w) for w in chance.integers(1, 500, n)]
        weights[: min(zeros, n - 1)] = [type(weights[0])(0)] * min(zeros, n - 1)
        contents = updates(base, n, chance, weights)
        record = ArrayRecord({k: Array(v) for k, v in base.items()})
        for strategy in (theirs, ours):
            list(strategy.configure_train(round, record, ConfigRecord(), Nodes()))  # type: ignore[arg-type]
        try:
            arrays, metrics = theirs.aggregate_train(round, replies(copied(contents)))
        except ZeroDivisionError:  # those that Krum has chosen weigh nothing
            assert folded(contents, fast.way(ours)) is None  # type: ignore[arg-type]
            return
        mine, mine_metrics = quickly(ours, contents, round)
        assert gap(mine, arrays) <= LIMIT
        assert {**mine_metrics, "each": 0} == pytest.approx({**metrics, "each": 0})
        assert mine_metrics["each"] == pytest.approx(metrics["each"])
        base = {k: np.asarray(a.numpy()) for k, a in arrays.items()}
        if hasattr(ours, "m_t"):
            ours.current_arrays = theirs.current_arrays
        if isinstance(ours, flower.FedAvgM):
            ours.current_arrays = theirs.current_arrays


@pytest.mark.parametrize("name", SLOW)
def test_what_our_fold_does_not_do_is_left_to_flower(name: str) -> None:
    assert fast.way(SLOW[name]()) is None


def test_a_strategy_of_the_users_that_aggregates_itself_is_left_to_it() -> None:
    class Own(flower.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return super().aggregate_train(server_round, replies)

    class Between(flower.FedAdam, Own):
        pass

    class Choosy(flower.FedAvg):
        def _check_and_log_replies(self, replies: Any, is_train: bool, validate: bool = True) -> Any:
            return list(replies)[:1], []

    bound = flower.FedAvg()
    bound.aggregate_train = lambda server_round, replies: (None, None)
    for strategy in (Own(), Between(), Choosy(), bound):
        assert fast.way(strategy) is None


def test_a_strategy_of_the_users_that_only_configures_is_folded() -> None:
    class Own(flower.FedAdam):
        def configure_train(self, *told: Any) -> Any:
            return super().configure_train(*told)

    assert fast.way(Own()) == fast.Way("mean", given=True)


@pytest.mark.parametrize(("kept", "malicious"), [(0, 1), (3, -1)])
def test_a_krum_that_cannot_be_is_left_to_flower(kept: int, malicious: int) -> None:
    assert fast.way(flower.MultiKrum(num_malicious_nodes=malicious, num_nodes_to_select=kept)) is None


def test_metrics_are_made_by_the_users_own_function_of_all_replies_and_once() -> None:
    calls = []

    def own(contents: list[RecordDict], key: str) -> MetricRecord:
        calls.append([content["metrics"]["num-examples"] for content in contents])
        return MetricRecord({"n": len(contents)})

    strategy = flower.FedAdam(train_metrics_aggr_fn=own)
    chance = np.random.default_rng(1)
    base = model(chance, np.float32)
    record = ArrayRecord({k: Array(v) for k, v in base.items()})
    list(strategy.configure_train(1, record, ConfigRecord(), Nodes()))  # type: ignore[arg-type]
    _, metrics = quickly(strategy, updates(base, 4, chance, [1, 2, 3, 4]), 1)
    assert calls == [[1, 2, 3, 4]]
    assert metrics == {"n": 4}
    assert strategy.train_metrics_aggr_fn is own
    assert "_check_and_log_replies" not in vars(strategy)


def message_with(*arrays: Array) -> Message:
    record = ArrayRecord({str(i): a for i, a in enumerate(arrays)})
    content = RecordDict({"arrays": record, "config": ConfigRecord({"lr": 0.1})})
    return replies([content])[0]


def test_replies_to_flowers_own_have_to_be_like_what_was_sent_and_weighted() -> None:
    terms = fast.terms(flower.FedAdam(weighted_by_key="n"), [message_with(Array(np.ones(3)))], train=True)
    assert (terms.alike, terms.weight, terms.same_metrics) == (True, "n", True)
    terms = fast.terms(flower.FedAvg(), [message_with(Array(np.ones(3)))], train=False)
    assert (terms.alike, terms.weight, terms.same_metrics) == (False, "num-examples", True)


def test_where_nothing_or_more_than_a_model_is_sent_replies_may_have_any_arrays() -> None:
    two = RecordDict({"a": ArrayRecord([np.ones(3)]), "b": ArrayRecord([np.ones(3)])})
    for messages in ([message_with()], replies([two])):
        assert not fast.terms(flower.FedAvg(), messages, train=True).alike


def test_replies_of_trees_may_have_any_size() -> None:
    terms = fast.terms(flower.FedXgbBagging(), [message_with(Array(np.ones(3)))], train=True)
    assert (terms.alike, terms.weight) == (False, "num-examples")


def test_what_a_strategy_of_the_users_aggregates_may_be_anything() -> None:
    class Own(flower.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return None, None

    assert fast.terms(Own(), [message_with(Array(np.ones(3)))], train=True) == Terms()
    wrapped = flower.DifferentialPrivacyServerSideFixedClipping(Own(), 0.1, 1.0, 3)
    assert fast.terms(wrapped, [message_with(Array(np.ones(3)))], train=True) == Terms()


def test_the_usual_replies_are_those_that_are_as_most_are() -> None:
    chance = np.random.default_rng(3)
    contents = updates(model(chance, np.float32), 4, chance, [1, 2, 3, 4])
    del contents[1]["metrics"]["loss"]
    contents[2]["arrays"]["extra"] = Array(np.ones(2))
    every = replies(contents)
    with pytest.raises(InconsistentMessageReplies):
        flower.FedAvg().aggregate_train(1, every)
    assert fast.usual(every) == [every[0], every[3]]


def test_replies_of_no_weight_at_all_are_not_folded() -> None:
    chance = np.random.default_rng(3)
    contents = updates(model(chance, np.float32), 2, chance, [0, 0])
    assert folded(contents, fast.Way("mean")) is None
