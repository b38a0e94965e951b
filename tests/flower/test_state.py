"""What is stored of a strategy comes back to the bit; what cannot be stored is named."""

import collections
import dataclasses
import enum
import json
import math
import pathlib
import random
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as strategy_module

from fleetfold.errors import BadConfig
from fleetfold.flower.again import Again
from fleetfold.flower.plain import Plain, Unstorable
from fleetfold.flower.state import Piece, chance, restore, save, set_chance


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Point(NamedTuple):
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Event:
    noise: float
    sizes: tuple[int, ...]


@dataclasses.dataclass
class Ledger:
    spent: float
    events: list[Event]


class Schedule:
    """An object of the user's own, with a counter."""

    def __init__(self) -> None:
        self.steps, self.rates = 0, [0.1]

    def __call__(self) -> float:
        return self.rates[-1]


def same(a: Any, b: Any) -> bool:
    """To the bit, types and orders included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float) and not isinstance(a, np.generic):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex) and not isinstance(a, np.generic):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, np.ndarray | np.generic):
        a, b = np.asarray(a), np.asarray(b)
        laid = a.flags.c_contiguous == b.flags.c_contiguous or a.flags.c_contiguous
        return a.dtype.str == b.dtype.str and a.shape == b.shape and laid and a.tobytes() == b.tobytes()
    if isinstance(a, dict | ArrayRecord | MetricRecord | ConfigRecord | RecordDict):
        pairs = zip(a.items(), b.items(), strict=True)
        return len(a) == len(b) and all(same(k, m) and same(v, w) for (k, v), (m, w) in pairs)
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    if isinstance(a, Array):
        return (a.dtype, tuple(a.shape), a.stype) == (b.dtype, tuple(b.shape), b.stype) and a.data == b.data
    if dataclasses.is_dataclass(a):
        return same(vars(a), vars(b))
    return bool(a == b)


def there_and_back(value: Any, old: Any = None) -> Any:
    plain = Plain()
    text = json.dumps(plain(value, "it"))
    tensors = {name: np.array(flat) for name, flat in plain.tensors.items()}
    return Again(tensors)(json.loads(text), "it", old)


ARRAYS = hnp.arrays(
    st.one_of(
        hnp.floating_dtypes(endianness="?"), hnp.integer_dtypes(endianness="?"), hnp.boolean_dtypes(),
        hnp.unsigned_integer_dtypes(), hnp.complex_number_dtypes(), hnp.unicode_string_dtypes(max_len=4),
        hnp.byte_string_dtypes(max_len=4), hnp.datetime64_dtypes(),
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.binary(max_size=40),
    st.complex_numbers(), st.sampled_from(Colour), st.builds(range, st.integers(-5, 5), st.integers(-5, 5)),
    st.builds(bytearray, st.binary(max_size=9)), st.just(pathlib.PurePosixPath("a/b")),
    hnp.scalar_dtypes().flatmap(lambda d: hnp.arrays(d, ()).map(lambda a: a[()])),
)  # fmt: skip
KEYS = st.one_of(
    st.text(max_size=3), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text())
)
VALUES = st.recursive(
    SCALARS | ARRAYS | ARRAYS.map(np.asfortranarray),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict),
        st.dictionaries(KEYS, inner, max_size=3).map(lambda d: collections.defaultdict(list, d)),
        st.lists(inner, max_size=3).map(lambda items: collections.deque(items, 5)),
        st.builds(Point, inner, inner),
        st.builds(
            Ledger, inner, st.lists(st.builds(Event, st.floats(), st.tuples(st.integers())), max_size=2)
        ),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_stored_comes_back_to_the_bit(value: Any) -> None:
    assert same(there_and_back(value), value)


@given(st.frozensets(KEYS, max_size=5))
def test_sets_come_back_and_have_one_text(value: frozenset[Any]) -> None:
    assert there_and_back(value) == value
    assert Plain()(value, "it") == Plain()(frozenset(reversed(list(value))), "it")


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), ARRAYS.filter(lambda a: a.dtype.kind != "M"), max_size=3)
)
def test_records_of_arrays_come_back(arrays: dict[str, Any]) -> None:
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    content = RecordDict(
        {"arrays": record, "m": MetricRecord({"a": 1, "b": [0.5]}), "c": ConfigRecord({"x": b"y"})}
    )
    back = there_and_back(content)
    assert same({k: dict(v) for k, v in back.items()}, {k: dict(v) for k, v in content.items()})


def test_large_arrays_are_tensors_in_their_own_dtype_and_writable_when_they_are_back() -> None:
    value = {"m": np.arange(5000, dtype=np.float32), "t": np.asfortranarray(np.ones((70, 80)))}
    plain = Plain()
    node = plain(value, "it")
    assert {name: t.dtype.name for name, t in plain.tensors.items()} == {"0": "float32", "1": "float64"}
    back = Again(plain.tensors)(json.loads(json.dumps(node)), "it")
    assert same(back, value)
    back["m"] += 1
    back["t"] += 1


def test_generators_of_random_numbers_go_on_where_they_were() -> None:
    value = [np.random.default_rng(3), np.random.RandomState(4), random.Random(5)]
    value[0].normal(size=3)
    back = there_and_back(value)
    assert back[0].normal() == value[0].normal()
    assert back[1].normal() == value[1].normal()
    assert back[2].random() == value[2].random()


def test_an_object_of_the_users_is_filled_where_his_code_has_made_it_again() -> None:
    was, fresh = Schedule(), Schedule()
    was.steps, was.rates = 7, [0.1, 0.05]
    back = there_and_back({"schedule": was, "log": print}, {"schedule": fresh, "log": print})
    assert back["schedule"] is fresh
    assert (fresh.steps, fresh.rates) == (7, [0.1, 0.05])
    assert back["log"] is print


def test_an_object_that_the_run_has_made_is_made_again() -> None:
    was = Schedule()
    was.steps = 7
    back = there_and_back([was])
    assert isinstance(back[0], Schedule)
    assert vars(back[0]) == vars(was)


class Keeper:
    """Knows how to tell and take its state, as PyTorch's and Flower's accountants do."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def test_what_tells_its_state_is_given_it_back() -> None:
    was, fresh = Keeper(), Keeper()
    was.kept = {"epsilon": 1.5, "events": [1, 2]}
    assert there_and_back([was], [fresh])[0] is fresh
    assert fresh.kept == was.kept


