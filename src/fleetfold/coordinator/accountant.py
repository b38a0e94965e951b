"""What the rounds of a run have told about any one device, (ε, δ), and whether one more may be told.

    noise multiplier z, rounds k ─▶ spent ─▶ affordable? ─▶ open the next round, or stop

What counts is a model that may have been seen, once for each noise it was folded with. Cohorts are of
fixed size, chosen by rule and written down: every device is taken to be in every one (q = 1), which holds
whoever is invited. Less is accounted only where that is asked for (`sampling_rate`). Whatever the clip,
fixed or adaptive, a round costs z.
"""

from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np

from fleetfold.errors import BadConfig
from fleetfold.fold.privacy import Privacy

ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512, 1024)
"""Of the Rényi divergences: whole ones, whose sums always end; more only tighten the bound."""


def spent(settings: Privacy, rounds: int, devices: int, sampling: float = 1.0) -> float:
    """ε of `rounds` rounds, at `settings.delta` or `default_delta(devices)`: an upper bound.

    rounds: those that folded a model; devices: in the fleet; sampling: the share q of it in each round,
    the largest if it changes.
    q = 1: k rounds of Gaussian noise z are one of z / √k, whose ε is exact (Balle and Wang, 2018).
    q < 1: Rényi accounting of *Poisson* sampling (Mironov, Talwar and Zhang, 2019), never more than that.
    Raises BadConfig without dp-accounting, or with sampling outside (0, 1].
    """
    if not 0 < sampling <= 1:
        raise BadConfig(f"privacy: sampling = {sampling} is not above 0 and at most 1")
    delta = default_delta(devices) if settings.delta is None else settings.delta
    if rounds <= 0:
        return 0.0
    dp = _dp_accounting()
    with np.errstate(divide="ignore"):  # of next to no noise: the logarithm of 0 is meant
        most = float(dp.get_epsilon_gaussian(settings.noise_multiplier / sqrt(rounds), delta))
    if sampling == 1:
        return most
    event = dp.PoissonSampledDpEvent(sampling, dp.GaussianDpEvent(settings.noise_multiplier))
    return min(most, float(dp.rdp.RdpAccountant(ORDERS).compose(event, rounds).get_epsilon(delta)))


def affordable(settings: Privacy, rounds: int, devices: int, sampling: float = 1.0) -> bool:
    """Whether, after `rounds` that folded a model, one more stays within the budget: asked before it is
    opened. Always, without a budget. Arguments and errors: those of `spent`.
    """
    return settings.epsilon is None or spent(settings, rounds + 1, devices, sampling) <= settings.epsilon


def default_delta(devices: int) -> float:
    """δ = 1 / devices^1.1, just less than one in the fleet: McMahan et al., 2018. Raises BadConfig for a
    fleet of one, in which nobody can be hidden."""
    if devices < 2:
        raise BadConfig(f"privacy: a fleet of {devices} hides nobody", next="set delta, or add devices")
    return float(devices**-1.1)


def sampling_rate(select: str, invited: int, devices: int, asked: bool) -> float:
    """The share q of the fleet to account a round with: 1, unless the user asks for more.

    Amplification by sampling is proved for Poisson sampling, each device in or out on its own, by chance
    that nobody else sees. Cohorts here have a fixed size, starved devices first, and can be drawn again
    from the run's seed: what is told for q < 1 is the usual estimate, not a bound, and is worth nothing
    against who knows the seed or the cohorts. Raises BadConfig where chance does not choose at all.
    """
    if not asked:
        return 1.0
    if select != "random":
        raise BadConfig(
            f"privacy: sampling amplifies nothing with select = {select!r}: those chosen are known",
            next="select = 'random', or account without amplification",
        )
    if not 0 < invited <= devices:
        raise BadConfig(f"privacy: {invited} invited of {devices} devices is no sampling rate")
    return invited / devices


def _dp_accounting() -> Any:
    """The library, only when something is to be accounted: it takes a second to import."""
    try:
        return import_module("dp_accounting")
    except ImportError:
        raise BadConfig(
            "privacy accounting needs dp-accounting, which is not installed",
            next="pip install 'fleetfold[dp]'",
        ) from None
