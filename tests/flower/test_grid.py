"""What an app that sends messages gets, and what the fleet is asked for it."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg

from fleetfold.errors import BadConfig, Unavailable
from fleetfold.flower import private
from fleetfold.round.state import Phase
from tests.flower.field import Field


def client() -> ClientApp:
    """Trains by adding its number; counts in its state how often it was asked; raises when told to."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        index = int(context.node_config["partition-id"])
        record: Any = context.state.setdefault("times", MetricRecord({"n": 0}))
        record["n"] += 1
        arrays = [array.numpy() + index for array in message.content["arrays"].values()]
        metrics = MetricRecord({"num-examples": index + 1, "train_loss": 1.0, "times": record["n"]})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    @app.train("boom")
    def boom(message: Message, context: Context) -> Message:
        raise ValueError("no bridge")

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 2, "eval_acc": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        told = ConfigRecord({**context.node_config, **context.run_config})
        return Message(RecordDict({"told": told, **message.content}), reply_to=message)

    return app


MODEL = ArrayRecord([np.zeros(3, np.float32), np.ones((2, 2), np.float64)])


def asked(grid: Grid, kind: str = "train", content: RecordDict | None = None, **more: Any) -> list[Message]:
    """One message to each node, all of the same content."""
    content = content or RecordDict({"arrays": MODEL, "config": ConfigRecord({"server-round": 3})})
    return [Message(content, node, kind, **more) for node in grid.get_node_ids()]


def sums(messages: Iterable[Message]) -> list[float]:
    return [float(message.content["arrays"]["0"].numpy().sum()) for message in messages]


def test_each_node_answers_and_the_record_says_what_it_was() -> None:
    field = Field(client())
    grid = field.grid()
    messages = asked(grid, group_id="g", ttl=3600.0)
    replies = list(grid.send_and_receive(messages))
    assert sums(replies) == [0.0, 3.0, 6.0, 9.0]
    for message, reply in zip(messages, replies, strict=True):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert (reply.metadata.group_id, reply.metadata.message_type) == ("g", "train")
    (round,) = field.rounds()
    assert (round.label, round.turn, round.phase) == ("train", 3, Phase.DONE)
    assert round.metrics["trained"]["train_loss"] == 1.0


def test_a_content_that_all_are_sent_is_uploaded_once_and_not_again_later() -> None:
    field = Field(client(), 10)
    grid = field.grid()
    grid.send_and_receive(asked(grid))
    grid.send_and_receive(asked(grid, "evaluate"))
    mine = [Message(RecordDict({"arrays": MODEL}), node, "train") for node in grid.get_node_ids()]
    grid.send_and_receive(mine)
    assert len(field.objects.list("runs/r/contents/")) == 1


def test_arrays_that_came_and_go_on_are_not_uploaded_at_all() -> None:
    field = Field(client())
    grid = field.grid()
    best = list(grid.send_and_receive(asked(grid)))[2].content["arrays"]
    before = grid.letters.contents.uploaded
    replies = grid.send_and_receive(asked(grid, content=RecordDict({"arrays": best})))
    assert sums(replies) == [6.0, 9.0, 12.0, 15.0]
    assert grid.letters.contents.uploaded == before


def test_contents_of_their_own_reach_each_node() -> None:
    field = Field(client(), config={"lr": 0.5})
    grid = field.grid()
    nodes = grid.get_node_ids()
    messages = [Message(RecordDict({"q": MetricRecord({"n": k})}), n, "query") for k, n in enumerate(nodes)]
    replies = list(grid.send_and_receive(messages))
    assert [r.content["q"]["n"] for r in replies] == [0, 1, 2, 3]
    assert [r.content["told"]["partition-id"] for r in replies] == [0, 1, 2, 3]
    assert {r.content["told"]["lr"] for r in replies} == {0.5}


def test_what_a_client_keeps_is_there_the_next_time() -> None:
    field = Field(client())
    grid = field.grid()
    for times in (1, 2, 3):
        replies = list(grid.send_and_receive(asked(grid)))
        assert {reply.content["metrics"]["times"] for reply in replies} == {times}


def test_what_a_client_raises_is_an_error_that_names_the_line() -> None:
    field = Field(client(), quorum=1)
    grid = field.grid()
    nodes = grid.get_node_ids()
    kinds = ["train", "train.boom", "train", "train"]
    content = RecordDict({"arrays": MODEL})
    replies = grid.send_and_receive([Message(content, n, k) for n, k in zip(nodes, kinds, strict=True)])
    errors = [reply for reply in replies if reply.has_error()]
    assert [error.metadata.src_node_id for error in errors] == [nodes[1]]
    assert "no bridge" in errors[0].error.reason
    assert "test_grid.py line" in errors[0].error.reason
    assert len(list(replies)) == 4


