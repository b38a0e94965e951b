"""A model as PyTorch keeps it: a state_dict in a .pt file, loadable with weights_only=True."""

from pathlib import Path

import numpy as np

from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import Tensors


def save_torch(tensors: Tensors, path: Path) -> None:
    """Raises BadConfig where torch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        raise BadConfig(
            f"{path}: a .pt file needs PyTorch",
            next="pip install 'fleetfold[torch]', or --out model.safetensors",
        ) from None
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}, path)
