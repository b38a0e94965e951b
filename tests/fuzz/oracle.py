"""Whether a file is an update for this round, said without a line of the gate's: by the safetensors library,
the standard library's JSON and numpy, from the model's layout and the format's description alone.

It answers why not, "" for a valid one. It may be slow and take memory: it sees only what was admitted.
"""

import json
import math
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from fleetfold.fold.gate import Expected

Layout = dict[str, tuple[str, tuple[int, ...]]]
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Invalid(Exception):
    pass


def objection(data: bytes, expected: Expected) -> str:
    try:
        _judge(data, expected)
    except Invalid as error:
        return str(error)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        return f"it is not what it should be: {error!r}"
    return ""


def _judge(data: bytes, expected: Expected) -> None:
    try:
        found = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in deserialize(data)}
    except SafetensorError as error:
        raise Invalid(f"the safetensors library refuses it: {error}") from None
    length = int.from_bytes(data[:8], "little")
    try:
        table = json.loads(data[8 : 8 + length], object_pairs_hook=_once, parse_int=_int)
        about = json.loads(
            table.pop("__metadata__")["fleetfold"], parse_int=_int, parse_constant=_no_constant
        )
    except (ValueError, KeyError, RecursionError) as error:
        raise Invalid(f"its header is not JSON of ours: {error!r}") from None
    _need(table.keys() == found.keys(), "two readers see other names")
    _need(len(data) == 8 + length + sum(len(raw) for _, _, raw in found.values()), "its length is another")
    _same_identity(about, expected)
    plain = {"codec": "full", "delta": False, "carried": ""}
    form = {name: about.get("form", plain).get(name, usual) for name, usual in plain.items()}
    _need(isinstance(form["delta"], bool), "delta is no boolean")
    layout: Layout = {}
    if expected.model is None:
        _need(form == plain, "an evaluation has no form")
    else:
        layout = _layout(form, expected, found)
    _need({n: (d, s) for n, (d, s, _) in found.items()} == layout, "its layout is not the model's")
    places = sorted((table[n]["data_offsets"], n) for n in found if found[n][2])
    _need([n for _, n in places] == [n for n in layout if found[n][2]], "its tensors lie in another order")
    _values(form["codec"], {n: (layout[n][0], found[n][2]) for n in layout}, _elements(form, expected))


def _need(true: bool, otherwise: str) -> None:
    if not true:
        raise Invalid(otherwise)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _need(len({name for name, _ in pairs}) == len(pairs), "it names something twice")
    return dict(pairs)


def _int(text: str) -> int:
    """More digits than Python takes may stand where nobody reads them."""
    return int(text) if len(text) < 4000 else -1


def _no_constant(name: str) -> Any:
    raise Invalid(f"{name} is not JSON")


def _same_identity(about: dict[str, Any], expected: Expected) -> None:
    ours = {
        "v": 1, "run": expected.run, "round": expected.round, "kind": expected.kind, "device": expected.device
    }  # fmt: skip
    _need({name: about.get(name, 1) for name in ours} == ours, "it is for another key")
    _need(0 < about["examples"] <= 1 << 40, "so many examples")
    scored = about.get("evaluation")
    if scored is not None:
        _need(0 < scored["examples"] <= 1 << 40, "so many examples evaluated")
    for metrics in (about.get("metrics", {}), scored["metrics"] if scored else {}):
        _need(len(metrics) <= 64, "many metrics")
        for name, value in metrics.items():
            _need(0 < len(name) <= 64 and name.isprintable(), "a metric's name")
            _need(value is None or math.isfinite(value), "a metric is not finite")
    for step in ("download", "compute", "upload"):
        seconds = about.get("took", {}).get(step)
        _need(seconds is None or 0 <= seconds <= 1e9, "it took a time that is none")


def _carried(form: dict[str, Any], expected: Expected) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of the model's tensors that it says to carry."""
    model = [(t.name, t.dtype, t.shape) for t in expected.model.tensors] if expected.model else []
    everything = (1 << len(model)) - 1
    bits = int(form["carried"], 16) if form["carried"] else everything
    allowed = int(expected.carried, 16) if expected.carried else everything
    _need(0 <= bits <= everything and not bits & ~allowed, "it carries what it may not")
    _need(bits == allowed or expected.partial, "it carries too little")
    return [t for k, t in enumerate(model) if bits >> k & 1]


def _elements(form: dict[str, Any], expected: Expected) -> int:
    return sum(math.prod(shape) for _, code, shape in _carried(form, expected) if code in SIZES)


def _layout(form: dict[str, Any], expected: Expected, found: dict[str, Any]) -> Layout:
    """What such a file holds, in order."""
    carried = _carried(form, expected)
    floats = [t for t in carried if t[1] in SIZES]
    rest: Layout = {name: (code, shape) for name, code, shape in carried if code not in SIZES}
    n = sum(math.prod(shape) for _, _, shape in floats)
    codec = form["codec"]
    if codec == "topk":
        sent = found["fleetfold.values"][1] if "fleetfold.values" in found else (0,)
        own: Layout = {
            "fleetfold.starts": ("I64", (math.ceil(n / 65536) + 1,)), "fleetfold.values": ("F32", sent),
            "fleetfold.indices": ("U16", sent),
        }  # fmt: skip
        return own | rest
    if codec == "int8":
        stream: Layout = {"fleetfold.values": ("I8", (n,))}
        return stream | {"fleetfold.scales": ("F32", (math.ceil(n / 1024),))} | rest
    narrow = {"full": "F64", "fp32": "F32", "bf16": "BF16", "fp16": "F16"}.get(codec)
    _need(narrow is not None, "there is no such codec")
    assert narrow is not None
    kept = {c: narrow if SIZES[narrow] < SIZES[c] else c for c in SIZES}
    return {name: (kept[code], shape) for name, code, shape in floats} | rest


def _values(codec: str, tensors: dict[str, tuple[str, bytes]], elements: int) -> None:
    """All finite once they are decoded; of top-k also where they go. A boolean is 0 or 1."""
    arrays = {name: _array(code, raw) for name, (code, raw) in tensors.items()}
    for name, (code, raw) in tensors.items():
        _need(code != "BOOL" or set(raw) <= {0, 1}, f"{name!r} holds booleans that are none")
        _need(bool(np.isfinite(arrays[name]).all()), f"{name!r} is not finite")
    if codec == "int8":
        stream = arrays["fleetfold.values"]
        blown = np.repeat(arrays["fleetfold.scales"], 1024)[: len(stream)]
        with np.errstate(over="ignore"):
            _need(bool(np.isfinite(stream.astype(np.float32) * blown).all()), "int8 overflows")
    if codec == "topk":
        starts, indices = arrays["fleetfold.starts"], arrays["fleetfold.indices"].astype(np.int64)
        if len(starts) == 1:
            return  # a model without floats: the one start is never read
        _need(starts[0] == 0 and starts[-1] == len(indices), "the pages are not all of the values")
        _need(bool((np.diff(starts) >= 0).all()), "the pages do not follow each other")
        places = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) * 65536 + indices
        _need(bool((np.diff(places) > 0).all()), "the values do not follow each other")
        _need(len(places) == 0 or bool(places[-1] < elements), "a value lies beyond the model")


def _array(code: str, raw: bytes) -> Any:
    if code == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    kinds = {"F": "<f", "I": "<i", "U": "<u", "B": "<u"}
    return np.frombuffer(raw, f"{kinds[code[0]]}{1 if code == 'BOOL' else int(code[1:]) // 8}")
