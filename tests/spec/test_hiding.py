"""A run that hides its devices: what is clipped, what is noised, what is counted, and what is refused."""

import hashlib
import random
from collections.abc import Callable, Iterable
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfold import Trained, Work, layout
from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.adapters.memory import MemoryObjects, NoAlarm
from fleetfold.cli.board import rounds_table
from fleetfold.coordinator import Coordinator
from fleetfold.coordinator.accountant import spent
from fleetfold.coordinator.hiding import check, set_of, terms
from fleetfold.coordinator.policy import policies
from fleetfold.coordinator.sources import header_of
from fleetfold.errors import BadConfig
from fleetfold.fold.privacy import deviation, next_clip
from fleetfold.fold.tensors import Tensors, read
from fleetfold.ledger import Arrival, Ledger
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from fleetfold.round.state import Phase
from fleetfold.settings import Settings
from fleetfold.view import rows
from tests.world import Walk, World

pytest.importorskip("dp_accounting")


class Known(World):
    """A world whose noise is drawn from `entropy`, the same in each fold: for looking below it."""

    entropy: Callable[[int], bytes] = bytes

    def coordinator(self, faults: Faults, unruly: random.Random | None = None) -> Coordinator:
        made = super().coordinator(faults, unruly)
        made._entropy = type(self).entropy
        return made


class Odd(Walk):
    """`d0` sends something of its own, and says that it is made of `examples`."""

    def __init__(self, w: Callable[[np.ndarray], np.ndarray], examples: int = 1, size: int = 7) -> None:
        super().__init__((size,))
        self.w, self.examples = w, examples

    def train(self, model: Tensors, work: Work) -> Trained:
        trained = super().train(model, work)
        if work.device.name != "d0":
            return trained
        w = self.w(model["w"]).astype(np.float32)
        return Trained(tensors={**trained.tensors, "w": w, "steps": np.array(77)}, examples=self.examples)


def ran(world: World) -> World:
    world.live()
    assert world.run().state is RunState.DONE
    return world


def tensors(world: World, version: int = -1) -> Tensors:
    version = world.run().version if version < 0 else version
    return read(fetch(world.objects, layout.model("r", version)))[0]


def updates(world: World, round: int = 1) -> list[Tensors]:
    where = layout.updates(layout.round("r", round, "train"))
    return [read(fetch(world.objects, key))[0] for key in world.objects.list(where)]


# What is clipped


def test_with_next_to_no_noise_and_a_wide_clip_the_model_is_the_plain_uniform_mean() -> None:
    plain = ran(World(rounds=3, weight="uniform"))
    for delta in ("auto", "no"):
        hidden = ran(World(rounds=3, noise=1e-7, clip=100.0, delta=delta))
        assert np.allclose(tensors(plain)["w"], tensors(hidden)["w"], atol=2e-4), "noise of 2.5e-6 a round"


