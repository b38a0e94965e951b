"""A device of a claim: makes its key, asks for a certificate and for its name, and is one of the fleet.

HOME/claim/   device.key ─▶ device.csr ─▶ certificate.pem ─▶ registered? ─▶ HOME/bundle.json

What dies in between begins again with the same key. Of a registration that was not heard to be granted, the
broker is asked: if it lets us in under the name, it was. A name that somebody else has is never ours.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fleetfold import bundle
from fleetfold.adapters.provisioning import Made, Refused
from fleetfold.bundle import Bundle, Claim
from fleetfold.device import keys, terms
from fleetfold.device.terms import Home
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.layout import checked_name

TRIES = 3
"""Times that it is asked for a certificate and a name, where no answer comes."""
SURE = 30.0
"""Seconds in which a broker lets in whom it has just been told of."""


class Provisioner(Protocol):
    def create(self, csr: str, ours: Callable[[str], bool]) -> Made: ...
    def register(self, token: str, device: str) -> None: ...
    def close(self) -> None: ...


def become(
    home: Home, claim: Claim, device: str, open: Callable[[Claim], Provisioner],
    let_in: Callable[[Bundle, float], bool],
) -> Bundle:  # fmt: skip
    """The bundle of the device that this is from here on; it lies in its home. `open`: the way to ask;
    `let_in`: whether the broker lets a bundle's holder in, within seconds. Raises BadConfig, Unavailable."""
    if home.bundle.exists():
        mine = bundle.load(home.bundle)
        if (mine.fleet, mine.device) != (claim.fleet, device):
            raise BadConfig(
                f"{home.path} is the home of {mine.device} of fleet {mine.fleet}", next="--home FOLDER"
            )
        return mine
    folder = home.path / "claim"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Becoming(folder, claim, checked_name(device, "--device"), open, let_in).become()
    terms.take_in(home, made)
    shutil.rmtree(folder, ignore_errors=True)
    return made


class Becoming:
    def __init__(
        self, folder: Path, claim: Claim, device: str, open: Callable[[Claim], Provisioner],
        let_in: Callable[[Bundle, float], bool],
    ) -> None:  # fmt: skip
        self._claim, self._device, self._open, self._let_in = claim, device, open, let_in
        self._request, self._certificate = folder / f"{device}.csr", folder / f"{device}.pem"
        self._key = keys.request(device, self._request).read_text()

    def become(self) -> Bundle:
        earlier = self._certificate.read_text() if self._certificate.exists() else ""
        if earlier and self._let_in(self._with(earlier), SURE):
            return self._with(earlier)  # an earlier life was granted the name, and did not hear of it
        way = self._open(self._claim)
        try:
            for left in reversed(range(TRIES)):
                try:
                    return self._try(way)
                except Unavailable:
                    if not left:
                        raise
        finally:
            way.close()
        raise AssertionError

    def _try(self, way: Provisioner) -> Bundle:
        made = way.create(self._request.read_text(), self._fits)
        given = self._with(made.certificate)
        bundle.private(self._certificate, made.certificate.encode())
        try:
            way.register(made.token, self._device)
        except Refused as refused:
            raise BadConfig(
                f"{refused.sentence}; if there is such a device already, a claim does not make another",
                next=f"fleetfold join CLAIM --device ANOTHER_NAME; or fleetfold enroll {self._device} --aws",
            ) from None
        except Unavailable:
            if not self._let_in(given, SURE):
                raise
        return given

    def _fits(self, certificate: str) -> bool:
        try:
            keys.with_key(self._with(certificate), None)
        except BadConfig:
            return False
        return True

    def _with(self, certificate: str) -> Bundle:
        claim = self._claim
        return Bundle(
            fleet=claim.fleet, device=self._device, brokers=claim.brokers, authority=claim.authority,
            certificate=certificate, key=self._key,
        )  # fmt: skip


def lets_in(link: Callable[[Bundle], "Connecting"]) -> Callable[[Bundle, float], bool]:
    """Asks the broker, by the device's own link."""

    def let_in(given: Bundle, seconds: float) -> bool:
        made, until = link(given), time.monotonic() + seconds
        made.start()
        try:
            while not made.connected and time.monotonic() < until:
                time.sleep(0.05)
            return made.connected
        finally:
            made.close()

    return let_in


class Connecting(Protocol):
    @property
    def connected(self) -> bool: ...
    def start(self) -> None: ...
    def close(self) -> None: ...
