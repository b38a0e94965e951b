"""A durable `Strategy.start` is Flower's own to whoever calls it, and goes on where it was after a death."""

import hashlib
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy

from fleetfold import layout
from fleetfold.adapters.faults import Died, Faults, simulated_death
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.flower.checkpoint import Shelf
from fleetfold.flower.grid import FleetGrid
from fleetfold.flower.leaving import Suspend
from fleetfold.flower.start import Durable, installed
from fleetfold.ports import fetch
from fleetfold.round.state import Phase
from tests.flower import field as fields

SHAPES = {"w": (30, 100), "b": (5,)}
Main = Callable[[FleetGrid], Result]


class Field(fields.Field):
    """The devices' chance is their own, as that of other processes is."""

    def idle(self, seconds: float) -> None:
        mine = random.getstate(), np.random.get_state()
        super().idle(seconds)
        random.setstate(mine[0])
        np.random.set_state(mine[1])


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def client() -> ClientApp:
    """Moves the model a little way to where its own number is."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        index = int(context.node_config["partition-id"])
        chance = np.random.default_rng([index, int(message.content["config"]["server-round"])])
        arrays = {
            name: Array((0.7 * a.numpy() + chance.normal(size=a.shape)).astype(a.dtype))
            for name, a in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": index + 1, "loss": float(index)})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        total = sum(float(np.abs(a.numpy()).sum()) for a in message.content["arrays"].values())
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "size": total})})
        return Message(content, reply_to=message)

    return app


def model() -> ArrayRecord:
    chance = np.random.default_rng(5)
    return ArrayRecord({n: Array(chance.normal(size=s).astype(np.float32)) for n, s in SHAPES.items()})


def scored(round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"sum": float(sum(a.numpy().sum() for a in arrays.values())), "round": round})


def main_of(make: Callable[[], Strategy], rounds: int = 3, **more: Any) -> Main:
    def main(grid: FleetGrid) -> Result:
        return make().start(grid, model(), num_rounds=rounds, evaluate_fn=scored, **more)

    return main


def flowers(main: Main, field: Field) -> Result:
    """What Flower's own start makes of it."""
    random.seed(1)
    np.random.seed(1)
    return main(field.grid())


def ours(main: Main, field: Field, *, fold: bool = True, keep: int = 2) -> Result:
    """The same app as one process after another has it; chance begins anew with each."""
    random.seed(1)
    np.random.seed(1)
    shelf = Shelf("r", field.objects, field.records)
    grid = field.grid()
    with installed(Durable(shelf, grid, fold=fold, keep=keep)):
        return main(grid)


def dying(main: Main, field: Field, at: int) -> bool:
    """Whether it died at that step of all writes, instead of coming to its end."""
    objects, records, ledger, bus = field.objects, field.records, field.ledger, field.bus
    faults = Faults(at, simulated_death)
    field.objects, field.records, field.bus = map(faults.wrap, (objects, records, bus))
    field.ledger = type(ledger)(field.records)
    try:
        ours(main, field)
        return False
    except Died:
        return True
    finally:
        field.objects, field.records, field.ledger, field.bus = objects, records, ledger, bus


def numbers(record: ArrayRecord) -> dict[str, str]:
    return {name: hashlib.sha256(array.numpy().tobytes()).hexdigest() for name, array in record.items()}


def plain(result: Result) -> Any:
    return [
        {round: dict(metrics) for round, metrics in getattr(result, name).items()}
        for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
    ]


EVERY: dict[str, Callable[[], Strategy]] = {
    "FedAvg": flower.FedAvg,
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1),
    "FedAvgM": lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "FedAdagrad": flower.FedAdagrad,
    "FedAdam": flower.FedAdam,
    "FedYogi": flower.FedYogi,
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(beta=0.3),
    "Krum": flower.Krum,
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=0, num_nodes_to_select=2),
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1, train_loss_key="loss"),
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=0),
    "private, fixed": lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 0.1, 1.0, 4),
    "private, adaptive": lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(
        flower.FedAdam(), 0.1, 4
    ),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_the_result_is_flowers(name: str, fold: bool) -> None:
    main = main_of(EVERY[name])
    theirs = flowers(main, Field(client()))
    mine = ours(main, Field(client()), fold=fold)
    for key, array in theirs.arrays.items():
        np.testing.assert_allclose(mine.arrays[key].numpy(), array.numpy(), atol=1e-5 if fold else 0)
    for told, known in zip(plain(mine), plain(theirs), strict=True):
        assert told.keys() == known.keys()
        for round in known:
            assert told[round] == pytest.approx(known[round], rel=1e-4 if fold else 0)


