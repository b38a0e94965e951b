"""A small app for whole fleets: it waits where it is told to, fails where it is told to, and notes what it
begins. STAGE, a folder: `hold DEVICE` (wait while it is there), `begun DEVICE RUN-ROUND` (its own notes)."""

import os
import time
from pathlib import Path

import numpy as np

from fleetfold import Evaluated, Trained

STAGE = Path(os.environ.get("STAGE", "/nonexistent"))
VALUES = int(os.environ.get("VALUES", "8"))


class Small:
    def init(self, seed):
        return {"w": np.zeros(VALUES, np.float32)}

    def train(self, model, work):
        name = work.device.name
        (STAGE / f"begun {name} {work.round}").touch()
        while (STAGE / f"hold {name}").exists():
            time.sleep(0.02)
        if work.settings.get("fail"):
            raise ValueError("this app fails on devices")
        return Trained(tensors={"w": model["w"] + np.float32(1 + work.device.index)}, examples=10)

    def evaluate(self, model, work):
        return Evaluated(examples=5, metrics={"mean": float(model["w"].mean())})

    def test(self, model):
        return {"loss": float(model["w"][0])}


trainer = Small()
