"""The device's way to objects that lie on the same machine: an address is a key, and where the update
is delivered is also where it is safe."""

from fleetfold.errors import Unavailable
from fleetfold.messages import Task
from fleetfold.ports import Objects, fetch


class ObjectTransfer:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def fetch(self, task: Task) -> bytes:
        try:
            return fetch(self._objects, task.model)
        except KeyError:
            raise Unavailable(f"there is no object {task.model}") from None

    def deliver(self, task: Task, update: bytes) -> None:
        self._objects.put(task.update, [update])

    def delivered(self, task: Task) -> bool:
        return self._objects.size(task.update) is not None