def test_a_way_back_to_the_object_that_holds_it_is_left_to_the_code() -> None:
    was, fresh = Schedule(), Schedule()
    was.owner, fresh.owner = was, fresh  # type: ignore[attr-defined]
    was.steps = 3
    back = there_and_back(was, fresh)
    assert back is fresh
    assert fresh.steps == 3
    assert fresh.owner is fresh  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"lock": [threading.Lock()]}, "it['lock'][0]"),
        ({"a": np.array([object()])}, "it['a']"),
        (Ledger(0.0, [iter(())]), "it.events[0]"),  # type: ignore[list-item]
        (type("MyDict", (dict,), {})(), "it"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, place: str) -> None:
    with pytest.raises(Unstorable) as caught:
        Plain()(value, "it")
    assert caught.value.place == place


def test_a_list_that_holds_itself_is_named() -> None:
    value: list[Any] = [1]
    value.append(value)
    with pytest.raises(Unstorable, match=r"it\[1\]"):
        Plain()(value, "it")


def test_what_the_code_does_not_make_again_is_named() -> None:
    with pytest.raises(Unstorable, match=r"it\['f'\]"):
        Again({})(Plain()({"f": print}, "it"), "it")


def test_a_nan_keeps_its_bits() -> None:
    value = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
    assert math.isnan(value)
    assert same(there_and_back(value), value)


def pieces_stored(strategy: strategy_module.Strategy) -> dict[str, Piece]:
    """As they are after a restart: nothing but bytes is left of them."""
    pieces = save(strategy, lambda record: "")
    return {
        name: Piece(json.loads(json.dumps(p.node)), {k: np.array(t) for k, t in p.tensors.items()})
        for name, p in pieces.items()
    }


def every_strategy() -> list[Callable[[], strategy_module.Strategy]]:
    s = strategy_module
    plain = [
        s.FedAvg, s.FedAvgM, s.FedAdagrad, s.FedAdam, s.FedYogi, s.FedProx, s.FedMedian,
        lambda: s.QFedAvg(client_learning_rate=0.1),
        s.FedTrimmedAvg, s.Krum, s.MultiKrum, s.Bulyan, s.FedXgbBagging, s.FedXgbCyclic,
    ]  # fmt: skip
    wrapped = [
        lambda: s.DifferentialPrivacyServerSideFixedClipping(s.FedAdam(), 0.1, 1.0, 3),
        lambda: s.DifferentialPrivacyClientSideFixedClipping(s.FedAvg(), 0.1, 1.0, 3),
        lambda: s.DifferentialPrivacyServerSideAdaptiveClipping(s.FedAvg(), 0.1, 3),
        lambda: s.DifferentialPrivacyClientSideAdaptiveClipping(s.FedAvgM(), 0.1, 3),
    ]
    return [*plain, *wrapped]


@pytest.mark.parametrize("make", every_strategy())
def test_every_strategy_of_flowers_can_be_stored(make: Callable[[], strategy_module.Strategy]) -> None:
    was, again = make(), make()
    for holder in (was, getattr(was, "strategy", was)):
        for name in ("m_t", "v_t", "current_arrays", "momentum_vector"):
            if hasattr(holder, name):
                setattr(holder, name, {"w": np.arange(5000.0), "b": np.float32([1, -0.0])})
        if hasattr(holder, "clipping_norm"):
            holder.clipping_norm = 0.125
        if hasattr(holder, "current_bst"):
            holder.current_bst = b"{}" * 9000
        if hasattr(holder, "registered_nodes"):
            holder.registered_nodes = {2**63 - 1: 1, 5: 2}
    restore(again, pieces_stored(was), lambda key: ArrayRecord())
    inner = getattr(was, "strategy", None)
    mine, theirs = dict(vars(was)), dict(vars(again))
    if inner is not None:
        assert theirs.pop("strategy") is not mine.pop("strategy")
        assert same(functions_apart(vars(inner)), functions_apart(vars(again.strategy)))
    assert same(functions_apart(mine), functions_apart(theirs))


