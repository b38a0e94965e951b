"""From a valid file one that may be anything: changed in bytes, table, what it says of itself, values.

    draft = Draft(case) ─▶ one to four mutations, each drawn ─▶ draft.file()

The same seed and number make the same file, on any machine.
"""

import json
from collections.abc import Callable
from itertools import pairwise
from json.encoder import encode_basestring
from random import Random
from typing import Any

from fleetfold.fold.tensors import DTYPES
from fleetfold.fold.wire import CODECS, INDICES, SCALES, STARTS, VALUES
from tests.fuzz.valid import Case, any_case, of_another_form


class Raw(str):
    """JSON text that stands as it is, also where it is none."""


class Draft:
    """A file in parts, to be changed. `edits` change its bytes at last."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.table: list[tuple[str, Any]] = [("__metadata__", None)]
        self.table += [
            (name, {field: list(v) if isinstance(v, list) else v for field, v in entry.items()})
            for name, entry in case.table
        ]
        self.about: dict[str, Any] = json.loads(json.dumps(case.about))
        self.metadata: Any = {}
        self.text: str | None = None  # of the update's header, instead of `about`
        self.body = bytearray(case.body)
        self.edits: list[Callable[[bytearray], object]] = []

    def file(self) -> bytes:
        text = self.text if self.text is not None else dumped(self.about)
        about = self.metadata if self.metadata != {} else {"fleetfold": text}
        pairs = [(name, about if entry is None else entry) for name, entry in self.table]
        head = dumped(pairs).encode("utf-8", "surrogatepass")
        data = bytearray(len(head).to_bytes(8, "little") + head + self.body)
        for edit in self.edits:
            edit(data)
        return bytes(data)


def dumped(value: Any) -> str:
    """JSON of dicts, lists of pairs (which may say a name twice), and raw text."""
    kind = type(value)
    if kind is str:
        return encode_basestring(value)
    if kind is Raw:
        return str(value)
    if kind is int or kind is float:
        return repr(value)
    if kind is dict or (kind is list and value and type(value[0]) is tuple):
        pairs = value.items() if kind is dict else value
        return "{" + ",".join([f"{dumped(name)}:{dumped(entry)}" for name, entry in pairs]) + "}"
    if kind is list:
        return "[" + ",".join([dumped(v) for v in value]) + "]"
    return json.dumps(value)


NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 9, 255, 256, 1023, 1025, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 4, -(2**63), -(2**63) - 1, 10**18, 10**40, 10**400,
)  # fmt: skip
TOKENS = tuple(
    Raw(text)
    for text in (
        "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "1e308", "-1e308", "1.0", "4.0", "0.5",
        "-0", "-0.0", "01", "+1", "0x10", "1e3", "true", "false", "null", '""', "[]", "{}", "[[]]", '"4"',
        '"full"', "9" * 4300, "9" * 4301, "-" + "9" * 4299,
        "1" + "0" * 300, '"\\ud800"', '"\\udc00\\ud800"',
        '"\\ud83d\\ude00"', '"\\u0000"', '"\\u001b[31m\\u0007"', '"\\u202e\\r\\n"', '"\\x41"', '"a\\',
        '{"a":1,"a":2}', "[1,2", "\u00a0", "/**/1", "'a'", '"' + "é" * 300 + '"', '"' + "\\u001b" * 200 + '"',
    )
)  # fmt: skip
TEXTS = (
    "", "a", "w", "c", "__metadata__", SCALES, STARTS, VALUES, INDICES, "fleetfold", "\0", "\x1b[2J",
    "\u202e", "\ud800", "🙂" * 70, "x" * 65, "x" * 64, "\n", "../../etc", "full", "topk", "train", "evaluate",
    "d", "r", "F32", "BOOL", "f" * 300, "ff", "1", "0", "3", "1ff", "0x1", "１", " 1", "1_1", "e" * 2000,
)  # fmt: skip


def number(chance: Random, near: Any = 0) -> Any:
    """One that is of interest, or near to what stood there."""
    if isinstance(near, int) and not isinstance(near, bool) and chance.random() < 0.4:
        return near + chance.choice((-64, -8, -4, -2, -1, 1, 2, 4, 8, 64))
    return chance.choice(NUMBERS) if chance.random() < 0.7 else chance.choice(TOKENS)


def anything(chance: Random, was: Any = None) -> Any:
    if isinstance(was, int | float) and chance.random() < 0.6:
        return number(chance, was)
    pick = chance.random()
    if pick < 0.3:
        return chance.choice(TOKENS)
    if pick < 0.6:
        return chance.choice(TEXTS)
    if pick < 0.8:
        return number(chance)
    if pick < 0.85:
        return nested(chance)
    return chance.choice(([], {}, [0], [1, 2], {"a": 1}, None, True, False, 0.5, 1e308, -1.0))


def nested(chance: Random) -> Raw:
    depth, (left, right) = chance.choice((3, 50, 900, 5000)), chance.choice((("[", "]"), ('{"a":', "}")))
    middle = chance.choice(("1", "[]", ""))
    return Raw(left * depth + middle + right * (depth if chance.random() < 0.8 else depth - 1))


# Of bytes


def flip(draft: Draft, chance: Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        at, bit, whole = chance.random(), 1 << chance.randrange(8), chance.random() < 0.3
        value = chance.choice((0, 255, 34, 44, 58, 92, 123, 125, chance.randrange(256)))

        def edit(
            data: bytearray, at: float = at, bit: int = bit, whole: bool = whole, v: int = value
        ) -> None:
            if data:
                place = int(at * len(data))
                data[place] = v if whole else data[place] ^ bit

        draft.edits.append(edit)


def flip_header(draft: Draft, chance: Random) -> None:
    at, value = chance.random(), chance.choice((*b'"{}[],:0123456789eE.-\\ \n', chance.randrange(256)))

    def edit(data: bytearray) -> None:
        length = int.from_bytes(data[:8], "little")
        if 0 < length < len(data) - 8:
            data[8 + int(at * length)] = value

    draft.edits.append(edit)


def truncate(draft: Draft, chance: Random) -> None:
    cut = chance.choice((1, 2, 4, 8, chance.randrange(1, 4000)))
    draft.edits.append(lambda data: data.__delitem__(slice(max(0, len(data) - cut), None)))


def extend(draft: Draft, chance: Random) -> None:
    more = bytes(chance.choice((0, 255, 127))) + chance.randbytes(chance.choice((0, 1, 4, 8, 6, 600)))
    draft.edits.append(lambda data: data.extend(more))


def splice(draft: Draft, chance: Random) -> None:
    """Its first part and another valid file's last; or a piece of that one in its middle."""
    other, a, b, c = any_case(chance).file, chance.random(), chance.random(), chance.random()

    def edit(data: bytearray) -> None:
        here, there = int(a * len(data)), int(b * len(other))
        stop = there + int(c * 64) if c < 0.7 else len(other)
        data[here : here + (stop - there if c < 0.5 else len(data))] = other[there:stop]

    draft.edits.append(edit)


