"""What the user writes, for any framework: a first model, training, and optionally evaluation.

A model is a dict of named numpy arrays, in a fixed order. Only what these functions return ever
leaves the device.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from fleetfold.agent.proximal import strength
from fleetfold.fold.tensors import Header, Tensors
from fleetfold.messages import Envelope, Metrics, Task


class Device(Struct, frozen=True, kw_only=True):
    """The device that the code runs on. On a simulated fleet `index` of `count` says which share of a
    data set it holds; `data` is its own file or folder, where the run was given one."""

    name: str
    index: int = 0
    count: int = 1
    data: Path | None = None


class Work(Struct, frozen=True, kw_only=True):
    """One piece of work. The same `seed` must give the same result: draw all chance from it."""

    device: Device
    round: int
    seed: int
    settings: Mapping[str, Any] = {}  # [app] of fleetfold.toml: epochs, learning rate …

    @property
    def proximal(self) -> float:
        """The app setting of that name, mu of FedProx's proximal term; 0 is off. Raises BadConfig."""
        return strength(self.settings)


class Trained(Struct, frozen=True, kw_only=True):
    """What training returns. `examples`: how many it saw, its weight in the mean. `metrics`: numbers,
    averaged over devices. `extra`: any JSON, kept with the update."""

    tensors: Tensors
    examples: int
    metrics: Mapping[str, float] = {}
    extra: Any = None


class Evaluated(Struct, frozen=True, kw_only=True):
    """What evaluation returns: numbers such as loss and accuracy, and of how many examples."""

    examples: int
    metrics: Mapping[str, float]


class Model(NamedTuple):
    """Tensors as they came, read-only, and their file's header."""

    tensors: Tensors
    header: Header


class Answered(Struct, frozen=True, kw_only=True):
    """What answering a message returns. `examples`, `metrics`: for people; `state`: what the app keeps for
    the next message of this run, None: what it had."""

    tensors: Tensors
    message: Envelope
    examples: int = 1
    metrics: Metrics = {}
    state: bytes | None = None


class Answerer(Protocol):
    """An app that has messages of its own, instead of a trainer. The same task, content and state must give
    the same answer."""

    def answer(self, task: Task, content: Model, device: Device, state: bytes) -> Answered:
        """Answer `task.message`, whose tensors are `content`. `state`: what it kept last, b"" at first."""


class Trainer(Protocol):
    """The user's code. `init` and `train` are needed; `Evaluator`, `Tester`, `Checker` say what else is."""

    def init(self, seed: int) -> Tensors:
        """The first global model."""

    def train(self, model: Tensors, work: Work) -> Trained:
        """Train `model` on the device's data. Its arrays are read-only: copy what you change."""


class Evaluator(Protocol):
    """A trainer that can also evaluate on a device."""

    def evaluate(self, model: Tensors, work: Work) -> Evaluated | None:
        """Score `model` on the device's own data; None: this device has nothing to score it on."""


class Tester(Protocol):
    """A trainer that has a test set of its own, for the coordinator to score every global model on."""

    def test(self, model: Tensors) -> Mapping[str, float]:
        """Score `model` centrally."""


class Checker(Protocol):
    """A trainer that knows what the app's settings must be."""

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise BadConfig for settings that cannot be used: asked before anything is trained."""