def test_who_has_another_version_of_the_app_is_left_out() -> None:
    field = Field(client(), quorum=1)
    field.before = lambda task: setattr(field.client, "fingerprint", "f2" if task.device == "d1" else "f1")
    grid = field.grid()
    replies = list(grid.send_and_receive(asked(grid)))
    assert [reply.error.reason for reply in replies if reply.has_error()] == [
        "device refused: has another version of the app, f2: this message is for f1"
    ]


def test_the_silent_are_waited_for_until_the_deadline_and_no_longer() -> None:
    field = Field(client(), 3, silent=1, deadline=30.0)
    grid = field.grid()
    assert len(list(grid.send_and_receive(asked(grid), timeout=3600))) == 3
    (round,) = field.rounds()
    assert round.ended_at - round.opened_at == pytest.approx(30, abs=2)


@pytest.mark.parametrize("wait", [{"timeout": 7.0}, {"ttl": 7.0}], ids=["timeout", "ttl"])
def test_a_timeout_of_the_app_and_the_life_of_its_messages_are_kept(wait: dict[str, float]) -> None:
    field = Field(client(), 3, silent=1)
    grid = field.grid()
    messages = asked(grid, **({"ttl": wait["ttl"]} if "ttl" in wait else {}))
    assert len(list(grid.send_and_receive(messages, timeout=wait.get("timeout")))) == 3
    (round,) = field.rounds()
    assert round.ended_at - round.opened_at == pytest.approx(7, abs=2)


def test_others_are_asked_besides_where_the_run_selects_more_than_wanted() -> None:
    field = Field(client(), 4, silent=2, over_select=0.5)
    grid = field.grid()
    content = RecordDict({"arrays": MODEL})
    chosen = [private.node_id(name) for name in ("d0", "d4", "d1", "d5")]
    replies = list(grid.send_and_receive([Message(content, node, "train") for node in chosen]))
    (round,) = field.rounds()
    assert (round.invited, round.policy.target, len(round.arrived)) == (6, 4, 4)
    assert sorted(sums(replies)) == [0.0, 3.0, 6.0, 9.0]
    assert round.ended_at - round.opened_at < 600


def test_nobody_else_is_asked_what_is_not_the_same_for_all() -> None:
    field = Field(client(), 4, over_select=1.0)
    grid = field.grid()
    nodes = grid.get_node_ids()[:2]
    grid.send_and_receive([Message(RecordDict({"arrays": MODEL}), node, "train") for node in nodes])
    assert field.rounds()[0].invited == 2


def test_a_node_that_is_none_is_an_error_and_the_others_are_asked() -> None:
    field = Field(client())
    grid = field.grid()
    content = RecordDict({"arrays": MODEL})
    messages = [Message(content, node, "train") for node in (12345, grid.get_node_ids()[0])]
    gone, found = grid.send_and_receive(messages)
    assert "no node 12345" in gone.error.reason
    assert not found.has_error()
    ids = grid.push_messages([Message(content, 12345, "train")])
    assert [m.error.code for m in grid.pull_messages(ids)] == [private.UNAVAILABLE]


def test_two_messages_to_one_node_are_answered_one_after_the_other() -> None:
    field = Field(client())
    grid = field.grid()
    node = grid.get_node_ids()[1]
    content = RecordDict({"arrays": MODEL})
    replies = list(grid.send_and_receive([Message(content, node, "train") for _ in range(3)]))
    assert [reply.content["metrics"]["times"] for reply in replies] == [1, 2, 3]
    assert len({reply.metadata.reply_to_message_id for reply in replies}) == 3


def pulled(grid: Grid, ids: Iterable[str]) -> list[Message]:
    """As apps do."""
    left, found = set(ids), []
    while left:
        new = list(grid.pull_messages(left))
        left -= {message.metadata.reply_to_message_id for message in new}
        found += new
    return found


def test_what_is_pushed_is_pulled() -> None:
    field = Field(client(), 3, silent=1)
    grid = field.grid()
    made = [
        grid.create_message(RecordDict({"arrays": MODEL}), "train", node, "g", ttl=9.0)
        for node in grid.get_node_ids()
    ]
    ids = list(grid.push_messages(made))
    found = pulled(grid, ids)
    assert {message.metadata.reply_to_message_id for message in found} == set(ids)
    assert ["not answered in time" in m.error.reason for m in found if m.has_error()] == [True]


