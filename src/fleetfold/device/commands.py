"""`fleetfold join` and `fleetfold agent`: what a person types on a device."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    raise NotImplementedError
