"""The costs as people are shown them: asked for beforehand, and beside the rounds of a run on AWS."""

import json
from pathlib import Path

import pytest
from cyclopts import App

from fleetfold.aws.cost import cost_of, prices, published
from fleetfold.cli.aws_cost import cost
from fleetfold.cli.main import app as cli
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import write
from fleetfold.ledger import place
from fleetfold.view import rows
from tests.world import Walk, World

PRICES = prices()
aws = App(name="aws", help_format="markdown")
aws.command(cost)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(app: App, *words: str) -> str:
        app(list(words), exit_on_error=False, print_error=False, result_action="return_value")
        return capsys.readouterr().out

    return run


def test_what_a_round_would_cost_is_said_with_its_items_and_its_seconds(said) -> None:  # type: ignore[no-untyped-def]
    text = said(aws, "cost", "--model-mb", "44.8", "--rounds", "100", "--deadline", "10s")
    for words in (
        "44.8 MB; 20 updates of 44.8 MB, full", "the cheapest within 10 s", "100 rounds", "Step Functions",
        "models out to the internet", "us-east-1, 20", "while nothing is trained", "a model, not a bill",
    ):  # fmt: skip
        assert words in text, text


def test_as_json_it_is_one_object_whose_items_add_up(said) -> None:  # type: ignore[no-untyped-def]
    told = json.loads(said(aws, "cost", "--model-mb", "500", "--codec", "int8", "--rounds", "7", "--json"))
    assert sum(item["usd"] for item in told["bill"]["items"]) == pytest.approx(told["usd"])
    assert told["run_usd"] == pytest.approx(7 * told["usd"])
    assert told["bill"]["work"]["codec"] == "int8"


def test_the_model_of_an_app_or_of_a_file_is_taken_as_it_is(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said(cli, "init", "my-app")
    assert "20 updates of" in said(aws, "cost", "my-app")
    (tmp_path / "model.safetensors").write_bytes(write(Walk().init(0)))
    assert "20 updates of 36 B" in said(aws, "cost", "model.safetensors")


def test_published_folds_stand_beside_what_the_model_says_of_them(said) -> None:  # type: ignore[no-untyped-def]
    text = said(aws, "cost", "--check")
    assert text.count("resnet18") == 2
    assert "arXiv 2604.22072" in text
    told = [json.loads(line) for line in said(aws, "cost", "--check", "--json").splitlines()]
    assert len(told) == sum(row.topology == "shards" for row in published())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "one of APP and --model-mb"),
        (["--model-mb", "1", "--codec", "zip"], "'zip' is not one of"),
        (["--model-mb", "0"], "must be above 0"),
        (["--model-mb", "1", "--budget", "much"], "is not an amount such as 5USD"),
        (["--model-mb", "1", "--deadline", "soon"], "is not a time such as 3s"),
        (["--model-mb", "1", "--devices", "0"], "must be at least 1"),
        (["--model-mb", "1", "--prices", "nowhere.toml"], "nowhere.toml: No such file"),
        (["--model-mb", "1", "--deadline", "1ms"], "no shape keeps 0.001 s"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(said, words: list[str], why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadConfig, match=why.replace("(", r"\(")):
        said(aws, "cost", *words)


# What a run has cost


def test_a_round_costs_what_the_ledger_knows_of_it_and_only_once_it_has_ended() -> None:
    world = World(devices=5, rounds=3)
    world.live()

    def priced(round, arrivals, model):  # type: ignore[no-untyped-def]
        return cost_of(round, arrivals, model, world.ledger.folding(place(round)), PRICES)

    told = rows(world.ledger, world.objects, "r", world.now, priced)
    assert len(told) == 3
    assert all(row.cost is not None and 0 < row.cost < 0.01 for row in told)
    assert [row.cost for row in rows(world.ledger, world.objects, "r", world.now)] == [None] * 3


def test_show_tells_what_a_run_on_aws_has_cost_and_nothing_of_any_other(  # type: ignore[no-untyped-def]
    said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies on this machine, and is only said to be on AWS."""
    said(cli, "init", "my-app")
    said(cli, "run", "my-app", "--rounds", "2", "--workers", "1")
    assert "cost" not in said(cli, "show", "latest")
    monkeypatch.setattr("fleetfold.aws.pricing.where", lambda place: "cloud")
    text = said(cli, "show", "latest")
    assert "cost" in text.splitlines()[3]
    assert "in 2 rounds, by a model and public prices" in text
    told = [json.loads(line) for line in said(cli, "show", "latest", "--json").splitlines()]
    assert all(row["cost"] > 0 for row in told)
