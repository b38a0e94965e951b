"""The answers of an exchange as a whole, and their fold where the app's own aggregation is one of ours.

    metrics as most report them? ─▶ values finite? ─▶ fold, if all have one layout of floats ─▶ object, sha256

An answer that is unlike the others, or holds NaN, is Unfit: the round takes it out and looks at the rest.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from fleetfold import layout
from fleetfold.coordinator.exchange import Fold, Terms
from fleetfold.coordinator.folding import hashed, passes
from fleetfold.coordinator.sources import Headers, opened
from fleetfold.errors import BadUpdate
from fleetfold.fold.fold import measured
from fleetfold.fold.gate import unlike
from fleetfold.fold.plan import Site
from fleetfold.fold.recipe import NOT_FINITE, Recipe, Unfit
from fleetfold.fold.robust import ROBUST, distances, multi_krum, rounded
from fleetfold.fold.tensors import DTYPES, Header, write_header
from fleetfold.ledger import Arrival, place
from fleetfold.ports import Objects, Reader
from fleetfold.round.state import Round

PIECE = 1 << 20
"""Bytes that are looked at at a time."""
EXACT = frozenset({"F32", "F64"})
"""Of which our mean is what numpy's is; narrower ones are rounded at each step there."""


def merged(
    objects: Objects, headers: Headers, round: Round, arrivals: Sequence[Arrival], terms: Terms,
    like: Header | None, site: Site,
) -> Fold | None:  # fmt: skip
    """The fold of the answers, in the order given; None where none is asked for, or where they cannot be
    folded as they are. `like`: of what was sent, if answers are to be alike. Raises Unfit, naming the
    arrivals' keys."""
    if terms.same_metrics:
        _same_metrics(arrivals)
    tables = [_header(headers, arrival) for arrival in arrivals]
    if like is not None:
        _same_tensors(arrivals, tables, like)
    weights = [float(a.metrics.get(terms.weight) or 0.0) if terms.weight else 1.0 for a in arrivals]
    model = tables[0] if terms.fold and sum(weights) > 0 and _foldable(tables) else None
    if model is None:
        unfit = [a.key for a, h in zip(arrivals, tables, strict=True) if not is_finite(objects, a, h)]
        if unfit:
            raise Unfit(unfit, NOT_FINITE)
        return None
    key = terms.into or layout.folded(place(round))
    return _folded(objects, round, arrivals, weights, terms, model, key, site)


def _same_tensors(arrivals: Sequence[Arrival], headers: Sequence[Header], like: Header) -> None:
    """Raises Unfit for those whose tensors have other names or shapes than most have: an app may answer with
    a part of what it was sent, if all do. If undecided, those are right that have what was sent."""
    forms = [_form(header) for header in headers]
    counted = Counter(forms)
    if len(counted) <= 1:
        return
    usual = max(counted, key=lambda form: (counted[form], form == _form(like), -forms.index(form)))
    right = headers[forms.index(usual)]
    wrong = [
        (a.key, unlike(h, right)) for a, h, f in zip(arrivals, headers, forms, strict=True) if f != usual
    ]
    why = wrong[0][1]
    raise Unfit([key for key, reason in wrong if reason == why], f"its tensors are not those of most: {why}")


def _form(header: Header) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((tensor.name, tensor.shape) for tensor in header.tensors)


def _same_metrics(arrivals: Sequence[Arrival]) -> None:
    """Raises Unfit for those that report other metrics than most do; of sets as common, the first."""
    reported = [frozenset(arrival.metrics) for arrival in arrivals]
    if len(set(reported)) > 1:
        usual = Counter(reported).most_common(1)[0][0]
        odd = [a.key for a, names in zip(arrivals, reported, strict=True) if names != usual]
        raise Unfit(odd, f"reports other metrics than most: {', '.join(sorted(usual))[:200]} are usual")


def _header(headers: Headers, arrival: Arrival) -> Header:
    try:
        return headers.of(arrival.key)
    except (KeyError, BadUpdate):
        raise Unfit([arrival.key], "is no longer the file that was admitted") from None


def _foldable(headers: Sequence[Header]) -> bool:
    """Whether all are the same tensors in the same order, of dtypes in which our folds are exact."""
    first = list(headers[0].layout.items())
    plain = all(code in EXACT and not name.startswith("fleetfold.") for name, (code, _) in first)
    return bool(first) and plain and all(list(h.layout.items()) == first for h in headers[1:])


def is_finite(objects: Objects, arrival: Arrival, header: Header) -> bool:
    """Whether all floats of an answer, whose file has that header, are there and finite numbers."""
    try:
        with closing(objects.open(arrival.key)) as reader:
            return all(
                _finite_in(reader, tensor.start, tensor.stop, DTYPES[tensor.dtype])
                for tensor in header.tensors
                if DTYPES[tensor.dtype].kind == "f" or tensor.dtype == "BF16"
            )
    except KeyError:
        return False


def _finite_in(reader: Reader, start: int, stop: int, dtype: "np.dtype[np.generic]") -> bool:
    data = memoryview(bytearray(min(PIECE, stop - start)))
    for begin in range(start, stop, PIECE):
        part = data[: min(PIECE, stop - begin)]
        if reader.read(begin, part) != len(part):
            return False
        values = np.frombuffer(part, dtype)
        if dtype.kind == "f":
            if not np.isfinite(values).all():
                return False
        elif ((values.view(np.uint16) & 0x7F80) == 0x7F80).any():  # bfloat16, which numpy does not know
            return False
    return True


def _folded(
    objects: Objects, round: Round, arrivals: Sequence[Arrival], weights: Sequence[float], terms: Terms,
    model: Header, key: str, site: Site,
) -> Fold | None:  # fmt: skip
    plain = [replace(arrival, base=0) for arrival in arrivals]
    about: dict[str, Any] = {"run": round.run, "round": round.number}
    with opened(objects, round.run, 0, plain, weights, model) as (sources, bases):
        recipe = Recipe(bases=bases)
        if terms.fold in ROBUST:
            recipe = replace(recipe, method=ROBUST[terms.fold](terms.trim))
        if terms.fold in ("krum", "multi_krum"):
            apart = rounded(measured(sources, model, distances, recipe))
            keep = 1 if terms.fold == "krum" else terms.kept
            kept = multi_krum(apart, terms.byzantine, keep)
            if not sum(weights[k] for k in kept) > 0:
                return None
            sources = [sources[k] for k in kept]
            about["devices"] = [arrivals[k].device for k in kept]
        header = write_header(model.layout, msgspec.json.encode(about))
        digest = hashlib.sha256()
        with closing(passes(site, sources, model, recipe)) as folded:
            objects.put(key, hashed(chain([header], folded), digest.update))
    return Fold(key, digest.hexdigest())