def insert(draft: Draft, chance: Random) -> None:
    at, what, gone = chance.random(), chance.randbytes(chance.choice((0, 1, 3, 8))), chance.choice((0, 1, 4))
    draft.edits.append(lambda data: data.__setitem__(slice(p := int(at * len(data)), p + gone), what))


def prefix(draft: Draft, chance: Random) -> None:
    """Another length of the header."""
    step, far = (
        chance.choice((-8, -1, 1, 8, 64)),
        chance.choice((None, None, 0, 2, 2**20, 2**30, 2**63, 2**64 - 1)),
    )

    def edit(data: bytearray) -> None:
        length = int.from_bytes(data[:8], "little")
        data[:8] = (max(0, length + step) % 2**64 if far is None else far).to_bytes(8, "little")

    draft.edits.append(edit)


def pad(draft: Draft, chance: Random) -> None:
    """Spaces, which are allowed, or what is not, around the header, whose length then fits."""
    what = chance.choice((b" ", b" " * 64, b"\n\t\r ", b"\0", b"{}", b" " * 5000, b"\xef\xbb\xbf", b","))
    front = chance.random() < 0.3

    def edit(data: bytearray) -> None:
        length = int.from_bytes(data[:8], "little")
        if length < len(data):
            place = 8 if front else 8 + length
            data[place:place] = what
            data[:8] = (length + len(what)).to_bytes(8, "little")

    draft.edits.append(edit)


# Of the table


def entries(draft: Draft) -> list[int]:
    return [k for k, (_, entry) in enumerate(draft.table) if isinstance(entry, dict)]