@pytest.mark.parametrize("name", ["FedAdam", "private, adaptive", "Krum"])
@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.fleet) for n in range(2, 12))])
def test_a_run_that_dies_anywhere_ends_with_the_same_bytes_and_trains_nothing_twice(
    name: str, first: int
) -> None:
    """At every eleventh step of all writes from that one on."""
    main = main_of(EVERY[name], rounds=2)
    expected = ours(main, Field(client(), 3))
    steps = 0
    for at in range(first, 10_000, 11):
        field = Field(client(), 3)
        if not dying(main, field, at):
            steps = at
            break
        result = ours(main, field)
        assert numbers(result.arrays) == numbers(expected.arrays), f"dead at step {at}"
        assert plain(result) == plain(expected), f"dead at step {at}"
        assert not trained_twice(field), f"dead at step {at}"
    assert steps > 60


def trained_twice(field: Field) -> list[tuple[str, int]]:
    return sorted({one for one in field.answered if field.answered.count(one) > 1})


def test_a_run_that_dies_again_and_again_comes_to_its_end() -> None:
    main = main_of(EVERY["FedYogi"], rounds=2)
    expected = ours(main, Field(client()))
    field = Field(client())
    lives = 0
    while dying(main, field, 30 + lives % 7):
        lives += 1
        assert lives < 200
    result = ours(main, field)
    assert numbers(result.arrays) == numbers(expected.arrays)
    assert plain(result) == plain(expected)


def test_the_models_of_a_run_are_files_whose_tensors_are_called_as_its_arrays() -> None:
    field = Field(client())
    result = ours(main_of(flower.FedAvg), field)
    found, _ = field.ledger.run("r")  # type: ignore[misc]
    assert found.version == 3
    from safetensors.numpy import load

    tensors = load(fetch(field.objects, layout.model("r", 3)))
    assert numbers(ArrayRecord({k: Array(a) for k, a in tensors.items()})) == numbers(result.arrays)


def test_a_model_is_not_uploaded_again_to_be_sent() -> None:
    field = Field(client())
    ours(main_of(flower.FedAdam), field)
    assert not field.objects.list("runs/r/contents/")


def test_what_is_no_longer_needed_is_removed() -> None:
    field = Field(client())
    ours(main_of(flower.FedAdam, rounds=6), field, keep=1)
    kept = {key.split("/")[3] for key in field.objects.list("runs/r/rounds/") if "/updates/" in key}
    assert kept == {f"{n:06}-message" for n in (11, 12)}
    assert len(field.objects.list("runs/r/app/")) <= 4


def test_what_the_devices_were_told_of_scores_is_seen_in_the_round() -> None:
    field = Field(client())
    result = ours(main_of(flower.FedAvg), field)
    train = [round for round in field.rounds() if round.label == "train"]
    assert [round.turn for round in train] == [1, 2, 3]
    assert [round.metrics["test"]["sum"] for round in train] == [
        result.evaluate_metrics_serverapp[n]["sum"] for n in (1, 2, 3)
    ]


