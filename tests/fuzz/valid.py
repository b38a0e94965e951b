"""Valid update files, of every codec, of differences and whole models, of all tensors and of some.

`Case` is one file in three parts that can be changed apart, and what the gate expects at its key. The models
are small and have what a layout can hold: each dtype, scalars, nothing, names that need escapes.
"""

import json
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fleetfold.fold.codecs import encode
from fleetfold.fold.floats import narrowed
from fleetfold.fold.gate import Expected
from fleetfold.fold.tensors import FLOATS, PREFIX, Header, Tensors, header_in, write
from fleetfold.fold.wire import CODECS, mask
from fleetfold.messages import Evaluation, Form, Timings, UpdateHeader
from fleetfold.messages import encode as encoded

Shape = tuple[int, ...]
MODELS: dict[str, dict[str, tuple[str, Shape]]] = {
    "mixed": {
        "a": ("F32", (5, 3)), "steps": ("I64", ()), "b": ("F16", (7,)), "brain": ("BF16", (2, 3)),
        "scalar": ("F64", ()), "empty": ("F32", (0,)), "nothing": ("I64", (0, 3)), "c": ("F32", (7,)),
        "mask": ("BOOL", (5,)),
    },
    "blocks": {"w": ("F32", (1100, 2)), "steps": ("I64", ()), "tail": ("F16", (130,))},
    "pages": {"w": ("F32", (65536 + 90,)), "n": ("U8", (3,)), "v": ("F64", (11,))},
    "names": {"": ("F32", (2,)), 'q"\\': ("F32", ()), "ü 🙂\n": ("F16", (2,)), "x" * 200: ("BOOL", (2,))},
    "integers": {"i": ("I64", (3,)), "b": ("BOOL", (9,)), "u": ("U16", ()), "none": ("F32", (0,))},
    "doubles": {"d": ("F64", (6,)), "e": ("F64", (2, 2))},
    "many": {f"layer.{k}": (("F32", "I64", "F32", "BF16")[k % 4], (k % 3,)) for k in range(150)},
}  # fmt: skip
LARGE = frozenset({"pages", "many"})
"""Models whose files take longer: fewer of the cases are theirs."""


class Model(Struct, frozen=True, eq=False):
    name: str
    tensors: Tensors
    header: Header
    data: bytes


class Case(Struct, frozen=True, eq=False):
    """A file in parts: the table of its tensors, what it says of itself, its values."""

    model: Model | None
    expected: Expected
    table: tuple[tuple[str, dict[str, Any]], ...]
    about: dict[str, Any]
    body: bytes

    @property
    def file(self) -> bytes:
        metadata = {"fleetfold": json.dumps(self.about, separators=(",", ":"))}
        text = json.dumps({"__metadata__": metadata, **dict(self.table)}).encode()
        return len(text).to_bytes(PREFIX, "little") + text + self.body


def drawn(layout: dict[str, tuple[str, Shape]], seed: int) -> Tensors:
    chance = np.random.default_rng(seed)

    def tensor(code: str, shape: Shape) -> Any:
        if code in FLOATS:
            return narrowed(chance.normal(size=shape), code)
        if code == "BOOL":
            return np.asarray(chance.random(shape) < 0.5)
        return np.asarray(chance.integers(0, 9, shape), {"I64": "i8", "U8": "u1", "U16": "u2"}[code])

    return {name: tensor(code, shape) for name, (code, shape) in layout.items()}


@cache
def model(name: str) -> Model:
    tensors = drawn(MODELS[name], 1)
    data = write(tensors)
    return Model(name, tensors, header_in(data), data)


@cache
def case(name: str, form: Form, partial: bool, seed: int) -> Case:
    """A device's update to that model, as an agent writes it."""
    base = model(name)
    update = drawn(MODELS[name], seed + 2)
    codec = encode(update, base.tensors, base.header, form, [seed], sent=(1, 5, 400)[seed % 3])
    expected = Expected(
        run="r", round=2, kind="train", device="d", model=base.header,
        carried="" if partial else form.carried, partial=partial,
    )  # fmt: skip
    header = UpdateHeader(
        run="r", round=2, kind="train", device="d", examples=5 + seed, form=form, metrics={"loss": 0.5},
        evaluation=Evaluation(examples=3, metrics={"accuracy": 0.25}) if seed % 2 else None,
        took=Timings(download=0.1, compute=2.0), extra={"any": [1, "thing"]} if seed % 2 else None,
    )  # fmt: skip
    return _parts(base, expected, write(codec.tensors, encoded(header)))


@cache
def evaluation() -> Case:
    """An update without tensors, of a round that only evaluates."""
    expected = Expected(run="r", round=2, kind="evaluate", device="d", model=None)
    scored = Evaluation(examples=3, metrics={"accuracy": 0.25})
    header = UpdateHeader(run="r", round=2, kind="evaluate", device="d", examples=3, evaluation=scored)
    return _parts(None, expected, write({}, encoded(header)))


def _parts(model: Model | None, expected: Expected, data: bytes) -> Case:
    begin = PREFIX + int.from_bytes(data[:PREFIX], "little")
    table = json.loads(data[PREFIX:begin])
    about = json.loads(table.pop("__metadata__")["fleetfold"])
    return Case(model, expected, tuple(table.items()), about, data[begin:])


@cache
def masks(name: str) -> tuple[str, ...]:
    """All of the model's tensors, every other one, the first, the last."""
    names = list(MODELS[name])
    some = [names[::2], names[:1], names[-1:]]
    return ("", *(mask(model(name).header, part) for part in some))


def any_case(chance: Random) -> Case:
    """One of the valid files; a large one every 50th time."""
    if chance.random() < 0.03:
        return evaluation()
    large = chance.random() < 0.02
    name = chance.choice([n for n in MODELS if (n in LARGE) == large])
    form = Form(chance.choice(CODECS), chance.random() < 0.5, chance.choice(masks(name)))
    return case(name, form, chance.random() < 0.5, chance.randrange(6))


def of_another_form(made: Case, chance: Random) -> Case:
    """A file of another form or of other tensors, where `made` was expected."""
    if made.model is None:
        return made
    name = made.model.name
    form = Form(chance.choice(CODECS), chance.random() < 0.5, chance.choice(masks(name)))
    return altered(case(name, form, True, chance.randrange(6)), expected=made.expected)


def every_case() -> "list[Case]":
    """Each model, codec, difference or not, mask, and whether fewer tensors will do."""
    forms: Callable[[str], list[Form]] = lambda name: [  # noqa: E731
        Form(codec, delta, carried) for codec in CODECS for delta in (False, True) for carried in masks(name)
    ]
    return [evaluation()] + [
        case(name, form, partial, seed)
        for name in MODELS
        for form in forms(name)
        for partial, seed in ((False, 0), (True, 5))
    ]


def altered(case: Case, **changes: Any) -> Case:
    return replace(case, **changes)