def shuffle(draft: Draft, chance: Random) -> None:
    """In another order: of no account, or, if offsets move along, another layout."""
    if chance.random() < 0.6:
        chance.shuffle(draft.table)
        return
    found = entries(draft)
    if len(found) > 1:
        a, b = chance.sample(found, 2)
        (name, one), (other, two) = draft.table[a], draft.table[b]
        draft.table[a], draft.table[b] = (other, one), (name, two)


def duplicate(draft: Draft, chance: Random) -> None:
    """A name twice: with the same entry, or another."""
    name, entry = draft.table[chance.randrange(len(draft.table))]
    again = dict(entry) if isinstance(entry, dict) else entry
    if isinstance(again, dict) and chance.random() < 0.6:
        again["dtype"], again["shape"] = chance.choice(list(DTYPES)), [chance.randrange(9)]
    draft.table.insert(chance.randrange(len(draft.table) + 1), (name, again))


def drop(draft: Draft, chance: Random) -> None:
    if len(draft.table) > 1:
        del draft.table[chance.randrange(len(draft.table))]


def rename(draft: Draft, chance: Random) -> None:
    k = chance.randrange(len(draft.table))
    name = chance.choice(TEXTS) if chance.random() < 0.8 else chance.choice(draft.table)[0]
    if chance.random() < 0.2:  # the same name, but in escapes
        name = Raw('"' + "".join(f"\\u{ord(c):04x}" for c in str(draft.table[k][0]) if ord(c) < 65536) + '"')
    draft.table[k] = (name, draft.table[k][1])