def test_two_phases_of_one_app_are_told_apart() -> None:
    def main(grid: FleetGrid) -> Result:
        first = flower.FedAdam().start(grid, model(), num_rounds=2)
        nodes = grid.get_node_ids()
        asked = [Message(RecordDict({"arrays": first.arrays}), node, "evaluate") for node in nodes]
        replies = list(grid.send_and_receive(asked))
        assert len(replies) == 4
        second = flower.FedAvgM(server_momentum=0.5)
        return second.start(grid, first.arrays, num_rounds=2, evaluate_fn=scored)

    expected = ours(main, Field(client()))
    for at in range(2, 2000, 37):
        field = Field(client())
        if not dying(main, field, at):
            break
        result = ours(main, field)
        assert numbers(result.arrays) == numbers(expected.arrays), f"dead at step {at}"
        assert not trained_twice(field), f"dead at step {at}"
    else:
        pytest.fail("it never came to its end")


def test_a_strategy_goes_from_phase_to_phase_with_what_it_has() -> None:
    def main(grid: FleetGrid) -> Result:
        strategy = flower.FedAdam()
        first = strategy.start(grid, model(), num_rounds=1)
        return strategy.start(grid, first.arrays, num_rounds=1)

    expected = ours(main, Field(client()))
    for at in range(1, 2000, 29):
        field = Field(client())
        if not dying(main, field, at):
            break
        assert numbers(ours(main, field).arrays) == numbers(expected.arrays), f"dead at step {at}"


def test_what_a_strategy_writes_into_its_configs_goes_on() -> None:
    class Decaying(flower.FedAvg):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
        ) -> Any:
            config["lr"] = config["lr"] / 2
            return super().configure_train(server_round, arrays, config, grid)

    seen = []

    def main(grid: FleetGrid) -> Result:
        config = ConfigRecord({"lr": 1.0})
        result = Decaying().start(grid, model(), num_rounds=3, train_config=config)
        seen.append(config["lr"])
        return result

    field = Field(client())
    assert dying(main, field, 70)
    ours(main, field)
    assert seen == [0.125]


def test_sampling_after_a_death_is_what_it_would_have_been() -> None:
    def main(grid: FleetGrid) -> Result:
        strategy = flower.FedAvg(fraction_train=0.5, fraction_evaluate=0.3, min_evaluate_nodes=1)
        return strategy.start(grid, model(), num_rounds=4)

    whole = Field(client(), 8)
    ours(main, whole)
    for at in (15, 40, 61, 90):
        field = Field(client(), 8)
        assert dying(main, field, at)
        ours(main, field)
        assert sorted(field.answered) == sorted(whole.answered)


def test_what_cannot_be_stored_is_named_before_anything_is_sent() -> None:
    class Holding(flower.FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.lines = iter("abc")

    field = Field(client())
    with pytest.raises(BadConfig, match=r"Holding\.lines is a builtins\.str_\w*iterator"):
        ours(main_of(Holding), field)
    assert not field.answered


def test_a_round_without_a_quorum_gives_no_arrays_and_the_run_goes_on() -> None:
    field = Field(client(), 4, silent=4, quorum=5, deadline=5.0, patience=3)
    with pytest.raises(Unavailable, match="3 exchanges in a row failed"):
        ours(main_of(flower.FedAvg, rounds=9), field)
    assert [round.phase for round in field.rounds()] == [Phase.FAILED] * 3


def test_who_fails_is_left_out_of_a_private_aggregation_which_goes_on() -> None:
    app = client()
    field = Field(app, 5, silent=1, quorum=4, deadline=30.0)
    result = ours(
        main_of(lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 0.1, 1.0, 6)),
        field,
    )
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]


def test_a_start_of_the_users_own_is_his() -> None:
    class Own(flower.FedAvg):
        def start(self, grid: Any, *told: Any, **more: Any) -> Result:
            result = Result()
            result.arrays = ArrayRecord([np.ones(3)])
            return result

    field = Field(client())
    assert list(ours(lambda grid: Own().start(grid), field).arrays) == ["0"]


def test_another_process_that_has_gone_on_is_not_overtaken() -> None:
    field = Field(client())
    grid = field.grid()
    slow = Durable(Shelf("r", field.objects, field.records), grid)
    main = main_of(flower.FedAvg, rounds=1)
    ours(main, field)
    with installed(slow), pytest.raises(Unavailable, match="another process has gone on"):
        main(grid)