@given(st.floats(-3, 35), st.floats(-2, 1), st.booleans(), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_whatever_a_device_sends_the_model_moves_by_no_more_than_a_clip_over_the_target(
    size: float, clip: float, delta: bool, devices: int
) -> None:
    told = {
        "rounds": 1, "noise": 2.0, "clip": 10.0**clip, "delta": "yes" if delta else "no", "quorum": 1,
        "deadline": 9.0, "evaluate": "off",
    }  # fmt: skip

    def far(w: np.ndarray) -> np.ndarray:
        return w + np.float32(10.0**size) * np.cos(np.arange(len(w), dtype=np.float32))

    with_it = ran(Known(devices=devices, trainer=Odd(far), **told))
    without = Known(devices=devices, trainer=Odd(far), **told)
    without.devices = without.devices[1:]
    moved = tensors(with_it)["w"].astype(np.float64) - tensors(ran(without))["w"]
    rounding = 1e-6 * (1 + np.abs(tensors(with_it)["w"]).max()) * sqrt(len(moved))
    assert np.linalg.norm(moved) <= 10.0**clip / devices * (1 + 1e-5) + rounding


def test_examples_buy_no_influence_and_are_not_told_by_the_model() -> None:
    told = {"rounds": 1, "noise": 1.0, "clip": 1.0, "weight": "examples"}
    modest = ran(Known(trainer=Odd(lambda w: w + 1, examples=1), **told))  # type: ignore[arg-type]
    greedy = ran(Known(trainer=Odd(lambda w: w + 1, examples=10**9), **told))  # type: ignore[arg-type]
    assert greedy.model() == modest.model()


def test_integers_are_the_models_own_and_not_a_devices() -> None:
    assert tensors(ran(World(rounds=2, noise=1.0, clip=1.0)))["steps"] == 0


def test_fewer_updates_than_expected_are_divided_by_what_was_expected() -> None:
    told = {"rounds": 1, "noise": 1e-3, "clip": 1e-1, "deadline": 9.0, "trainer": Odd(lambda w: w + 100)}
    alone = ran(Known(devices=1, silent=1, quorum=1, **told))  # type: ignore[arg-type]
    moved = tensors(alone)["w"] - tensors(alone, 0)["w"]
    assert np.linalg.norm(moved) == pytest.approx(0.1 / 2, rel=0.05)


def test_tensors_that_no_update_carries_get_no_noise() -> None:
    class Two(Walk):
        def init(self, seed: int) -> Tensors:
            return {**super().init(seed), "frozen": np.ones(5, np.float32)}

        def train(self, model: Tensors, work: Work) -> Trained:
            trained = super().train(model, work)
            return Trained(tensors={**trained.tensors, "frozen": model["frozen"]}, examples=1)

    world = ran(World(trainer=Two(), rounds=2, noise=5.0, clip=1.0, tensors="w steps"))
    assert (tensors(world)["frozen"] == 1).all()
    assert (tensors(world)["w"] != tensors(world, 0)["w"]).all()


# What is noised


@pytest.mark.parametrize("codec", ["full", "bf16", "int8"])
def test_the_noise_on_the_model_is_as_wide_as_it_says_and_no_chunk_repeats_anothers(codec: str) -> None:
    size = 300_000  # three chunks
    told = {"rounds": 1, "noise": 50.0, "clip": 0.5, "codec": codec, "evaluate": "off"}
    one = ran(World(devices=5, trainer=Walk((size,)), **told))  # type: ignore[arg-type]
    other = ran(World(devices=5, trainer=Walk((size,)), **told))  # type: ignore[arg-type]
    noises = tensors(one)["w"].astype(np.float64) - tensors(other)["w"]  # the same updates, two noises
    expected = sqrt(2) * deviation(terms(one.settings, 5), 0.5, 5)
    assert expected == pytest.approx(sqrt(2) * 50 * 0.5 / 5)
    assert abs(noises.std() / expected - 1) < 8 / sqrt(2 * size)
    assert abs(noises.mean()) < 8 * expected / sqrt(size)
    first, second = noises[:100_000], noises[131_072 : 131_072 + 100_000]
    assert abs(np.corrcoef(first, second)[0, 1]) < 8 / sqrt(100_000)


def test_all_passes_of_a_server_optimizer_see_the_same_noise() -> None:
    world = ran(World(trainer=Walk((200_000,)), rounds=1, noise=9.0, clip=1.0, server="momentum"))
    state = read(fetch(world.objects, layout.state("r", 1)))[0]["m/w"]
    moved = tensors(world, 1)["w"].astype(np.float64) - tensors(world, 0)["w"]
    assert np.abs(state).max() > 1
    assert np.allclose(moved, state, atol=1e-5)


def test_no_two_rounds_and_no_two_runs_have_the_same_noise() -> None:
    told = {"rounds": 1, "noise": 1.0, "clip": 1.0}
    assert ran(World(**told)).model() != ran(World(**told)).model()  # type: ignore[arg-type]


def test_the_seed_of_the_noise_is_in_no_record_and_no_object() -> None:
    class Marked(Known):
        entropy = lambda n: bytes(range(100, 100 + n))  # noqa: E731

    world = ran(Marked(rounds=2, noise=1.0, clip=1.0, clip_quantile=0.5))
    seed = bytes(range(100, 132))
    number = int.from_bytes(seed, "little")
    kept = [record.value for record in world.records._data.values()] + list(world.objects._data.values())
    for form in (seed, seed.hex().encode(), str(number).encode(), f"{number:x}".encode()):
        assert not any(form in value for value in kept)


# The clip that follows the updates


def clips(world: World) -> list[tuple[float, float]]:
    """(clip, the next one) of each round that is done."""
    releases = {release.number: release for release in world.ledger.releases("r")}
    done = [r.release for r in world.ledger.rounds("r") if r.phase is Phase.DONE and r.kind == "train"]
    return [(releases[number].clip, releases[number].next_clip) for number in done]


def test_the_clip_follows_the_updates_from_round_to_round_and_is_shown() -> None:
    world = ran(World(devices=8, rounds=6, noise=1.0, clip_quantile=0.5))
    told = clips(world)
    assert told[0][0] == 0.1
    assert [clip for clip, _ in told[1:]] == [following for _, following in told[:-1]]
    assert told[-1][0] > told[0][0], "the updates of these devices are longer than 0.1"
    shown = [row.metrics["privacy"]["clip"] for row in rows(world.ledger, world.objects, "r", 0.0)]
    assert shown == [clip for clip, _ in told]


def test_nothing_tells_how_many_updates_lie_below_the_clip() -> None:
    found = set()
    for _ in range(5):
        world = ran(World(devices=4, rounds=1, noise=1.0, clip=1e6, clip_quantile=0.5))
        ((clip, following),) = clips(world)
        assert following != next_clip(clip, 4, 4, terms(world.settings, 4)), "the exact count"
        found.add(following)
    assert len(found) == 5


def test_a_fixed_clip_stays() -> None:
    assert clips(ran(World(rounds=2, noise=1.0, clip=0.3))) == [(0.3, 0.3)] * 2


# What is counted


class Watched(MemoryObjects):
    """Objects that remember every model that was ever visible, under whatever key."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, set[bytes]] = {}

    def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
        size = super().put(key, data)
        if "/models/" in key and "state" not in key:
            version = int(key.rpartition("/")[2][:6])
            self.seen.setdefault(version, set()).add(self._data[key])
        return size


class Seen(World):
    def __init__(self, **told: object) -> None:
        super().__init__(**told)  # type: ignore[arg-type]
        watched = Watched()
        watched._data = self.objects._data
        self.objects = self.watched = watched

    def consistent(self) -> None:
        """No model was seen that is not counted, and every round's model is the one that it says."""
        releases = self.ledger.releases("r")
        assert [release.number for release in releases] == list(range(1, len(releases) + 1))
        for version, models in self.watched.seen.items():
            made = [r for r in self.ledger.rounds("r") if r.kind == "train" and r.base + 1 == version]
            numbers = {r.number for r in made}
            assert len(models) <= sum(release.round in numbers for release in releases)
        for round in self.ledger.rounds("r"):
            if round.phase is Phase.DONE and round.kind == "train" and not round.outbox:
                model = fetch(self.objects, layout.model("r", round.base + 1))
                assert hashlib.sha256(model).hexdigest() == round.digest
                told = round.metrics["privacy"]
                before = [release for release in releases if release.round <= round.number]
                assert told["releases"] == len(before)
                assert told["epsilon"] == spent(
                    terms(self.settings, 1), len(before), len(self.ledger.fleet())
                )


TOLD = {"devices": 3, "rounds": 2, "noise": 1.0, "clip": 1.0, "clip_quantile": 0.5, "server": "adam"}
STEPS = World(**TOLD).live()  # type: ignore[arg-type]


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_everything_dies_at_this_step_and_no_model_is_seen_that_is_not_counted(at: int) -> None:
    world = Seen(**TOLD)
    world.live(at=at)
    world.consistent()
    released = len(world.ledger.releases("r"))
    lying = [key for key in world.objects.list("runs/r/models/") if ".release-" in key and "state" not in key]
    world.live()
    assert (world.run().state, world.run().version) == (RunState.DONE, 2)
    world.consistent()
    assert [clip for clip, _ in clips(world)[1:]] == [after for _, after in clips(world)[:-1]]
    more = len(world.ledger.releases("r")) - 2
    assert more in (0, 1)
    if lying:
        assert more == 0, "a release that was whole is taken up as it is"
    assert released <= 2
    left = [key for key in world.objects.list("runs/r/models/") if ".release-" in key]
    assert not left


@pytest.mark.parametrize("at", range(1, STEPS + 1, 5))
def test_it_dies_again_and_again_and_what_is_counted_is_never_too_little(at: int) -> None:
    for again in range(1, STEPS + 1, 7):
        world = Seen(**TOLD)
        world.live(at=at)
        world.live(at=again)
        world.consistent()
        world.live()
        world.consistent()
        assert (world.run().state, world.run().version) == (RunState.DONE, 2)


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_wherever_it_dies_the_budget_is_kept_and_the_run_comes_to_an_end(at: int) -> None:
    budget = spent(terms(Settings(**TOLD), 3), 2, 3) + 1e-9  # type: ignore[arg-type]
    world = Seen(**TOLD, epsilon=budget)
    world.live(at=at)
    world.live()
    world.consistent()
    assert len(world.ledger.releases("r")) == 2
    run = world.run()
    assert run.state is RunState.DONE
    if run.version < 2:  # one of the two was counted and never seen
        assert "the budget is" in run.reason or run.round == 2


def test_two_folders_of_one_round_make_two_releases_and_the_round_takes_up_one() -> None:
    world = Seen(devices=3, rounds=1, noise=1.0, clip=1.0, lease=5.0, server="momentum")
    plain, bus = world.objects, world.bus

    def folder(objects: object) -> Coordinator:
        ledger = Ledger(world.records)
        return Coordinator(
            "r", ledger, objects, bus, NoAlarm(), policies(world.settings), lambda: world.now,  # type: ignore[arg-type]
        )  # fmt: skip

    class Slow:
        """Before this folder's model is visible, its lease is over and another has folded the round."""

        def __init__(self) -> None:
            self.done = False

        def __getattr__(self, name: str) -> object:
            return getattr(plain, name)

        def put(self, key: str, data: Iterable[bytes | memoryview]) -> int:
            if ".release-" in key and "state" not in key and not self.done:
                self.done = True
                world.now += 6.0
                folder(plain).step()
            return plain.put(key, data)

    slow = folder(Slow())
    slow.step()
    agents = [world.agent(device, Faults(None, simulated_death)) for device in world.devices]
    for task in bus.link([d.name for d in world.devices]).tasks():
        next(a for a in agents if a._device.name == task.device).handle(task)
    slow.step()
    assert world.run().state is RunState.DONE
    assert len(world.ledger.releases("r")) == 2
    assert len(world.watched.seen[1]) == 2
    assert header_of(plain, layout.model("r", 1)).metadata.endswith(b'"release":2}')
    state = read(fetch(plain, layout.state("r", 1)))[0]["m/w"]
    assert np.allclose(tensors(world, 1)["w"] - tensors(world, 0)["w"], state, atol=1e-5)
    round = world.ledger.rounds("r")[0]
    assert hashlib.sha256(world.model()).hexdigest() == round.digest


# The budget


def test_a_budget_stops_the_run_before_the_round_that_would_exceed_it() -> None:
    told = {"devices": 4, "noise": 2.0, "clip": 1.0}
    asked = terms(Settings(**told), 4)  # type: ignore[arg-type]
    world = ran(World(**told, rounds=9, epsilon=(spent(asked, 3, 4) + spent(asked, 4, 4)) / 2))  # type: ignore[arg-type]
    run = world.run()
    assert (run.round, run.version) == (3, 3)
    assert run.reason.startswith("stopped: round 4 would bring ε to ")
    assert run.reason.endswith(f", the budget is {world.settings.epsilon:g}")
    assert [round.number for round in world.ledger.rounds("r")] == [1, 2, 3], "the fourth is not opened"


def test_the_evaluation_of_the_last_model_costs_nothing_and_takes_place() -> None:
    asked = terms(Settings(noise=2.0, clip=1.0), 4)
    world = ran(World(rounds=9, noise=2.0, clip=1.0, epsilon=spent(asked, 2, 4), evaluate="cohort"))
    assert [(r.number, r.kind) for r in world.ledger.rounds("r")][-1] == (2, "evaluate")


def test_every_round_shows_what_was_spent_until_then() -> None:
    world = ran(World(rounds=3, noise=2.0, clip=1.0))
    shown = rows(world.ledger, world.objects, "r", 0.0)
    asked = terms(world.settings, 4)
    assert [row.epsilon for row in shown] == [spent(asked, n, 4) for n in (1, 2, 3)]
    for width in (80, 120):
        assert "ε" in [column.header for column in rounds_table(shown, width).columns]
    plain = ran(World(rounds=1))
    shown = rows(plain.ledger, plain.objects, "r", 0.0)
    assert shown[0].epsilon is None
    assert "ε" not in [column.header for column in rounds_table(shown, 80).columns]


# What is refused


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"fold": "median"}, "fold = median"),
        ({"fold": "clipped_mean"}, "fold = clipped_mean"),
        ({"fold": "mine:own"}, "fold = mine:own"),
        ({"late": "credit"}, "late = credit"),
        ({"mode": "buffered"}, "mode = buffered"),
        ({"partial": True}, "partial = True"),
        ({"norm_most": 3.0}, "norm_most = 3"),
        ({"clip": 0.0}, "needs a clip"),
        ({"devices": 1}, "hides nobody"),
        ({"epsilon": 0.01}, "round 1 would bring ε to"),
        ({"noise": 0.0, "epsilon": 8.0}, "epsilon = 8 hides nothing without noise"),
        ({"noise": 0.0, "clip_quantile": 0.5}, "clip_quantile = 0.5 hides nothing"),
        ({"noise": 0.0, "dp_delta": 1e-5}, "dp_delta = 1e-05 hides nothing"),
    ],
)
def test_what_would_not_hide_devices_is_refused_with_what_to_do(told: dict[str, object], said: str) -> None:
    with pytest.raises(BadConfig) as refused:
        check(Settings(**{"noise": 1.0, "clip": 1.0, **told}))  # type: ignore[arg-type]
    assert said in refused.value.sentence
    assert refused.value.next


def test_noise_without_end_is_no_noise_multiplier() -> None:
    with pytest.raises(BadConfig, match="noise_multiplier = inf"):
        check(Settings(noise=float("inf"), clip=1.0))


def test_a_run_is_refused_before_anything_of_it_is_made() -> None:
    with pytest.raises(BadConfig, match="late = credit"):
        policies(Settings(noise=1.0, clip=1.0, late="credit"))


def test_two_updates_of_one_device_are_never_in_one_release() -> None:
    one, late = (Arrival(device="d0", seat=0, state="admitted", key=key) for key in ("a", "b"))
    with pytest.raises(BadConfig, match="two updates of d0"):
        set_of([one, late])


def test_a_set_is_the_same_in_whatever_order_it_came() -> None:
    arrivals = [Arrival(device=f"d{k}", seat=k, state="admitted", key=f"k{k}") for k in range(5)]
    assert set_of(arrivals) == set_of(arrivals[::-1]) != set_of(arrivals[:4])
