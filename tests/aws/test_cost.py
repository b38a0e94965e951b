"""The model of what a round costs: it gives what others have measured, and what it chooses keeps its word."""

import pytest

from fleetfold.aws.cost import (
    PACE,
    STATES,
    Bill,
    Measured,
    Shape,
    best,
    bill,
    billed_usd,
    choose,
    plain,
    prices,
    published,
    sequential,
    work,
)  # fmt: skip
from fleetfold.errors import BadConfig
from fleetfold.fold.plan import LAMBDA, plan_fold

PRICES = prices()
ROWS = [row for row in published() if row.topology == "shards"]
MIB = 1 << 20


def ours(update_mb: float, codec: str, shards: int, memory: int = 256) -> Bill:
    model = plain(int(update_mb * MIB))
    return bill(model, work(model, codec=codec), Shape(shards=shards, memory=memory), PRICES)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.model}-{r.functions}x{r.memory_mb}MB")
def test_a_published_fold_is_said_within_a_fifth_of_its_time_and_of_its_bill(row: Measured) -> None:
    said = sequential(row, PRICES)
    assert said.wall == pytest.approx(row.wall_s, rel=0.2)
    assert 1000 * said.usd == pytest.approx(row.usd_1000, rel=0.2)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.read_s], ids=lambda r: f"{r.model}-{r.functions}x{r.memory_mb}MB"
)
def test_a_published_bill_is_of_reading_and_adding_with_20_gets_and_a_put_for_each_function(
    row: Measured,
) -> None:
    assert row.read_s is not None
    assert row.compute_s is not None
    made = billed_usd(row, row.read_s + row.compute_s, PRICES)
    assert 1000 * made == pytest.approx(row.usd_1000, rel=0.01)


def test_the_sixteen_published_functions_took_their_turns_ten_at_a_time() -> None:
    """Their wall time is twice what each of them took; no other row's is."""
    for row in ROWS:
        if row.read_s is not None and row.compute_s is not None:
            turns = round(row.wall_s / (row.read_s + row.compute_s))
            assert turns == -(-row.functions // PACE.at_once), row


def test_the_published_memories_of_the_second_campaign_are_three_shards_and_450_mb() -> None:
    """So those functions were as full as they can be: where the model's rows are slower than the others."""
    told = [row for row in ROWS if row.read_s is None]
    assert len(told) == 4
    for row in told:
        assert row.memory_mb == pytest.approx(3 * row.update_mb / row.functions + 450, rel=0.03), row


def test_what_is_read_of_a_fold_is_what_its_plan_says() -> None:
    model = plain(200 * MIB)
    made = work(model, codec="int8", devices=50)
    plan = plan_fold(model, 50, made.update, LAMBDA)
    said = bill(model, made, Shape(shards=LAMBDA.folders), PRICES)
    assert said.shape.shards == len(plan.shards)
    assert said.reason == plan.reason


def test_a_model_that_cannot_be_cut_is_folded_by_one_function_without_a_digest_of_its_own() -> None:
    small = ours(1, "full", 40)
    assert small.shape.shards == 1
    assert not {"finish", "digest"} & {step.what for step in small.steps}
    large = ours(100, "full", 40)
    assert large.shape.shards == 20, "parts of 5 MiB at least"
    assert {"finish", "digest"} <= {step.what for step in large.steps}


def test_more_devices_cost_more_and_a_codec_costs_less() -> None:
    model = plain(100 * MIB)
    few, many = (bill(model, work(model, devices=n), Shape(shards=8), PRICES) for n in (10, 100))
    assert few.usd < many.usd
    assert few.seconds < many.seconds
    full, half = ours(500, "full", 8), ours(500, "bf16", 8)
    assert half.of("fold") < full.of("fold")
    assert half.folding < full.folding


def test_arm_is_cheaper_and_a_larger_function_is_dearer() -> None:
    model = plain(100 * MIB)
    made = work(model)
    x86, arm, large = (
        bill(model, made, shape, PRICES).of("fold")
        for shape in (Shape(shards=4), Shape(shards=4, arm=True), Shape(shards=4, memory=1024))
    )
    assert arm < x86 < large


# What is chosen


def chosen(**wanted: float) -> Bill:
    model = plain(100 * MIB)
    return choose(model, [work(model, codec=c) for c in ("full", "bf16", "int8")], PRICES, **wanted).bill  # type: ignore[arg-type]


def test_with_a_deadline_the_cheapest_that_keeps_it_is_chosen() -> None:
    loose, tight = chosen(deadline=60), chosen(deadline=8)
    assert loose.seconds <= 60
    assert tight.seconds <= 8
    assert loose.of("fold") <= tight.of("fold")
    assert loose.work.codec == "full", "a codec is for who needs one"


def test_with_a_budget_the_quickest_within_it_is_chosen() -> None:
    free = chosen(budget=1.0)
    tight = chosen(budget=chosen(deadline=1000).usd)
    assert tight.usd <= free.usd <= 1.0
    assert free.seconds <= tight.seconds


def test_a_codec_is_taken_where_nothing_else_keeps_the_deadline_and_it_is_said() -> None:
    model = plain(500 * MIB)
    works = [work(model, codec=c) for c in ("full", "int8")]
    full, coded = (bill(model, made, Shape(shards=40), PRICES).seconds for made in works)
    found = choose(model, works, PRICES, shards=40, memory=256, deadline=(full + coded) / 2)
    assert found.bill.work.codec == "int8"
    assert "by full none is" in found.reason


def test_what_cannot_be_had_is_said_with_what_comes_nearest() -> None:
    with pytest.raises(BadConfig, match=r"no shape keeps \$1e-06 a round and 1 s: the nearest, .* shards"):
        chosen(budget=1e-6, deadline=1)


# Against what others have built


def test_20_updates_of_3_gb_take_a_third_of_the_best_published_bill_and_half_its_time() -> None:
    made = ours(2952.7, "full", 24)
    for row in best(ROWS, 2952.7):
        assert 1000 * made.of("fold") <= row.usd_1000 / 3
        assert made.folding <= row.wall_s / 2


# Prices


def test_every_price_says_where_it_was_seen() -> None:
    for name, price in PRICES.price.items():
        assert price.usd > 0, name
        assert price.per >= 1, name
        assert price.checked, name


def test_prices_of_ones_own_are_whole_or_refused() -> None:
    with pytest.raises(BadConfig, match=r"s3_get.* is missing"):
        prices('region = "mars-1"\ndate = "2031-01-01"\n[price]\n')
    with pytest.raises(BadConfig, match="prices: "):
        prices("region = 7")


def test_the_states_of_a_round_are_those_of_the_machine() -> None:
    """Followed as a run with shards goes: from Open, whose round is folded and not the last, to the next."""
    definition = pytest.importorskip("fleetfold.aws.machine").machine()["States"]
    answers = {
        "Stands": iter(["Cut", "Trained"]), "Fold how": iter(["Fold"]), "Enough": iter(["Patience"]),
        "Long enough": iter(["Open"]),
    }  # fmt: skip
    passed, at = [], "Open"
    while at != "Open" or not passed:
        passed.append(at)
        at = definition[at]["Next"] if "Next" in definition[at] else next(answers[at])
    assert len(passed) == STATES, passed
