"""What a strategy, and chance, are between two steps: each attribute as a piece that can be stored by itself.

FedAdam.m_t  ─▶  Piece(JSON, tensors)         an attribute that did not change is the same piece
random, numpy.random, torch  ─▶  JSON         so that sampling and noise are what they would have been
"""

import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy
from msgspec import Struct

from fleetfold.errors import BadConfig
from fleetfold.flower.again import Again, Open
from fleetfold.flower.plain import Plain, Refer, Unstorable, own
from fleetfold.fold.tensors import Tensors

PROCESS = "fleetfold flower run FOLDER --keep-process, which stores nothing: the run then needs its process"


class Piece(Struct, frozen=True):
    """One value: its JSON, and the tensors that this names."""

    node: Any
    tensors: Tensors = {}


def save(strategy: Strategy, refer: Refer) -> dict[str, Piece]:
    """Attribute → piece. `refer`: the stored object that a record is. Raises BadConfig that names what cannot
    be stored, and says what to do."""
    pieces = {}
    for name in own(strategy):
        place = f"{type(strategy).__name__}.{name}"
        plain = Plain(refer, within=strategy)
        try:
            node = plain(getattr(strategy, name), place)
        except Unstorable as error:
            raise _unstorable(error.place, error.what) from None
        except RecursionError:
            raise _unstorable(place, "too deep") from None
        pieces[name] = Piece(node, plain.tensors)
    return pieces


def restore(strategy: Strategy, pieces: Mapping[str, Piece], open: Open) -> None:
    """Give a strategy, which the user's code has made again, the attributes that were saved, and no others.
    Raises BadConfig that names what the code does not make again."""
    for name in set(own(strategy)) - set(pieces):
        delattr(strategy, name)
    for name, piece in pieces.items():
        place = f"{type(strategy).__name__}.{name}"
        old = {"old": getattr(strategy, name)} if hasattr(strategy, name) else {}
        try:
            strategy.__dict__[name] = Again(piece.tensors, open)(piece.node, place, **old)
        except Unstorable as error:
            why = f"{error.place}: {error.what}, so the run cannot go on with this code"
            raise BadConfig(why, next="run it again with the code that it was begun with") from None


def chance() -> Any:
    """The state of the generators that all of a process shares, as JSON."""
    torch = sys.modules.get("torch")
    states = {"random": random.getstate(), "numpy": np.random.get_state(legacy=False)}
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy()
    return Plain()(states, "chance")


def set_chance(node: Any) -> None:
    """Have them go on from there."""
    states = Again({})(node, "chance")
    random.setstate(states["random"])
    np.random.set_state(states["numpy"])
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in states:
        torch.set_rng_state(torch.from_numpy(states["torch"]))


def _unstorable(place: str, what: str) -> BadConfig:
    return BadConfig(
        f"{place} is a {what}, which cannot be stored. A run that can be gone on with stores its strategy: "
        "numbers, text, arrays, records, lists of these, and what has state_dict() and load_state_dict()",
        next=PROCESS,
    )