def test_several_exchanges_are_open_at_once_and_a_busy_node_is_waited_for() -> None:
    field = Field(client(), 4)
    grid = field.grid()
    nodes = grid.get_node_ids()
    content = RecordDict({"arrays": MODEL})
    first = grid.push_messages([Message(content, node, "train") for node in nodes[:2]])
    second = grid.push_messages([Message(content, node, "train") for node in nodes[2:]])
    assert [round.phase for round in field.rounds()] == [Phase.OPEN] * 2
    third = grid.push_messages([Message(content, nodes[0], "train")])
    assert field.rounds()[0].phase is Phase.DONE
    assert len(pulled(grid, [*first, *second, *third])) == 5


def test_a_run_whose_exchanges_keep_failing_ends_and_says_why() -> None:
    field = Field(client(), 1, silent=3, patience=2, deadline=5.0)
    grid = field.grid()
    assert all(reply.has_error() for reply in grid.send_and_receive(asked(grid)))
    with pytest.raises(Unavailable, match="2 exchanges in a row failed"):
        grid.send_and_receive(asked(grid))
    assert all(reply.has_error() for reply in field.grid().send_and_receive(asked(field.grid())))


def test_a_message_that_cannot_be_sent_is_the_apps_fault() -> None:
    field = Field(client())
    grid = field.grid()
    content = RecordDict({"c": ConfigRecord({"t": "x" * (17 << 20)})})
    with pytest.raises(BadConfig, match="at most"):
        grid.send_and_receive(asked(grid, "query", content))


# Begun again


def test_an_app_that_is_begun_again_is_answered_from_the_record() -> None:
    field = Field(client())
    grid = field.grid()
    first = sums(grid.send_and_receive(asked(grid)))
    ids = grid.push_messages(asked(grid, "evaluate"))
    answered = list(field.answered)
    again = field.grid()
    assert sums(again.send_and_receive(asked(again))) == first
    assert field.answered == answered
    assert again.push_messages(asked(again, "evaluate")) == ids
    assert len(pulled(again, ids)) == 4
    assert len(field.rounds()) == 2


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
def test_a_strategy_that_is_begun_again_comes_to_the_same(strategy: Callable[[], FedAvg]) -> None:
    def train(field: Field, rounds: int) -> list[Any]:
        grid = field.grid()
        result = strategy().start(grid, MODEL, num_rounds=rounds)
        return [array.tolist() for array in result.arrays.to_numpy_ndarrays()]

    undisturbed = train(Field(client()), 3)
    field = Field(client())
    train(field, 2)
    seen = len(field.answered)
    assert train(field, 3) == undisturbed
    assert len(field.answered) == seen + 2 * 4


def from_threads(grid: Grid, rounds: int) -> list[list[float]]:
    """As Flower's older API does: one message from each thread."""
    found = []

    def one(node: int, round: int) -> float:
        content = RecordDict({"arrays": MODEL})
        (reply,) = grid.send_and_receive([Message(content, node, "train", group_id=str(round))])
        if reply.has_error():
            return -1.0
        return sums([reply])[0]

    for round in range(1, rounds + 1):
        with ThreadPoolExecutor(8) as threads:
            found.append(list(threads.map(lambda node, r=round: one(node, r), grid.get_node_ids())))
    return found


def test_what_threads_send_is_gathered_and_found_again() -> None:
    field = Field(client(), 6)
    answers = from_threads(field.grid(), 2)
    assert answers == [[0.0, 3.0, 6.0, 9.0, 12.0, 15.0]] * 2
    assert sum(round.invited for round in field.rounds()) == 12
    seen = len(field.answered)
    assert from_threads(field.grid(), 3) == [answers[0]] * 3
    assert len(field.answered) == seen + 6


def test_a_thread_hears_that_its_node_is_silent() -> None:
    field = Field(client(), 3, silent=1, deadline=5.0)
    assert from_threads(field.grid(), 1) == [[0.0, 3.0, 6.0, -1.0]]


def test_the_main_thread_and_others_do_not_take_each_others_answers() -> None:
    field = Field(client(), 3)

    def app(grid: Grid) -> tuple[list[list[float]], list[float]]:
        return from_threads(grid, 1), sums(grid.send_and_receive(asked(grid)))

    assert app(field.grid()) == app(field.grid())
    assert threading.active_count() == 1
