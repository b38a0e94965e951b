"""Tasks: what each device of a cohort is asked to do, and how its update is to travel.

The same round makes the same tasks, whoever makes them and how often: the chance of each is drawn from the
run's seed by the names of the round and the device.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from fleetfold import layout
from fleetfold.coordinator.policy import draw, form
from fleetfold.coordinator.spreading import Short
from fleetfold.fold.tensors import Header
from fleetfold.fold.wire import Wire
from fleetfold.ledger import place
from fleetfold.messages import Form, Task
from fleetfold.round.fleet import Device
from fleetfold.round.run import Run
from fleetfold.round.state import Round
from fleetfold.settings import Settings, count


class Way(Struct, frozen=True):
    """How an update is to travel."""

    form: Form = Form()
    sent: int = 0  # values, of top-k


NOT = Short()


def tasks(
    round: Round, run: Run, cohort: Sequence[str], ways: Mapping[str, Way], shorts: Mapping[str, Short],
    size: int, most: int,
) -> list[Task]:  # fmt: skip
    """One for each device of the cohort. `ways`: device → how its update is to travel; `shorts`: how the
    model comes to it sooner; `size`, `most`: bytes of the model's file, and at most of an update's."""
    where, settings = place(round), run.settings
    evaluate = settings.evaluate == "same" and round.number % settings.evaluate_every == 0
    return [
        Task(
            run=round.run, round=round.number, kind=round.kind, device=device,
            known=shorts.get(device, NOT).known, difference=shorts.get(device, NOT).difference,
            model=layout.model(round.run, round.base), digest=run.digest, size=size,
            update=layout.update(where, device), most=most,
            seed=draw(settings.seed, round.kind, round.number, device) >> 32,
            deadline=round.deadline_at, late=settings.credits_late, evaluate=evaluate, settings=settings.app,
            form=ways[device].form, sent=ways[device].sent, partial=settings.partial,
            feedback=settings.feedback and ways[device].form.delta,
        )
        for device in cohort
    ]  # fmt: skip


def ways(
    cohort: Sequence[str], model: Header, settings: Settings, own: Callable[[Device], str] | None,
    fleet: Callable[[], Sequence[Device]],
) -> dict[str, Way]:  # fmt: skip
    """Device → how its update is to travel: by the run's codec, or by what the user's function `own` says of
    it. Raises BadConfig where that is none."""
    by_codec: dict[str, Way] = {}
    known = {device.name: device for device in fleet()} if own else {}

    def way(codec: str) -> Way:
        if codec not in by_codec:
            how = form(model, settings, codec)
            sent = count(settings.topk, Wire(model, how).elements) if codec == "topk" else 0
            by_codec[codec] = Way(how, sent)
        return by_codec[codec]

    return {name: way(own(known[name]) if own else settings.codec) for name in cohort}