def functions_apart(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if not callable(value)}


def test_a_strategy_of_the_users_own_is_stored_with_all_that_it_has() -> None:
    class Mine(strategy_module.FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.best, self.schedule, self.rng = 0.0, Schedule(), np.random.default_rng(1)
            self.score = lambda x: x

    was, again = Mine(), Mine()
    was.best, was.schedule.steps, was.extra = 0.7, 4, {3: (1, 2)}  # type: ignore[attr-defined]
    was.rng.normal(size=5)
    restore(again, pieces_stored(was), lambda key: ArrayRecord())
    assert (again.best, again.schedule.steps, again.extra) == (0.7, 4, {3: (1, 2)})  # type: ignore[attr-defined]
    assert again.rng.normal() == was.rng.normal()
    assert again.score(3) == 3


def test_what_of_a_strategy_cannot_be_stored_is_named_with_a_way_out() -> None:
    strategy = strategy_module.DifferentialPrivacyServerSideFixedClipping(
        strategy_module.FedAvg(), 0.1, 1.0, 3
    )
    strategy.strategy.lock = threading.Lock()
    with pytest.raises(BadConfig) as caught:
        save(strategy, lambda record: "")
    assert "ServerSideFixedClipping.strategy.lock is a _thread.lock" in caught.value.sentence
    assert "--keep-process" in caught.value.next


def test_an_attribute_that_did_not_change_is_the_same_piece() -> None:
    strategy = strategy_module.FedAdam()
    strategy.m_t = {"w": np.arange(9000.0)}
    before = save(strategy, lambda record: "")
    strategy.eta = 0.5
    after = save(strategy, lambda record: "")
    changed = [name for name in after if not same(after[name].tensors, before[name].tensors)]
    assert changed == []
    assert [name for name in after if after[name].node != before[name].node] == ["eta"]


def test_a_record_that_is_stored_is_not_stored_again() -> None:
    strategy = strategy_module.FedAvgM()
    strategy.current_arrays = record = ArrayRecord([np.arange(5000.0)])
    pieces = save(strategy, lambda one: "models/3" if one is record else "")
    assert not pieces["current_arrays"].tensors
    again = strategy_module.FedAvgM()
    opened = ArrayRecord()
    restore(again, pieces, {"models/3": opened}.__getitem__)
    assert again.current_arrays is opened


def test_chance_goes_on_where_it_was() -> None:
    random.seed(3)
    np.random.seed(4)
    before = json.dumps(chance())
    drawn = (random.random(), np.random.normal(), random.sample(range(9), 3))
    set_chance(json.loads(before))
    assert (random.random(), np.random.normal(), random.sample(range(9), 3)) == drawn


def test_the_accountant_of_a_private_run_goes_on_with_what_was_spent() -> None:
    accounting = pytest.importorskip("flwr.supercore.privacy_accounting", reason="flwr 1.41 and later")

    def made() -> strategy_module.Strategy:
        config = accounting.PrivacyConfig(
            1e-5,
            10,
            accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
            accounting.SamplingMethod.NO_AMPLIFICATION,
        )
        inner = strategy_module.FedAvg()
        wrap = strategy_module.DifferentialPrivacyServerSideFixedClipping
        return wrap(inner, 1.0, 1.0, 3, accountant=Spending(config))

    was, again = made(), made()
    event = accounting.GaussianPrivacyEvent(noise_multiplier=1.0, sample_size=3, population_size=10)
    was.accountant.spent = [[event.noise_multiplier, 2]]
    was._pending_events = {4: event, 5: None}
    restore(again, pieces_stored(was), lambda key: ArrayRecord())
    assert again.accountant.spent == [[1.0, 2]]
    assert again._pending_events == {4: event, 5: None}


class Spending:
    """As much of an accountant as the wrapper asks for; the real one needs another library."""

    def __init__(self, config: Any) -> None:
        self.config, self.spent, self._lock = config, [], threading.Lock()

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spent = state["spent"]


def test_tensors_and_optimizers_of_pytorch_come_back() -> None:
    torch = pytest.importorskip("torch")

    def made() -> list[Any]:
        layer = torch.nn.Linear(70, 40)
        return [layer, torch.optim.Adam(layer.parameters(), lr=0.1), torch.ones(3, dtype=torch.bfloat16)]

    was, fresh = made(), made()
    was[0](torch.ones(70)).sum().backward()
    was[1].step()
    was[2][1] = 0.5
    layer, optimizer, words = there_and_back(was, fresh)
    assert (layer, optimizer) == tuple(fresh[:2])
    assert torch.equal(layer.weight, was[0].weight)
    for mine, theirs in zip(optimizer.state.values(), was[1].state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(mine[k]), torch.as_tensor(theirs[k])) for k in theirs)
    assert words.dtype == torch.bfloat16
    assert torch.equal(words, was[2])
    before = json.dumps(chance())
    drawn = torch.rand(3)
    set_chance(json.loads(before))
    assert torch.equal(torch.rand(3), drawn)
