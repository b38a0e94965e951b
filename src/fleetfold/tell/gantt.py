"""The timeline of one round, as SVG: a lane for each device, its steps one after another, the fold below.

camera-7  ···wait···|=download=|====compute====|=upload=|
fold                                                      |==|
"""

from collections.abc import Callable, Iterator, Sequence

from fleetfold.tell.curves import short, ticks
from fleetfold.tell.html import Html, e
from fleetfold.tell.timeline import Lane

ROW, LABEL, SPAN, WORD = 17, 150, 900, 62
STEPS = ("wait", "download", "compute", "upload", "fold")


def gantt(lanes: Sequence[Lane], begin: float, closed: float, end: float, deadline: float) -> Html:
    """A lane for each device, in the order given, and the fold below them. Times in seconds since the epoch;
    0: it did not come to that."""
    last = max([end, closed, begin + 1e-3, *(begin + lane.took for lane in lanes if lane.took)])
    height = (len(lanes) + 1) * ROW + 34
    scale = (SPAN - LABEL - WORD) / (last - begin)

    def at(time: float) -> float:
        return LABEL + (min(max(time, begin), last) - begin) * scale

    floor = (len(lanes) + 1) * ROW + 8
    parts: list[object] = []
    for tick in ticks(0, last - begin, 8):
        if tick <= last - begin:
            x = at(begin + tick)
            parts += [e("line", x1=x, x2=x, y1=0, y2=floor, class_="grid"),
                      e("text", f"{short(tick)} s", x=x, y=floor + 16, text_anchor="middle")]  # fmt: skip
    for number, lane in enumerate(lanes):
        parts += _lane(lane, number * ROW + 4, at)
    if closed:
        y = len(lanes) * ROW + 4
        said = e("title", f"fold and publish: {end - closed:.3f} s")
        parts += [
            e("text", "fold", x=LABEL - 8, y=y + 11, text_anchor="end", class_="name"),
            e("rect", said, x=at(closed), y=y, width=max(1.5, at(end) - at(closed)), height=ROW - 5, rx=2,
              class_="fold"),
            e("line", e("title", "the round was closed"), x1=at(closed), x2=at(closed), y1=0, y2=floor,
              class_="edge"),
        ]  # fmt: skip
    if begin < deadline <= last:
        parts.append(e("line", e("title", "the deadline"), x1=at(deadline), x2=at(deadline), y1=0, y2=floor,
                       class_="mark"))  # fmt: skip
    words = f"{len(lanes)} devices over {last - begin:.3g} seconds"
    svg = e("svg", e("title", f"timeline: {words}"), *parts, viewBox=f"0 0 {SPAN} {height}", role="img")
    return e("figure", e("div", svg, class_="timeline"), e("ul", *map(_colour, STEPS), class_="legend"))


def _lane(lane: Lane, y: float, at: Callable[[float], float]) -> Iterator[Html]:
    name = lane.device if len(lane.device) <= 22 else f"{lane.device[:21]}…"
    said = e("title", f"{lane.device}: {lane.state}")
    yield e("text", said, name, x=LABEL - 8, y=y + 11, text_anchor="end", class_="name")
    for step in lane.steps:
        said = e("title", f"{lane.device}, {step.name}: {step.end - step.begin:.3f} s")
        x = at(step.begin)
        width = max(0.75, at(step.end) - x)
        yield e("rect", said, x=x, y=y, width=width, height=ROW - 5, rx=2, class_=step.name)
    if lane.state != "admitted":
        end = at(lane.steps[-1].end) + 6 if lane.steps else LABEL + 4
        yield e("text", lane.state, x=end, y=y + 11)


def _colour(step: str) -> Html:
    box = e("rect", x=1, y=0, width=26, height=10, rx=2, class_=step)
    return e("li", e("svg", box, viewBox="0 0 28 10", aria_hidden="true"), step)
