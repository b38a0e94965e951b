"""How updates travel in a run: by codec and delta, a part of the tensors, and what a device keeps."""

import numpy as np
import pytest

from fleetfold import Trained, Work, layout
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import Tensors, header_in, read
from fleetfold.ledger import Arrival
from fleetfold.messages import Form
from fleetfold.ports import fetch
from fleetfold.round.run import RunState
from tests.world import Walk, World

WAYS: list[dict[str, object]] = [
    {"codec": "fp32"},
    {"codec": "bf16"},
    {"codec": "fp16", "delta": "yes"},
    {"codec": "int8"},
    {"codec": "int8", "delta": "no", "feedback": False},
    {"codec": "topk", "topk": 3},
]


def ran(**settings: object) -> World:
    world = World(rounds=3, **settings)  # type: ignore[arg-type]
    world.live()
    assert world.run().state is RunState.DONE
    return world


def arrival(world: World, device: str, round: int = 1) -> Arrival:
    found = world.ledger.arrival(layout.round("r", round, "train"), device)
    assert found is not None
    return found[0]


def update(world: World, device: str, round: int) -> bytes:
    return fetch(world.objects, layout.update(layout.round("r", round, "train"), device))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_by_any_codec_ends_near_the_one_without(way: dict[str, object]) -> None:
    plain, coded = (read(ran(trainer=Walk((3000,)), **w).model())[0] for w in ({}, way))
    far = np.abs(plain["w"] - coded["w"]).max()
    assert 0 <= far < (4.0 if way["codec"] == "topk" else 0.15)
    assert plain["steps"] == coded["steps"]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_by_any_codec_dies_at_every_step_and_the_model_is_the_same_to_the_byte(
    way: dict[str, object],
) -> None:
    expected, at, died = ran(keep=0, **way), 0, True
    while died:
        at += 1
        world = World(rounds=3, keep=0, **way)  # type: ignore[arg-type]
        died = world.live(at=at) == at
        world.live()
        assert world.model() == expected.model(), at
        for device in ("d0", "d3"):
            assert update(world, device, 3) == update(expected, device, 3), at
    assert at > 100


def test_a_codec_of_its_own_for_each_device_is_asked_of_the_users_function(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "links.py").write_text(  # type: ignore[operator]
        "def by_link(device):\n    return 'int8' if device.name in ('d1', 'd2') else 'full'\n"
    )
    world = ran(codec="links:by_link", keep=0)
    forms = {name: arrival(world, name).form for name in ("d0", "d1", "d2", "d3")}
    assert forms == {"d0": Form(), "d1": Form("int8", True), "d2": Form("int8", True), "d3": Form()}


def test_a_function_that_names_no_codec_stops_the_run_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nolinks.py").write_text("def by_link(device):\n    return 'zip'\n")  # type: ignore[operator]
    with pytest.raises(BadConfig, match="'zip' is not one of full, fp32"):
        World(codec="nolinks:by_link").live()


def test_only_the_tensors_that_the_patterns_name_travel_and_the_rest_of_the_model_stays() -> None:
    world = ran(tensors="w no*", keep=0)
    assert set(read(update(world, "d1", 2))[0]) == {"w", "none"}
    first = read(fetch(world.objects, layout.model("r", 0)))[0]
    last = read(world.model())[0]
    assert last["steps"] == first["steps"]
    assert not np.allclose(last["w"], first["w"])


def test_patterns_that_name_no_tensor_stop_the_run_with_one_sentence() -> None:
    with pytest.raises(BadConfig, match="tensors = 'lora' names none of the model's: w, steps"):
        World(tensors="lora").live()


@pytest.mark.parametrize("fold", ["krum", "multi_krum"])
def test_krum_and_partial_updates_exclude_each_other(fold: str) -> None:
    with pytest.raises(BadConfig, match=f"partial and fold = {fold}"):
        World(partial=True, fold=fold).live()


