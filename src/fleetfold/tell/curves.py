"""Curves over rounds, as SVG. Nothing in it runs.

Colours are told apart by everybody, and lines by their dashes too; what is drawn is also said in words, and
stands in a table.
"""

import math
from collections.abc import Iterator, Sequence

from msgspec import Struct

from fleetfold.tell.html import Html, e

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
DASHES = (None, "7 4", "2 4", "9 3 2 3", "12 5", "4 2", "1 5", "6 2 1 2")
LARGEST = 1e300
"""What is beyond it is not drawn: neither is NaN."""
DOTS = 60
"""Points up to which each is a dot of its own, that says its number."""


class Curve(Struct, frozen=True):
    """A name and points (x, y); a point without a y is a gap. `style`: its colour and dashes, by number."""

    name: str
    points: Sequence[tuple[float, float | None]]
    style: int = 0

    @property
    def known(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if y is not None and abs(y) < LARGEST]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers over that range, about so many."""
    step = 10.0 ** math.floor(math.log10((high - low) / count)) if high > low else 1.0
    step *= next((k for k in (1, 2, 2.5, 5, 10) if (high - low) / (step * k) <= count), 10)
    first = math.floor(low / step + 1e-9)
    found = [first * step]
    while found[-1] < high - step * 1e-9:
        found.append((first + len(found)) * step)
    return found


def short(value: float) -> str:
    """In at most some five characters: 0.25, 12.5, 3.2k, 1.5M."""
    for size, mark in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if mark == "k" else size
            return f"{value / unit:.3g}{mark}"
    return f"{value:.4g}"


def chart(
    title: str, curves: Sequence[Curve], *, unit: str = "", marks: Sequence[float] = (), x: str = "round",
    zero: bool = False,
) -> Html | None:  # fmt: skip
    """Curves in one frame, with their names below; None where nothing is known. `marks`: rounds that failed;
    `zero`: the axis begins there."""
    drawn = [curve for curve in curves if curve.known]
    if not drawn:
        return None
    xs = [at for curve in drawn for at, _ in curve.known]
    ys = [y for curve in drawn for _, y in curve.known]
    low, high = min(ys), max(ys)
    low = min(0.0, low) if zero else low
    if high - low <= max(abs(high) * 1e-12, 1e-100):  # one height, as far as anybody could see
        low, high = low - max(abs(low) * 0.1, 1e-9), high + max(abs(high) * 0.1, 1e-9)
    up = ticks(low, high)
    frame = _Frame(min(xs), max(max(xs), min(xs) + 1e-9), up[0], max(up[-1], high))
    parts: list[object] = [*_axes(frame, up, _across(frame, x))]
    parts += [
        e("line", e("title", f"round {short(at)} failed"), x1=frame.x(at), x2=frame.x(at),
          y1=HEIGHT - BOTTOM - 7, y2=HEIGHT - BOTTOM, class_="mark")
        for at in marks if frame.left <= at <= frame.right
    ]  # fmt: skip
    for curve in drawn:
        parts += _drawn(curve, frame, x, unit)
    words = "; ".join(_summed(curve, x, unit) for curve in drawn)
    svg = e("svg", e("title", f"{title}: {words}"), *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    caption = e("figcaption", e("b", title), f", {unit}" if unit else None)
    return e("figure", caption, svg, _legend(drawn) if len(drawn) > 1 or drawn[0].name != title else None)


class _Frame(Struct, frozen=True):
    left: float
    right: float
    low: float
    high: float

    def x(self, at: float) -> float:
        return LEFT + (at - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _across(frame: _Frame, x: str) -> list[float]:
    found = [at for at in ticks(frame.left, frame.right, 7) if frame.left <= at <= frame.right + 1e-9]
    return [at for at in found if at == int(at)] if x == "round" else found


def _axes(frame: _Frame, up: Sequence[float], across: Sequence[float]) -> Iterator[Html]:
    for value in up:
        y = frame.y(value)
        yield e("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        yield e("text", short(value), x=LEFT - 7, y=y + 4, text_anchor="end")
    floor = HEIGHT - BOTTOM
    yield e("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis")
    for at in across:
        yield e("text", short(at), x=frame.x(at), y=floor + 17, text_anchor="middle")


def _drawn(curve: Curve, frame: _Frame, x: str, unit: str) -> Iterator[Html]:
    for stretch in _stretches(curve.points):
        points = [(frame.x(at), frame.y(value)) for at, value in stretch]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        dashes = DASHES[curve.style % len(DASHES)]
        yield e("polyline", points=Html(path), class_=f"curve s{curve.style % 8}", stroke_dasharray=dashes)
    known = curve.known
    for at, value in known if len(known) <= DOTS else known[-1:]:
        said = e("title", f"{curve.name}, {x} {short(at)}: {value:.6g} {unit}".strip())
        yield e("circle", said, cx=frame.x(at), cy=frame.y(value), r=2.6, class_=f"f{curve.style % 8}")


def _stretches(points: Sequence[tuple[float, float | None]]) -> Iterator[list[tuple[float, float]]]:
    now = list[tuple[float, float]]()
    for at, value in points:
        if value is None or not abs(value) < LARGEST:
            if len(now) > 1:
                yield now
            now = []
        else:
            now.append((at, value))
    if len(now) > 1:
        yield now


def _summed(curve: Curve, x: str, unit: str) -> str:
    known = curve.known
    values = [value for _, value in known]
    return (
        f"{curve.name} from {short(values[0])} at {x} {short(known[0][0])} to {short(values[-1])} at {x} "
        f"{short(known[-1][0])}, lowest {short(min(values))}, highest {short(max(values))} {unit}".strip()
    )


def _legend(curves: Sequence[Curve]) -> Html:
    def each(curve: Curve) -> Html:
        line = e("line", x1=1, x2=27, y1=5, y2=5, class_=f"curve s{curve.style % 8}",
                 stroke_dasharray=DASHES[curve.style % len(DASHES)])  # fmt: skip
        return e("li", e("svg", line, viewBox="0 0 28 10", aria_hidden="true"), curve.name)

    return e("ul", *map(each, curves), class_="legend")
