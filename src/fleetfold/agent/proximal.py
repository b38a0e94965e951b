"""FedProx's proximal term: training minimizes loss + (mu / 2) ‖w − w0‖², where w0 is the global model.

The term's gradient is known, mu (w − w0). Added to the gradients just before each optimizer step it takes
one pass over the parameters, no graph, and no change of a loss that a trainer never sees. In the backward
pass it would count once for every micro-batch whose gradients are accumulated, and at a scaled loss's scale.

Li et al., "Federated Optimization in Heterogeneous Networks", 2020.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any

from fleetfold.errors import BadConfig

if TYPE_CHECKING:
    import torch


def strength(settings: Mapping[str, Any]) -> float:
    """mu, the app setting `proximal`: a number from 0 up; 0, the default, is off. Raises BadConfig."""
    value = settings.get("proximal", 0.0)
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 <= value <= sys.float_info.max):
        raise BadConfig(
            f"proximal = {value!r:.80} is not a number from 0 up",
            next="proximal = 0.01, under [app] in fleetfold.toml; 0 is off",
        )
    return float(value)


@contextmanager
def proximal(module: torch.nn.Module, mu: float) -> Iterator[None]:
    """Within it, steps of torch optimizers minimize loss + (mu / 2) ‖w − w0‖², w being the module's
    parameters that require gradients, of any shape, and w0 what they are on entry.

    Each step adds mu (w − w0) once to its parameters' gradients, after accumulation, unscaling and
    clipping; where the step is given a closure, the closure's loss has the term, too. With mu = 0 nothing
    happens. Memory: w0. Other modules that are trained meanwhile are left alone. Raises BadConfig for a mu
    that is not a number from 0 up, and at the end if the parameters have changed without such a step.
    """
    if strength({"proximal": mu}) == 0:
        yield
        return
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    pull = _Pull(module, mu)
    hook = register_optimizer_step_pre_hook(pull.before)
    try:
        yield
    finally:
        hook.remove()
    if pull.missed():
        raise BadConfig(
            f"proximal = {mu} had no effect: the model was trained without a step of a torch optimizer",
            next="step an optimizer of torch.optim over model.parameters() in fit, or set proximal = 0",
        )


class _Pull:
    """What draws a module's parameters back to where they began."""

    def __init__(self, module: torch.nn.Module, mu: float) -> None:
        self._mu, self._stepped = mu, False
        self._own = set(module.parameters())
        self._start = {w: w.detach().clone() for w in self._own if w.requires_grad}

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Before a step: the gradients are there, unless a closure among its arguments is to make them."""
        own = [w for group in optimizer.param_groups for w in group["params"] if w in self._own]
        if not own:
            return None
        self._stepped = True
        if not any(callable(value) for value in (*args[1:], *kwargs.values())):
            self._add(own, getattr(optimizer, "grad_scale", None))
            return None
        closed: Callable[[Any], Any] = lambda value: self._closed(value, own) if callable(value) else value  # noqa: E731
        return (args[0], *map(closed, args[1:])), {name: closed(value) for name, value in kwargs.items()}

    def missed(self) -> bool:
        """Whether the parameters went somewhere without us."""
        return not self._stepped and any(not w.equal(start) for w, start in self._start.items())

    def _closed(self, closure: Callable[[], Any], own: list[Any]) -> Callable[[], Any]:
        def closed() -> Any:
            loss = closure()
            self._add(own, None)
            return None if loss is None else loss + self._value(own)

        return closed

    def _add(self, own: list[Any], scale: Any) -> None:
        """`scale`: by how much the gradients are too large, where the optimizer is to unscale them itself."""
        for w in own:
            if not w.requires_grad:
                continue
            away = self._away(w)
            if scale is not None:
                away.mul_(scale)
            if w.grad is None:
                w.grad = away.mul_(self._mu)
            elif getattr(w.grad, "_pulled", None) == w.grad._version:
                continue  # untouched since we added to it: this step lies inside another, or repeats one
            else:
                w.grad.add_(away, alpha=self._mu)
            w.grad._pulled = w.grad._version

    def _value(self, own: list[Any]) -> float:
        squares = (float(self._away(w).square().sum()) for w in own if w.requires_grad)
        return self._mu / 2 * sum(squares)

    def _away(self, w: Any) -> Any:
        """w − w0. What was frozen at first has stayed where it was until its first step, which is now."""
        if w not in self._start:
            self._start[w] = w.detach().clone()
        return w.detach() - self._start[w]
