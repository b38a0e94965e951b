"""A fold in parts: the bytes of the fold in one piece, whoever dies, comes twice or comes late."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import boto3
import numpy as np
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters import multipart
from fleetfold.adapters.faults import Died, Faults, simulated_death
from fleetfold.adapters.memory import MemoryObjects, MemoryRecords, MemoryUploads, NoAlarm
from fleetfold.adapters.stores import open_store
from fleetfold.agent.loop import Agent
from fleetfold.coordinator import Coordinator, cutting
from fleetfold.coordinator.cutting import Plan, Told, Unfinished, assemble, fold_part, load, prepare
from fleetfold.coordinator.folding import HERE, Made, fold_round
from fleetfold.coordinator.policy import policies
from fleetfold.coordinator.sources import header_of
from fleetfold.fold.codecs import encode
from fleetfold.fold.floats import narrowed
from fleetfold.fold.plan import LAMBDA, Site
from fleetfold.fold.recipe import Unfit
from fleetfold.fold.tensors import FLOATS, Tensors, header_in, read, write
from fleetfold.fold.wire import CODECS, mask
from fleetfold.ledger import Arrival, Folding, Ledger, place
from fleetfold.messages import Form, Task, UpdateHeader
from fleetfold.messages import encode as encoded
from fleetfold.ports import Uploads, fetch
from fleetfold.round.run import RunState
from fleetfold.round.state import Phase, Policy, Round
from fleetfold.settings import Settings
from tests.s3 import BUCKET, REGION, serving
from tests.world import Walk, World

PATHS = Config(s3={"addressing_style": "path"})
LEAST = 50_000
"""Bytes of a part here."""
SITE = Site(name="functions", bandwidth=60e6, latency=0.001, folders=4, memory=1 << 22, part=LEAST)
LAYOUT = [("F32", (300, 100)), ("I64", (3,)), ("BF16", (50_000,)), ("F32", (40_000,))]


def drawn(layout: Sequence[tuple[str, tuple[int, ...]]], seed: int) -> Tensors:
    chance = np.random.default_rng(seed)

    def tensor(code: str, shape: tuple[int, ...]) -> np.ndarray:
        if code in FLOATS:
            return narrowed(chance.normal(size=shape), code)
        return (chance.random(shape) < 0.5) if code == "BOOL" else chance.integers(-9, 9, shape)

    return {f"t{k}": tensor(code, shape) for k, (code, shape) in enumerate(layout)}


class Scene:
    """A round whose updates have arrived, of a run whose model is of this layout."""

    def __init__(
        self, tensors: Sequence[tuple[str, tuple[int, ...]]] = LAYOUT, updates: int = 5, *, late: int = 0,
        forms: Sequence[Form] = (Form(),), base: int = 0, **settings: object,
    ) -> None:  # fmt: skip
        self.objects, self.records = MemoryObjects(), MemoryRecords()
        self.uploads = MemoryUploads(self.objects, least=LEAST)
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.models = [drawn(tensors, seed) for seed in range(base + 1)]
        for version, model in enumerate(self.models):
            self.objects.put(layout.model("r", version), [write(model)])
        self.round = Round(
            run="r", number=base + 1, base=base, cohort="", invited=updates, opened_at=0.0,
            policy=Policy(target=1, quorum=1, deadline=1.0), arrived=frozenset(range(updates)),
        )  # fmt: skip
        self.arrivals = [self.arrived(tensors, k, forms[k % len(forms)], base) for k in range(updates)]
        self.arrivals += [self.arrived(tensors, k, forms[k % len(forms)], base - 1) for k in range(late)]
        self.header = header_of(self.objects, layout.model("r", base))

    def arrived(
        self, tensors: Sequence[tuple[str, tuple[int, ...]]], seat: int, form: Form, base: int
    ) -> Arrival:
        model, name = self.models[base], f"d{seat}"
        header = header_in(write(model))
        parts = drawn(tensors, 100 + 10 * base + seat)
        found = encode(parts, model, header, form, [seat], sent=9)
        about = UpdateHeader(run="r", round=base + 1, kind="train", device=name, examples=seat + 1, form=form)
        data = write(found.tensors, encoded(about))
        key = layout.update(layout.round("r", base + 1, "train"), name)
        self.objects.put(key, [data])
        return Arrival(
            device=name, seat=seat, state="admitted", key=key, size=len(data), form=form, base=base,
            begin=header_in(data).begin, examples=seat + 1,
        )  # fmt: skip

    def expected(self) -> tuple[Made, bytes]:
        """What the fold in one piece makes."""
        own = MemoryObjects()
        own._data.update(self.objects._data)
        made = fold_round(own, self.round, self.arrivals, self.settings, self.header, None, site=HERE)
        return made, fetch(own, made.model)

    def folding(self) -> Folding:
        found = Ledger(self.records).folding(place(self.round))
        assert found is not None
        return found[0]

    def plan(self) -> Plan:
        return load(self.objects, place(self.round), self.folding().plan)


class Life:
    """One process after another, over the same stores; `faults` counts what they write."""

    def __init__(self, scene: Scene, at: int | None = None) -> None:
        self.scene, self.faults = scene, Faults(at, simulated_death)
        self.ledger = Ledger(self.faults.wrap(scene.records), alone=False)
        self.objects = self.faults.wrap(scene.objects)
        self.uploads: Uploads = self.faults.wrap(scene.uploads)

    def prepare(self, arrivals: Sequence[Arrival] | None = None) -> None:
        scene = self.scene
        arrivals = scene.arrivals if arrivals is None else arrivals
        prepare(self.ledger, self.objects, self.uploads, SITE, scene.round, arrivals, scene.settings)

    def fold(self, numbers: Sequence[int] | None = None) -> list[Told]:
        folding, told = self.scene.folding(), []
        for number in range(folding.shards) if numbers is None else numbers:
            try:
                fold_part(self.objects, self.uploads, self.scene.plan(), number)
            except Unfit as unfit:
                told.append(Told(folding.plan, unfit.names, unfit.reason))
        return told

    def assemble(self, told: Sequence[Told] = (), arrivals: Sequence[Arrival] | None = None) -> Made:
        scene = self.scene
        arrivals = scene.arrivals if arrivals is None else arrivals
        return assemble(
            self.ledger, self.uploads, SITE, told,
            self.objects, scene.round, arrivals, scene.settings, scene.header, None,
        )  # fmt: skip

    def all(self) -> Made:
        """As a coordinator has it done: what is unfit is taken out, and what is left is folded again."""
        while True:
            self.prepare()
            try:
                return self.assemble(self.fold())
            except Unfit as unfit:
                scene = self.scene
                scene.arrivals = [a for a in scene.arrivals if a.key not in unfit.names]


def test_the_parts_of_functions_that_know_nothing_of_each_other_are_the_model() -> None:
    scene = Scene()
    made, expected = scene.expected()
    assert Life(scene).all() == made
    assert fetch(scene.objects, made.model) == expected
    plan = scene.plan()
    assert len(plan.slices) == 4
    assert sum(len(s.parts) for s in plan.slices) > 0
    assert sum(sum(s.parts) for s in plan.slices) == len(expected) == plan.size


TENSORS = st.lists(
    st.tuples(
        st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL"]),
        st.sampled_from([(), (0, 3), (7,), (130, 130), (40_000,), (3, 30_001)]),
    ),
    min_size=1,
    max_size=6,
)
FORMS = st.lists(
    st.builds(Form, codec=st.sampled_from(CODECS), delta=st.booleans()),
    min_size=1,
    max_size=3,
)  # fmt: skip


@given(
    tensors=TENSORS,
    forms=FORMS,
    updates=st.integers(1, 6),
    late=st.integers(0, 2),
    fold=st.sampled_from(["mean", "mean", "median", "trimmed_mean"]),
    folders=st.integers(2, 9),
    latency=st.sampled_from([0.0, 0.0001]),
    chance=st.randoms(use_true_random=False),
)
@examples(max_examples=60, deadline=None)
def test_whatever_is_folded_however_it_is_cut_in_whatever_order_it_is_the_same_to_the_byte(
    tensors, forms, updates, late, fold, folders, latency, chance
) -> None:  # type: ignore[no-untyped-def]
    scene = Scene(tensors, updates, late=late, forms=forms, base=1, fold=fold)
    made, expected = scene.expected()
    site = replace(SITE, folders=folders, latency=latency, part=20_000)
    scene.uploads = MemoryUploads(scene.objects, least=20_000)
    ledger = Ledger(scene.records, alone=False)
    given = (scene.round, scene.arrivals, scene.settings)
    prepare(ledger, scene.objects, scene.uploads, site, *given)
    numbers = [*range(scene.folding().shards)] * 2
    chance.shuffle(numbers)
    for number in numbers:
        fold_part(scene.objects, scene.uploads, scene.plan(), number)
    found = assemble(ledger, scene.uploads, site, (), scene.objects, *given, scene.header, None)
    assert found == made
    assert fetch(scene.objects, made.model) == expected


def test_functions_that_work_at_the_same_time_and_each_twice_make_the_same_bytes() -> None:
    scene = Scene([("F32", (200_000,)), ("I64", (5,)), ("BF16", (150_000,))], 4)
    made, expected = scene.expected()
    life = Life(scene)
    life.prepare()
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda number: life.fold([number]), [*range(4)] * 2))
    assert told == [[]] * 8
    assert life.assemble() == made
    assert fetch(scene.objects, made.model) == expected


def test_updates_that_carry_a_part_of_the_model_are_folded_in_parts_as_in_one() -> None:
    scene = Scene(partial=True)
    carried = Form(carried=mask(scene.header, {"t0", "t1"}))
    scene.arrivals[1] = scene.arrived(LAYOUT, 1, carried, 0)
    made, expected = scene.expected()
    assert Life(scene).all() == made
    assert fetch(scene.objects, made.model) == expected


# Whoever dies, comes twice or comes late


def spoilt(**settings: object) -> Scene:
    """One of the updates holds what is not finite, in the last shard alone."""
    scene = Scene(**settings)  # type: ignore[arg-type]
    model = drawn(LAYOUT, 104)
    model["t3"][-1] = np.nan
    about = UpdateHeader(run="r", round=1, kind="train", device="d4", examples=5)
    scene.objects.put(scene.arrivals[4].key, [write(model, encoded(about))])
    return scene


def rest_of(scene: Scene) -> Scene:
    """The same without that update."""
    scene.arrivals = scene.arrivals[:4]
    return scene


STEPS = {}
for name, make in (("sound", Scene), ("spoilt", spoilt)):
    life = Life(make())  # type: ignore[operator]
    life.all()
    STEPS[name] = life.faults.steps
MAKE = {"sound": Scene, "spoilt": spoilt}
EXPECTED = {"sound": Scene().expected(), "spoilt": rest_of(spoilt()).expected()}


@pytest.mark.parametrize(("what", "at"), [(w, at) for w, n in STEPS.items() for at in range(1, n + 1)])
def test_it_dies_at_this_write_and_the_model_is_the_same_to_the_byte(what: str, at: int) -> None:
    scene = MAKE[what]()
    with pytest.raises(Died):
        Life(scene, at).all()
    assert Life(scene).all() == EXPECTED[what][0]
    assert fetch(scene.objects, EXPECTED[what][0].model) == EXPECTED[what][1]
    begun_by_the_dead = {upload for _, upload in scene.uploads.waiting}
    assert len(begun_by_the_dead) <= 1, "which is of no record: a rule of the bucket deletes it"


@pytest.mark.parametrize(("what", "at"), [(w, at) for w, n in STEPS.items() for at in range(1, n + 1)])
def test_another_does_everything_at_this_write_and_both_make_the_same_model(what: str, at: int) -> None:
    scene = MAKE[what]()
    made, expected = EXPECTED[what]
    others: list[Made] = []
    one = Life(scene)
    one.faults.at, one.faults.die = at, lambda: others.append(Life(scene).all())
    try:
        assert one.all() == made
    except Unfinished:  # it came to assemble what had been made smaller meanwhile
        assert what == "spoilt"
    assert others == [made]
    assert fetch(scene.objects, made.model) == expected
    assert scene.uploads.waiting == {}
    plans = [key for key in scene.objects.list("runs/r/rounds/") if "/fold-" in key]
    assert plans == [layout.fold_plan(place(scene.round), scene.folding().plan)]


def test_one_plan_stands_however_often_it_is_asked_for() -> None:
    scene = Scene()
    for _ in range(3):
        Life(scene).prepare()
    assert len(scene.uploads.waiting) == 1
    assert scene.folding().upload == scene.plan().upload
    assert Ledger(scene.records).folding(place(scene.round))[1] == 1  # type: ignore[index]


def test_who_comes_with_a_set_that_was_made_smaller_since_changes_nothing() -> None:
    scene = Scene()
    Life(scene).prepare()
    first = scene.plan()
    Life(scene).prepare(scene.arrivals[:4])
    stands = scene.folding()
    Life(scene).prepare()
    assert scene.folding() == stands
    assert [upload for _, upload in scene.uploads.waiting] == [stands.upload]
    fold_part(scene.objects, scene.uploads, first, 0)  # nobody waits for it
    assert scene.uploads.waiting == {(stands.model, stands.upload): {}}
    with pytest.raises(Unfinished):
        Life(scene).assemble([Told(stands.plan, (scene.arrivals[0].key,), "of another set")])


def test_what_was_found_of_an_earlier_plan_takes_nobody_out() -> None:
    scene = rest_of(Scene())
    life = Life(scene)
    life.prepare()
    told = life.fold()
    assert life.assemble([*told, Told("of another plan", (scene.arrivals[0].key,), "not finite")])


def test_who_is_unfit_is_told_of_every_shard_that_found_somebody() -> None:
    scene = spoilt()
    model = drawn(LAYOUT, 102)
    model["t0"][0, 0] = np.inf
    about = UpdateHeader(run="r", round=1, kind="train", device="d2", examples=3)
    scene.objects.put(scene.arrivals[2].key, [write(model, encoded(about))])
    life = Life(scene)
    life.prepare()
    with pytest.raises(Unfit, match="not finite") as raised:
        life.assemble(life.fold())
    assert set(raised.value.names) == {scene.arrivals[2].key, scene.arrivals[4].key}


def test_an_update_that_is_gone_is_unfit() -> None:
    scene = Scene()
    Life(scene).prepare()
    scene.objects.delete(scene.arrivals[1].key)
    for number in range(4):
        with pytest.raises(Unfit, match="no longer the file that was admitted") as raised:
            fold_part(scene.objects, scene.uploads, scene.plan(), number)
        assert raised.value.names == (scene.arrivals[1].key,)


def test_while_a_shard_is_missing_nothing_is_published() -> None:
    scene = Scene()
    life = Life(scene)
    life.prepare()
    life.fold([0, 3, 1])
    with pytest.raises(Unfinished, match="not all parts are there"):
        life.assemble()
    assert scene.objects.size("runs/r/models/000001.safetensors") is None
    life.fold([2])
    assert life.assemble() == EXPECTED["sound"][0]


def test_an_upload_that_the_store_has_lost_is_begun_again() -> None:
    scene = Scene()
    life = Life(scene)
    life.prepare()
    life.fold()
    lost = scene.folding()
    scene.uploads.abandon(lost.model, lost.upload)
    with pytest.raises(Unfinished, match="begun again"):
        life.assemble()
    assert scene.folding().plan != lost.plan
    life.fold()
    assert life.assemble() == EXPECTED["sound"][0]


def test_a_model_of_other_updates_under_the_same_key_is_not_taken_for_this_one() -> None:
    scene = Scene()
    Life(scene).all()  # the folder dies here, and before the round knows of its model, one turns out unfit
    scene.arrivals = scene.arrivals[:4]
    life = Life(scene)
    life.prepare()
    scene.uploads.abandon(scene.folding().model, scene.folding().upload)
    with pytest.raises(Unfinished):
        life.assemble()
    assert life.all() == EXPECTED_OF_FOUR


EXPECTED_OF_FOUR = rest_of(Scene()).expected()[0]


def test_a_part_is_put_while_the_next_is_made_and_none_is_large() -> None:
    sizes: list[int] = []

    class Watched(MemoryUploads):
        def put(self, key: str, upload: str, number: int, data: bytes | bytearray) -> None:
            sizes.append(len(data))
            super().put(key, upload, number, data)

    scene = Scene([("F32", (500_000,))], 3)
    scene.uploads = Watched(scene.objects, least=LEAST)
    made, _ = scene.expected()
    assert Life(scene).all() == made
    assert len(sizes) > 8
    assert max(sizes) <= cutting.LONGEST * LEAST
    assert sorted(sizes)[1] >= LEAST


@pytest.mark.parametrize(
    "settings",
    [
        {"server": "adam"},
        {"fold": "krum", "byzantine": 1},
        {"fold": "clipped_mean"},
        {"norm_most": 1e6},
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_folded_by_one_function(settings: dict[str, object]) -> None:
    scene = Scene(**settings)  # type: ignore[arg-type]
    made, expected = scene.expected()
    assert Life(scene).all() == made
    assert fetch(scene.objects, made.model) == expected
    assert scene.folding().shards == 0
    assert scene.uploads.waiting == {}


def test_a_model_that_is_too_small_to_be_cut_is_folded_by_one_function() -> None:
    scene = Scene([("F32", (100,))])
    made, expected = scene.expected()
    assert Life(scene).all() == made
    assert fetch(scene.objects, made.model) == expected
    assert scene.folding().shards == 0


# A whole run


class Functions(World):
    """A world whose folds are made by functions that are called while the round is folding."""

    def __init__(self, **settings: object) -> None:
        super().__init__(3, trainer=Walk((60_000,)), rounds=3, **settings)  # type: ignore[arg-type]
        assert isinstance(self.objects, MemoryObjects)
        self.uploads = MemoryUploads(self.objects, least=LEAST)

    def coordinator(
        self, faults: Faults, unruly: object = None, ignored: object = None
    ) -> Coordinator:  # fmt: skip
        self.faults = faults
        return self.driver(())

    def driver(self, told: Sequence[Told]) -> Coordinator:
        wrap = self.faults.wrap
        ledger = Ledger(wrap(self.records), alone=False)
        objects, uploads = wrap(self.objects), wrap(self.uploads)
        return Coordinator(
            "r", ledger, objects, wrap(self.bus), wrap(NoAlarm()),
            policies(self.settings), lambda: self.now, sole=True,
            elsewhere=partial(prepare, ledger, objects, uploads, SITE),
            made=partial(assemble, ledger, uploads, SITE, told),
        )  # fmt: skip

    def pass_time(self, agents: dict[str, Agent], tasks: Sequence[Task], wake: float) -> None:
        run = self.run()
        found = self.ledger.round("r", run.round, run.kind)
        if found is None or found[0].phase is not Phase.FOLDING:
            return super().pass_time(agents, tasks, wake)
        at, told = place(found[0]), []
        folding = self.ledger.folding(at)
        assert folding is not None
        objects, uploads = self.faults.wrap(self.objects), self.faults.wrap(self.uploads)
        for number in range(folding[0].shards):
            try:
                fold_part(objects, uploads, load(objects, at, folding[0].plan), number)
            except Unfit as unfit:
                told.append(Told(folding[0].plan, unfit.names, unfit.reason))
        self.driver(told).fold()


def ended(world: World) -> World:
    world.live()
    assert world.run().state is RunState.DONE
    return world


WAYS: list[dict[str, object]] = [{}, {"fold": "median"}, {"server": "momentum"}, {"codec": "int8"}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_whose_folds_are_cut_ends_with_the_same_bytes(way: dict[str, object]) -> None:
    plain = ended(World(3, trainer=Walk((60_000,)), rounds=3, **way))  # type: ignore[arg-type]
    world = Functions(**way)
    ended(world)
    assert world.model() == plain.model()
    assert world.uploads.waiting == {}
    folding = world.ledger.folding("runs/r/rounds/000002")
    assert folding is not None
    assert folding[0].shards == (0 if "server" in way else 4)


@pytest.mark.fleet
def test_a_run_whose_folds_are_cut_dies_at_every_write_and_ends_with_the_same_bytes() -> None:
    expected, at, died = ended(Functions()).model(), 0, True
    while died:
        at += 3
        world = Functions()
        died = world.live(at=at) >= at
        assert ended(world).model() == expected, at
        assert len(world.uploads.waiting) <= 1


def test_an_update_that_a_shard_finds_unfit_is_taken_out_and_the_rest_is_folded_again() -> None:
    def tamper(device: str, update: bytes) -> bytes:
        tensors, about = read(update)
        if device == "d1" and len(tensors["w"]) > 1:
            tensors = {n: a.copy() for n, a in tensors.items()}
            tensors["w"][-1] = np.nan
        return write(tensors, about)

    world = Functions(tamper=tamper)
    plain = World(3, trainer=Walk((60_000,)), rounds=3, tamper=tamper)
    assert ended(world).model() == ended(plain).model()
    assert [len(r.refused) for r in world.ledger.rounds("r")] == [1, 1, 1]
    assert world.uploads.waiting == {}


def test_a_fold_in_parts_on_s3_is_the_fold_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator's S3 (tests/s3.py), with parts as large as the real one wants them."""
    with serving() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        scene = Scene([("BF16", (1_300_000,)), ("F32", (3_000_000,)), ("I64", (2,))], 2)
        made, expected = scene.expected()
        store = open_store(f"s3://{BUCKET}/p")
        for key in scene.objects.list(""):
            store.put(key, [fetch(scene.objects, key)])
        client = boto3.Session().client("s3", endpoint_url=s3.url, region_name=REGION, config=PATHS)
        uploads = multipart.Uploads(client, BUCKET, "p")
        ledger, given = Ledger(scene.records), (scene.round, scene.arrivals, scene.settings)
        site = replace(LAMBDA, folders=3)
        prepare(ledger, store, uploads, site, *given)
        plan = load(store, place(scene.round), scene.folding().plan)
        assert len(plan.slices) == 2
        for number in (1, 0, 1):
            fold_part(store, uploads, plan, number)
        found = assemble(ledger, uploads, site, (), store, *given, scene.header, None)
        client.close()
        assert found == made
        assert s3.objects[f"p/{made.model}"] == expected
        assert s3.uploads == {}