def add(draft: Draft, chance: Random) -> None:
    """More tensors, of no bytes or over those of others."""
    for k in range(chance.choice((1, 1, 2, 30))):
        at = chance.choice((0, 4, len(draft.body)))
        stop = at + chance.choice((0, 0, 4))
        entry = {"dtype": "F32", "shape": [(stop - at) // 4], "data_offsets": [at, stop]}
        draft.table.append((f"{chance.choice(TEXTS)}{k or ''}", entry))


def field(draft: Draft, chance: Random) -> None:
    """One field of one entry."""
    found = entries(draft)
    if not found:
        return
    name, entry = draft.table[k := chance.choice(found)]
    what = chance.choice(("dtype", "shape", "data_offsets", "more", "less", "whole", "twice"))
    if what == "more":
        entry[chance.choice(("x", "dtype ", "__metadata__"))] = anything(chance)
    elif what == "less":
        entry.pop(chance.choice([*entry, "dtype"]), None)
    elif what == "whole":
        draft.table[k] = (name, anything(chance))
    elif what == "twice":
        draft.table[k] = (name, [(chance.choice(("dtype", "shape")), anything(chance)), *entry.items()])
    elif what == "dtype" or not isinstance(entry.get(what), list):
        entry[what] = (
            chance.choice((*DTYPES, "F8_E4M3", "f32", "C64")) if chance.random() < 0.8 else anything(chance)
        )
    else:
        numbers(entry, what, chance)


def numbers(entry: dict[str, Any], what: str, chance: Random) -> None:
    """Shapes and offsets: other, more, fewer, in another order; a shape of as many elements."""
    values = list(entry[what])
    pick = chance.random()
    if pick < 0.4 and values:
        k = chance.randrange(len(values))
        values[k] = number(chance, values[k])
    elif pick < 0.5:
        values.insert(chance.randrange(len(values) + 1), chance.choice((1, 1, 0, 2, *NUMBERS)))
    elif pick < 0.6 and values:
        values.pop(chance.randrange(len(values)))
    elif pick < 0.7:
        values.reverse()
    elif pick < 0.8 and what == "data_offsets":
        step = chance.choice((-8, -4, -1, 1, 4, 8))
        values = [v + step if isinstance(v, int) else v for v in values]
    elif pick < 0.9:
        values = [1] * chance.choice((1, 63, 64, 65, 3000)) + values
    else:
        entry[what] = anything(chance)
        return
    entry[what] = values


def boundary(draft: Draft, chance: Random) -> None:
    """Where one tensor ends and the next begins, moved: without gap or overlap, of the same length."""
    spans = [draft.table[k][1].get("data_offsets") for k in entries(draft)]
    pairs = [
        (one, two)
        for one, two in pairwise(s for s in spans if isinstance(s, list) and len(s) == 2)
        if one[1] == two[0] and isinstance(one[1], int)
    ]
    if pairs:
        (a, b), step = chance.choice(pairs), chance.choice((-8, -4, -2, -1, 1, 2, 4, 8))
        a[:], b[:] = [a[0], a[1] + step], [b[0] + step, b[1]]


def exchange(draft: Draft, chance: Random) -> None:
    """Another dtype of the same width, so that all offsets stay right."""
    found = entries(draft)
    if found:
        entry = draft.table[chance.choice(found)][1]
        old = DTYPES.get(str(entry.get("dtype")))
        if old is not None:
            entry["dtype"] = chance.choice([c for c, d in DTYPES.items() if d.itemsize == old.itemsize])


def metadata(draft: Draft, chance: Random) -> None:
    text = dumped(draft.about)
    draft.metadata = chance.choice(
        (
            {"fleetfold": anything(chance)}, anything(chance), {"fleetfold": text, "format": "pt"},
            [("fleetfold", text), ("fleetfold", dumped(any_case(chance).about))], {"fleetfold": text, "x": 1},
            {**{f"k{i}": "v" for i in range(chance.choice((3, 400)))}, "fleetfold": text},
            {"Fleetfold": text},
        )
    )  # fmt: skip


# Of what it says of itself


def claim(draft: Draft, chance: Random) -> None:
    """One field: another value, none, or one more."""
    about = draft.about
    if chance.random() < 0.1:
        about[chance.choice(("run", "kind", "device"))] = chance.choice(TEXTS)
        return
    for _ in range(3):  # perhaps deeper
        inner = [v for v in about.values() if isinstance(v, dict)]
        about = chance.choice(inner) if inner and chance.random() < 0.4 else about
    if about and chance.random() < 0.8:
        name = chance.choice(list(about))
        about[name] = anything(chance, about[name])
    elif about and chance.random() < 0.5:
        del about[chance.choice(list(about))]
    else:
        about[chance.choice(TEXTS)] = anything(chance)


def form(draft: Draft, chance: Random) -> None:
    claimed = draft.about.setdefault("form", {})
    if not isinstance(claimed, dict):
        return
    what = chance.choice(("codec", "delta", "carried", "carried"))
    if what == "codec":
        claimed[what] = chance.choice((*CODECS, *CODECS, *TEXTS))
    elif what == "delta":
        claimed[what] = chance.choice((True, False, 1, "true", None))
    else:
        n = len(draft.case.model.header.tensors) if draft.case.model else 3
        bits = f"{chance.getrandbits(n):x}"
        claimed[what] = chance.choice((bits, bits, bits.upper(), "0" + bits, "f" * (n // 4 + 1), *TEXTS))


def report(draft: Draft, chance: Random) -> None:
    """Metrics, evaluation, timings, what else: many, long, huge."""
    pick = chance.random()
    if pick < 0.3:
        many = chance.choice((1, 63, 64, 65, 3000))
        draft.about["metrics"] = {f"{chance.choice(TEXTS)}{k}": 0.5 for k in range(many)}
    elif pick < 0.5:
        draft.about["metrics"] = {chance.choice(TEXTS): anything(chance, 0.5)}
    elif pick < 0.7:
        examples = number(chance, 3)
        draft.about["evaluation"] = {"examples": examples, "metrics": {"loss": anything(chance, 0.5)}}
    elif pick < 0.8:
        draft.about["took"] = {chance.choice(("download", "compute", "upload")): anything(chance, 0.5)}
    else:
        more = Raw(
            chance.choice(("[],", "{},", '{"":0},', "1.5,", '"a",', "[[[]]],")) * chance.choice((1, 5000))
        )
        draft.about["extra"] = chance.choice((anything(chance), nested(chance), Raw(f"[{more}0]")))


def words(draft: Draft, chance: Random) -> None:
    """The text of its header, cut or changed."""
    text = dumped(draft.about)
    at = chance.randrange(len(text) + 1)
    what = chance.choice((*TOKENS, *'{}[],:"\\', ""))
    draft.text = text[:at] + what + text[at + chance.choice((0, 1, 5, 10**6)) :]


# Of values

ODD = {
    "F64": ("7ff0000000000000", "fff8000000000001", "7ff0000000000001", "7fefffffffffffff"),
    "F32": ("7f800000", "ff800000", "7fc00000", "7f800001", "7f7fffff", "7e967699", "80000000", "00000001"),
    "F16": ("7c00", "fc00", "7e00", "7c01", "7bff", "8000", "0001"),
    "BF16": ("7f80", "ff80", "7fc0", "7f81", "7f7f", "8000", "0001"),
    "I64": ("7fffffffffffffff", "8000000000000000", "ffffffffffffffff", "0000000000010000"),
    "U16": ("ffff", "0000", "0001", "7fff"), "BOOL": ("02", "ff", "01", "00"), "I8": ("80", "7f", "81", "00"),
}  # fmt: skip


def value(draft: Draft, chance: Random) -> None:
    """A value that is not finite, is the largest, is none of its dtype; or just another one."""
    found = [k for k in entries(draft) if str(draft.table[k][1].get("dtype")) in DTYPES]
    own = [k for k in found if draft.table[k][0].startswith("fleetfold.")]
    if not found:
        return
    entry = draft.table[chance.choice(own if own and chance.random() < 0.6 else found)][1]
    size, span = DTYPES[entry["dtype"]].itemsize, entry.get("data_offsets")
    if not (isinstance(span, list) and len(span) == 2 and all(isinstance(v, int) for v in span)):
        return
    start, stop = span
    if not 0 <= start < stop <= len(draft.body):
        return
    for _ in range(chance.choice((1, 1, 1, 3))):
        place = start + chance.randrange(max(1, (stop - start) // size)) * size
        odd = ODD.get(entry["dtype"], ())
        raw = (
            bytes.fromhex(chance.choice(odd))[::-1]
            if odd and chance.random() < 0.7
            else chance.randbytes(size)
        )
        draft.body[place : place + size] = raw


def topk(draft: Draft, chance: Random) -> None:
    """Starts and indices: moved, out of order, out of range."""
    spans = {
        n: e.get("data_offsets") for n, e in draft.table if isinstance(e, dict) and n in (STARTS, INDICES)
    }
    name = chance.choice((STARTS, INDICES))
    size = 8 if name == STARTS else 2
    if not (isinstance(span := spans.get(name), list) and len(span) == 2):
        value(draft, chance)
        return
    start, stop = (v if isinstance(v, int) and 0 <= v <= len(draft.body) else 0 for v in span)
    if stop - start < size:
        return
    place = start + chance.randrange((stop - start) // size) * size
    old = int.from_bytes(draft.body[place : place + size], "little")
    new = (
        number(chance, old)
        if chance.random() < 0.7
        else int.from_bytes(draft.body[start : start + size], "little")
    )
    new = new if isinstance(new, int) else 0
    draft.body[place : place + size] = (new % 256**size).to_bytes(size, "little")


def swap(draft: Draft, chance: Random) -> None:
    """Two stretches of values change places."""
    n = len(draft.body)
    if n > 16:
        size = chance.choice((1, 2, 4, 8))
        a, b = (chance.randrange(n // size) * size for _ in range(2))
        draft.body[a : a + size], draft.body[b : b + size] = (
            draft.body[b : b + size],
            draft.body[a : a + size],
        )


MUTATIONS: tuple[tuple[Callable[[Draft, Random], None], int], ...] = (
    (flip, 4), (flip_header, 5), (truncate, 3), (extend, 3), (splice, 3), (insert, 3), (prefix, 2), (pad, 2),
    (boundary, 2), (shuffle, 4), (duplicate, 4), (drop, 2), (rename, 3), (add, 3), (field, 8), (exchange, 4),
    (metadata, 3), (claim, 8), (form, 6), (report, 5), (words, 2), (value, 12), (topk, 5), (swap, 3),
)  # fmt: skip
_KINDS, _WEIGHTS = zip(*MUTATIONS, strict=True)


def mutated(seed: int, number: int) -> tuple[Case, bytes, str]:
    """File number `number` of that seed: what it was made of, its bytes, and what was done to it."""
    chance = Random(f"{seed}:{number}")
    case = any_case(chance)
    if chance.random() < 0.1:
        case = of_another_form(case, chance)
    draft = Draft(case)
    done = chance.choices(_KINDS, _WEIGHTS, k=chance.choice((1, 1, 1, 2, 2, 3, 4)))
    for mutate in done:
        mutate(draft, chance)
    return case, draft.file(), "+".join(mutate.__name__ for mutate in done)