class Halves(Walk):
    """Two tensors, of which even devices train one and odd devices the other."""

    def init(self, seed: int) -> Tensors:
        return {
            "even": np.zeros(40, np.float32),
            "odd": np.zeros(40, np.float32),
            "kept": np.ones(3, np.float32),
        }

    def train(self, model: Tensors, work: Work) -> Trained:
        name = "odd" if work.device.index % 2 else "even"
        by = np.float32(1 + work.device.index)
        return Trained(tensors={name: model[name] + by}, examples=10)


@pytest.mark.parametrize("codec", ["full", "int8", "topk"])
def test_with_partial_each_tensor_is_the_mean_of_those_that_carry_it(codec: str) -> None:
    world = World(trainer=Halves(), rounds=1, evaluate="off", partial=True, codec=codec, topk=1.0)
    world.live()
    model = read(world.model())[0]
    assert np.allclose(model["even"], 2.0, atol=0.04), "of devices 0 and 2"
    assert np.allclose(model["odd"], 3.0, atol=0.04), "of devices 1 and 3"
    assert (model["kept"] == 1).all()


def test_without_partial_an_update_that_lacks_a_tensor_is_refused() -> None:
    world = World(trainer=Halves(), rounds=1, evaluate="off", patience=1)
    world.live()
    assert world.run().state is RunState.FAILED
    assert "is missing" in arrival(world, "d0").reason


def test_what_int8_leaves_behind_is_made_up_for_in_later_rounds() -> None:
    """The same small step every round: alone it is mostly rounded away, with feedback all of it arrives."""

    class Steps(Walk):
        def init(self, seed: int) -> Tensors:
            return {"w": np.zeros(1000, np.float32)}

        def train(self, model: Tensors, work: Work) -> Trained:
            step = np.full(1000, 0.001, np.float32)
            step[0] = 1.0
            return Trained(tensors={"w": model["w"] + step}, examples=1)

    def missed(feedback: bool) -> float:
        world = World(devices=1, trainer=Steps(), rounds=30, codec="topk", topk=100, feedback=feedback)
        world.live()
        return float(np.abs(read(world.model())[0]["w"][1:] - 0.03).mean())

    assert missed(True) < 0.012 < 0.026 < missed(False)


def test_an_update_far_from_its_model_is_refused_in_the_pass_and_the_rest_is_folded() -> None:
    class Far(Walk):
        def train(self, model: Tensors, work: Work) -> Trained:
            trained = super().train(model, work)
            if work.device.name == "d2":
                trained.tensors["w"] += 1000
            return trained

    world = World(trainer=Far(), rounds=1, norm_most=100.0)
    world.live()
    assert world.run().state is RunState.DONE
    assert arrival(world, "d2").reason == "lies further than 100 from its model (norm_most)"
    honest = World(rounds=1)
    honest.devices = [d for d in honest.devices if d.name != "d2"]
    honest.live()
    assert read(world.model())[0]["w"].tobytes() == read(honest.model())[0]["w"].tobytes()


def test_a_clipped_mean_bounds_what_one_device_can_do() -> None:
    class Huge(Walk):
        def train(self, model: Tensors, work: Work) -> Trained:
            trained = super().train(model, work)
            if work.device.name == "d3":
                trained.tensors["w"] = model["w"] + np.float32(1e6)
            return Trained(tensors=trained.tensors, examples=1)

    def moved(**settings: object) -> float:
        world = World(trainer=Huge(), rounds=1, **settings)  # type: ignore[arg-type]
        world.live()
        first = read(fetch(world.objects, layout.model("r", 0)))[0]["w"]
        return float(np.linalg.norm(read(world.model())[0]["w"] - first))

    assert moved() > 1e5
    assert moved(fold="clipped_mean", clip=2.0) <= 2.0
    assert moved(fold="clipped_mean") < 10, "by the median of the lengths"


def test_headers_say_the_form_and_files_are_as_small_as_promised() -> None:
    world = ran(trainer=Walk((100_000,)), codec="int8", keep=0)
    data = update(world, "d0", 1)
    assert arrival(world, "d0").form == Form("int8", True)
    assert arrival(world, "d0").begin == header_in(data).begin
    assert len(data) <= 0.26 * 400_000
