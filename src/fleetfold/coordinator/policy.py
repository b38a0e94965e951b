"""The run's settings as functions: a word names one of ours, `module:name` the user's own."""

import hashlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from msgspec import Struct

from fleetfold.coordinator.hiding import check
from fleetfold.errors import BadConfig, FleetfoldError, blame
from fleetfold.fold.recipe import ChunkFold
from fleetfold.fold.robust import ROBUST, SELECTIONS, Selection
from fleetfold.fold.server_opt import OPTIMIZERS, Optimizer
from fleetfold.fold.tensors import Header
from fleetfold.fold.wire import CODECS, mask
from fleetfold.messages import Form
from fleetfold.round.decide import Close
from fleetfold.round.fleet import Device
from fleetfold.round.run import Cadence
from fleetfold.round.select import RULES, Rule
from fleetfold.round.state import Policy
from fleetfold.round.where import Condition, parse
from fleetfold.settings import Settings, count


class Policies(Struct, frozen=True, kw_only=True):
    """How a run selects, closes, folds and paces itself; `codec`, `fold`: the user's own, where it has."""

    select: Rule
    where: Condition | None
    close: Close | None
    fold: ChunkFold | None
    cadence: Cadence
    codec: Callable[[Device], str] | None


def policies(settings: Settings) -> Policies:
    """Raises BadConfig naming the setting, where a `module:name` cannot be imported or called, or where
    privacy is asked for that cannot be given."""
    check(settings)
    if settings.partial and settings.fold in SELECTIONS:
        raise BadConfig(
            f"partial and fold = {settings.fold}: it compares whole updates with each other",
            next="fold = median or trimmed_mean, or partial = no",
        )
    cadence = settings.cadence
    return Policies(
        where=parse(settings.where) if settings.where else None,
        select=RULES.get(settings.select) or load(settings.select, "select"),
        close=None if settings.close == "target" else load(settings.close, "close"),
        fold=load(settings.fold, "fold") if ":" in settings.fold else None,
        codec=load(settings.codec, "codec") if ":" in settings.codec else None,
        cadence=load(cadence, "cadence") if isinstance(cadence, str) else lambda _: cadence,
    )


class Method(Struct, frozen=True):
    """How a number of updates becomes one: by `chunk` (None: the weighted mean), of those that
    `selection` keeps when `byzantine` of them may be anything."""

    chunk: ChunkFold | None = None
    selection: Selection | None = None
    byzantine: int = 0


def method(settings: Settings, own: ChunkFold | None, n: int) -> Method:
    """The method for `n` updates; `own` is the user's function, where `settings.fold` names one."""
    byzantine = min(count(settings.byzantine, n), (n - 1) // 2)
    word = settings.fold
    if word in ROBUST:
        return Method(ROBUST[word]((byzantine + 0.25) / n))  # floor(cut · n) is the number itself
    if word in SELECTIONS:
        return Method(None, SELECTIONS[word], byzantine)
    return Method(own)


def mask_of(model: Header, settings: Settings) -> str:
    """The tensors that devices send: what the patterns of `settings.tensors` name. Raises BadConfig."""
    patterns = settings.tensors.replace(",", " ").split()
    names = {t.name for t in model.tensors if any(fnmatchcase(t.name, p) for p in patterns)}
    if not names and model.tensors:
        known = ", ".join(t.name for t in model.tensors[:5])
        raise BadConfig(f"tensors = {settings.tensors!r} names none of the model's: {known} …")
    return mask(model, names)


def form(model: Header, settings: Settings, codec: str) -> Form:
    """How updates are to travel, with that codec. Raises BadConfig."""
    if codec not in CODECS:
        raise BadConfig(f"codec: {codec!r} is not one of {', '.join(CODECS)}")
    # What is clipped and hidden is the difference: sent as one, no rounding is larger than its own.
    suits = codec in ("int8", "topk") or settings.noise > 0
    delta = settings.delta == "yes" or (settings.delta == "auto" and suits)
    return Form(codec, delta, mask_of(model, settings))


def optimizer(settings: Settings) -> Optimizer:
    """The server optimizer that `settings.server` names, with what was told of it. Raises BadConfig."""
    told = {"rate": settings.server_rate, "tau": settings.server_tau}
    kind = OPTIMIZERS[settings.server]
    return kind(**{k: v for k, v in told.items() if v and k in kind.__struct_fields__})


def load(reference: str, setting: str) -> Callable[..., Any]:
    """The function that `module:name` names; what it raises becomes one sentence that names the line."""
    module, _, name = reference.partition(":")
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        raise BadConfig(
            f"{setting} = {reference!r}: {error}",
            next="put the module beside the app's file, or on PYTHONPATH",
        ) from None
    except AttributeError:
        raise BadConfig(f"{setting} = {reference!r}: module {module!r} has no {name!r}") from None
    if not callable(found):
        raise BadConfig(f"{setting} = {reference!r} is not a function")

    def told(*arguments: Any) -> Any:
        try:
            return found(*arguments)
        except FleetfoldError:
            raise
        except Exception as error:
            raise BadConfig(f"{setting} = {reference!r}: {blame(error)}") from error

    return told


def wanted(settings: Settings, eligible: int) -> tuple[int, int]:
    """(devices whose updates are wanted in a round, devices to invite for that)."""
    cohort = count(settings.cohort, eligible)
    return cohort, min(eligible, -int(-cohort * (1 + settings.over_select) // 1))


def fewest(settings: Settings, fleet: int) -> int:
    """Devices that have to be there before a round is opened: what was told, and as many as a quorum that is
    a count, as far as there are so many devices at all."""
    quorum = settings.quorum if isinstance(settings.quorum, int) else 1
    return max(settings.available, min(quorum, fleet))


def closing(settings: Settings, cohort: int, invited: int) -> Policy:
    """When a round may close that has `invited` devices at work, of which `cohort` are wanted."""
    target = max(1, min(count(settings.target, cohort), invited))
    return Policy(
        target=target,
        quorum=min(count(settings.quorum, cohort), target),
        deadline=settings.deadline,
        lease=settings.lease,
        buffered=settings.buffered,
    )


def draw(seed: int, *names: object) -> int:
    """64 bits of chance that belong to these names: the same for the same run, round and device."""
    text = "/".join(map(str, (seed, *names))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def unit(seed: int, *names: object) -> float:
    """A number in (0, 1) from `draw`."""
    return ((draw(seed, *names) >> 11) + 0.5) / (1 << 53)
