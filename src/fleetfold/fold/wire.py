"""What lies where in an update's file: it follows from the model and from the update's form alone.

    floats in the model's order, or what stands for them │ the codec's own tensors │ integers, booleans

So the gate knows the one layout that such a file may have, and no fold reads a header again. `carried`
masks name a part of the model's tensors: adapters, a head, whatever a device trains.
"""

from collections.abc import Collection

from fleetfold.errors import BadUpdate
from fleetfold.fold.tensors import DTYPES, FLOATS, Header, Tensor, bytes_of, elements_of
from fleetfold.messages import Form

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Name → (dtype, shape)."""

BLOCK = 1024
"""Values of int8 that share a scale."""
PAGE = 1 << 16
"""Values among which top-k's indices count: they fit 16 bits."""
SCALES, STARTS, INDICES, VALUES = (f"fleetfold.{name}" for name in ("scales", "starts", "indices", "values"))
OWN_TENSORS = frozenset({SCALES, STARTS, INDICES, VALUES})
"""What codecs put beside the model's, never all of them."""

WIDTHS = {"full": None, "fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""Codecs that keep each tensor, and the widest dtype that they leave it."""
CODECS = (*WIDTHS, "int8", "topk")


class Wire:
    """A `form` over a model: the layout of such an update's file, and where each tensor's values lie.

    Raises BadUpdate for a form that there is not, or that does not fit the model.
    """

    def __init__(self, model: Header, form: Form) -> None:
        if form.codec not in CODECS:
            raise BadUpdate(f"codec {form.codec[:20]!r} is not one of {', '.join(CODECS)}")
        self.form, self.carried = form, carried(model, form.carried)
        self._begin = model.begin
        if own := [t.name for t in self.carried if t.name.startswith("fleetfold.")]:
            raise BadUpdate(f"tensor {own[0][:80]!r}: names that begin with fleetfold. are the codecs' own")
        self.floats = [t for t in self.carried if t.dtype in FLOATS]
        self.rest = [t for t in self.carried if t.dtype not in FLOATS]
        self.first: dict[str, int] = {}  # tensor → its first element in the stream of floats
        self.elements = 0
        for tensor in self.floats:
            self.first[tensor.name] = self.elements
            self.elements += elements_of(tensor.shape)
        self._places: dict[str, int] = {}  # of a top-k that sends nothing
        position = 0
        for name, (code, shape) in self.layout().items():
            self._places[name] = position
            position += bytes_of(code, shape)
        self._least = position

    def layout(self, sent: int = 0) -> Layout:
        """Name → (dtype, shape), in the order of the file. `sent`: how many values, of top-k."""
        match self.form.codec:
            case "topk":
                pages = -(-self.elements // PAGE)
                layout: Layout = {
                    STARTS: ("I64", (pages + 1,)), VALUES: ("F32", (sent,)), INDICES: ("U16", (sent,))
                }  # fmt: skip
            case "int8":
                layout = {VALUES: ("I8", (self.elements,)), SCALES: ("F32", (-(-self.elements // BLOCK),))}
            case _:
                layout = {t.name: (self.stored(t.dtype), t.shape) for t in self.floats}
        return layout | {t.name: (t.dtype, t.shape) for t in self.rest}

    def stored(self, code: str) -> str:
        """The dtype in which a float tensor of that dtype travels: never a wider one."""
        width = WIDTHS.get(self.form.codec)
        return width if width and DTYPES[width].itemsize < DTYPES[code].itemsize else code

    def sent(self, size: int) -> int:
        """How many values a file with `size` bytes of tensors sends, of top-k. Raises BadUpdate where that
        is no number of them."""
        sent, over = divmod(size - self._least, 4 + 2)
        if self.form.codec != "topk":
            return 0
        if over or not 0 <= sent <= self.elements:
            raise BadUpdate(f"{size} bytes of tensors are not top-k of {self.elements} values")
        return sent

    def place(self, name: str, sent: int = 0) -> int:
        """The first byte of a tensor of the file, counted from where the tensors begin."""
        first = self._places[name]
        if self.form.codec != "topk" or name in (STARTS, VALUES):
            return first
        return first + sent * (4 if name == INDICES else 4 + 2)

    def spans(self, start: int, stop: int, sent: int = 0) -> list[tuple[int, int]]:
        """Bytes of the file that bytes [start, stop) of the model's tensors are made of, counted from where
        its tensors begin: few stretches, each read in order. Of top-k they are all values that are sent, for
        only the file says which of them are of that part."""
        rest: list[tuple[int, int]] = []
        for tensor in self.rest:
            if part := _within(tensor.start - self._begin, tensor.stop - self._begin, start, stop):
                at = self.place(tensor.name, sent)
                rest.append((at + part[0], at + part[1]))
        if self.form.codec == "topk":
            values, indices = self.place(VALUES), self.place(INDICES, sent)
            return [(0, values), (values, indices), (indices, indices + 2 * sent), *_joined(rest)]
        return _joined([span for tensor in self.floats for span in self._part(tensor, start, stop)] + rest)

    def _part(self, tensor: Tensor, start: int, stop: int) -> list[tuple[int, int]]:
        part = _within(tensor.start - self._begin, tensor.stop - self._begin, start, stop)
        if part is None:
            return []
        item = DTYPES[tensor.dtype].itemsize
        first, last = part[0] // item, -(-part[1] // item)
        if self.form.codec == "int8":
            at, values, scales = self.first[tensor.name], self.place(VALUES), self.place(SCALES)
            return [
                (values + at + first, values + at + last),
                (scales + (at + first) // BLOCK * 4, scales + -(-(at + last) // BLOCK) * 4),
            ]
        at, item = self.place(tensor.name), DTYPES[self.stored(tensor.dtype)].itemsize
        return [(at + first * item, at + last * item)]


def _within(begin: int, end: int, start: int, stop: int) -> tuple[int, int] | None:
    """What of [begin, end) lies in [start, stop), counted from `begin`."""
    first, last = max(begin, start) - begin, min(end, stop) - begin
    return (first, last) if first < last else None


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that touch or overlap as one, in order."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


def carried(model: Header, mask: str) -> tuple[Tensor, ...]:
    """The model's tensors that a mask names: a bit each, in hex, the first tensor the lowest; "" is all."""
    if not mask:
        return model.tensors
    try:
        bits = int(mask[: len(model.tensors)], 16)
    except ValueError:
        bits = 0
    if bits <= 0 or bits >> len(model.tensors) or mask != f"{bits:x}":
        raise BadUpdate(f"carries {mask[:40]!r}, which names no tensors of the model's {len(model.tensors)}")
    return tuple(t for t, bit in zip(model.tensors, reversed(f"{bits:b}"), strict=False) if bit == "1")


def mask(model: Header, names: Collection[str]) -> str:
    """The mask that names these of the model's tensors."""
    bits = sum(1 << k for k, tensor in enumerate(model.tensors) if tensor.name in names)
    return "" if bits == (1 << len(model.tensors)) - 1 else f"{bits:x}"
