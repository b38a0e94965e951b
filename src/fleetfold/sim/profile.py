"""What a simulated fleet is like, by classes of devices, from a TOML file.

[[class]]
name = "slow"          # for people
devices = 8
compute = 20.0         # seconds of training: the median
spread = 0.3           # sigma of its lognormal distribution; 0: always the median
dropout = 0.05         # share of invitations that are never answered
up = 2.0               # Mbit/s
down = 10.0            # Mbit/s
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from fleetfold.errors import BadConfig

Positive = Annotated[float, Meta(gt=0)]


class DeviceClass(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    devices: Annotated[int, Meta(ge=1)]
    compute: Positive
    spread: Annotated[float, Meta(ge=0)] = 0.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    up: Positive = 10.0
    down: Positive = 50.0


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    classes: tuple[DeviceClass, ...] = field(name="class")

    def members(self) -> list[DeviceClass]:
        """The class of each device, in the order of their index."""
        return [c for c in self.classes for _ in range(c.devices)]


def load_profile(path: Path) -> Profile:
    """Raises BadConfig that names the file and the place in it."""
    try:
        profile = msgspec.toml.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}", next="fleetfold sim --help shows such a file") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: {error}", next="fleetfold sim --help shows such a file") from None
    if not profile.classes:
        raise BadConfig(f"{path}: no [[class]] of devices in it")
    return profile