def test_wrong_keys_nan_and_silence_are_left_out_and_the_round_says_so() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        place = int(context.node_config["partition-id"])
        arrays = {n: Array(a.numpy() + place) for n, a in message.content["arrays"].items()}
        if place == 1:
            arrays["another"] = arrays.pop(next(iter(arrays)))
        if place == 2:
            arrays = {n: Array(a.numpy() * np.float32(np.nan)) for n, a in arrays.items()}
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "m": metrics}), reply_to=message)

    for fold in (True, False):
        field = Field(app, 4, silent=1, quorum=2, deadline=9.0)
        result = ours(main_of(lambda: flower.FedAvg(fraction_evaluate=0.0), rounds=1), field, fold=fold)
        (round,) = field.rounds()
        assert (round.phase, sorted(round.arrived)) == (Phase.DONE, [0, 3])
        for name, array in model().items():
            assert np.allclose(result.arrays[name].numpy(), array.numpy() + 1.5)
        refused = dict(field.grid().messenger.refusals(1))
        assert "is missing" in refused["d1"]
        assert "not finite" in refused["d2"]


def in_turns(main: Main, field: Field) -> tuple[Result, int]:
    """The same app, whose process ends where it would wait. → what it comes to, and after how many turns."""
    for turn in range(1, 100):
        random.seed(1)
        np.random.seed(1)
        grid = field.grid()
        shelf = Shelf("r", field.objects, field.records)
        try:
            with installed(Durable(shelf, grid, leaves=True)):
                return main(grid), turn
        except Suspend:
            field.idle(0.0)
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "Krum", "private, adaptive"])
def test_an_app_that_leaves_wherever_it_would_wait_comes_to_the_same_bytes(name: str) -> None:
    main = main_of(EVERY[name])
    expected = ours(main, Field(client()))
    field = Field(client())
    result, turns = in_turns(main, field)
    assert numbers(result.arrays) == numbers(expected.arrays)
    assert plain(result) == plain(expected)
    assert turns == 1 + 2 * 3
    assert not trained_twice(field)


def test_an_app_that_catches_every_exception_leaves_all_the_same() -> None:
    def main(grid: FleetGrid) -> Result:
        try:
            return main_of(flower.FedAvg)(grid)
        except Exception as error:
            raise AssertionError from error

    assert in_turns(main, Field(client()))[1] == 7


def test_what_an_app_sends_by_itself_keeps_its_process_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    def main(grid: FleetGrid) -> Result:
        content = RecordDict({"arrays": model()})
        replies = list(
            grid.send_and_receive([Message(content, node, "evaluate") for node in grid.get_node_ids()])
        )
        assert len(replies) == 4
        return flower.FedAvg().start(grid, model(), num_rounds=1)

    field = Field(client())
    in_turns(main, field)
    assert "lives in its process, which is kept for it" in capfd.readouterr().err
    assert not trained_twice(field)


def test_a_reply_that_a_strategy_of_the_users_finds_unlike_the_others_is_left_out() -> None:
    class Own(flower.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return super().aggregate_train(server_round, replies)

    app = client()

    def wrong(task: Any) -> None:
        field.client._app = other if task.device == "d2" else app

    other = ClientApp()

    @other.train()
    def train(message: Message, context: Context) -> Message:
        record = ArrayRecord({"other": Array(np.ones(3))})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @other.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "size": 0.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    field = Field(app)
    field.before = wrong
    result = ours(main_of(Own), field)
    assert list(result.arrays) == list(SHAPES)
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]


def test_a_reply_with_other_arrays_is_refused_alone() -> None:
    other = ClientApp()

    @other.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({n: Array(a.numpy() * np.nan) for n, a in message.content["arrays"].items()})
        metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @other.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    app = client()
    field = Field(app, quorum=3)

    def wrong(task: Any) -> None:
        field.client._app = other if task.device == "d2" else app

    field.before = wrong
    result = ours(main_of(flower.FedAdam), field)
    assert all(np.isfinite(a.numpy()).all() for a in result.arrays.values())
    assert [len(round.arrived) for round in field.rounds()] == [3] * 6
