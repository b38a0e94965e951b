"""Federated learning for fleets of edge devices, with no server that has to stay up.

What an app needs: `TorchTrainer`, or the `Trainer` protocol with `Device`, `Work`, `Trained`, `Evaluated`;
`proximal` for training loops of one's own in PyTorch. Each is imported when it is asked for: a device that
waits for a task has no need of numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetfold.agent.proximal import proximal
    from fleetfold.agent.torch_trainer import TorchTrainer
    from fleetfold.agent.trainer import Device, Evaluated, Trained, Trainer, Work

__all__ = ["Device", "Evaluated", "TorchTrainer", "Trained", "Trainer", "Work", "__version__", "proximal"]
__version__ = "0.1.0"
_PLACES = {"proximal": "proximal", "TorchTrainer": "torch_trainer"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fleetfold' has no attribute {name!r}")
    found = getattr(import_module(f"fleetfold.agent.{_PLACES.get(name, 'trainer')}"), name)
    globals()[name] = found
    return found
