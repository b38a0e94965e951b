"""Federated learning for fleets of edge devices, with no server that has to stay up.

What an app needs: `TorchTrainer`, or the `Trainer` protocol with `Device`, `Work`, `Trained`, `Evaluated`.
"""

from fleetfold.agent.torch_trainer import TorchTrainer
from fleetfold.agent.trainer import Device, Evaluated, Trained, Trainer, Work

__all__ = ["Device", "Evaluated", "TorchTrainer", "Trained", "Trainer", "Work", "__version__"]
__version__ = "0.1.0"
