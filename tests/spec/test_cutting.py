"""A fold in parts: the bytes of the fold in one piece, whoever dies, comes twice or comes late."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.adapters.faults import Faults, simulated_death
from fleetfold.adapters.memory import MemoryObjects, MemoryRecords, MemoryUploads
from fleetfold.coordinator.cutting import (
    Plan,
    Told,
    assemble,
    fold_part,
    load,
    prepare,
)
from fleetfold.coordinator.folding import HERE, Made, fold_round
from fleetfold.coordinator.sources import header_of
from fleetfold.fold.codecs import encode
from fleetfold.fold.floats import narrowed
from fleetfold.fold.plan import Site
from fleetfold.fold.recipe import Unfit
from fleetfold.fold.tensors import FLOATS, Tensors, header_in, write
from fleetfold.fold.wire import CODECS, mask
from fleetfold.ledger import Arrival, Folding, Ledger, place
from fleetfold.messages import Form, UpdateHeader
from fleetfold.messages import encode as encoded
from fleetfold.ports import Uploads, fetch
from fleetfold.round.state import Policy, Round
from fleetfold.settings import Settings

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
        self.prepare()
        return self.assemble(self.fold())


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


def test_updates_that_carry_a_part_of_the_model_are_folded_in_parts_as_in_one() -> None:
    scene = Scene(partial=True)
    carried = Form(carried=mask(scene.header, {"t0", "t1"}))
    scene.arrivals[1] = scene.arrived(LAYOUT, 1, carried, 0)
    made, expected = scene.expected()
    assert Life(scene).all() == made
    assert fetch(scene.objects, made.model) == expected
