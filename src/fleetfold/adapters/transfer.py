"""The device's way to objects that lie on the same machine: an address is a key, and where the update
is delivered is also where it is safe."""

from fleetfold.errors import Unavailable
from fleetfold.ports import Objects, fetch


class ObjectTransfer:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def fetch(self, address: str) -> bytes:
        try:
            return fetch(self._objects, address)
        except KeyError:
            raise Unavailable(f"there is no object {address}") from None

    def deliver(self, address: str, update: bytes) -> None:
        self._objects.put(address, [update])

    def delivered(self, address: str) -> bool:
        return self._objects.size(address) is not None
