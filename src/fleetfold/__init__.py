"""Federated learning for fleets of edge devices, with no server that has to stay up.

What an app needs: `TorchTrainer`, or the `Trainer` protocol with `Device`, `Work`, `Trained`, `Evaluated`;
`proximal` for training loops of one's own in PyTorch.
"""

from fleetfold.agent.proximal import proximal
from fleetfold.agent.torch_trainer import TorchTrainer
from fleetfold.agent.trainer import Device, Evaluated, Trained, Trainer, Work

__all__ = ["Device", "Evaluated", "TorchTrainer", "Trained", "Trainer", "Work", "__version__", "proximal"]
__version__ = "0.1.0"
