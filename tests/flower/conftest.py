"""Where there is no flwr nothing here is collected; `make test-flower` has environments with it."""

import os
import warnings
from importlib.util import find_spec

from tests.flower.environments import OFFLINE

collect_ignore_glob = [] if find_spec("flwr") else ["test_*.py"]
os.environ.update(OFFLINE)
if find_spec("flwr"):
    with warnings.catch_warnings():  # what it imports warns of what that is going to change
        warnings.simplefilter("ignore")
        import flwr.clientapp
        import flwr.serverapp.strategy  # noqa: F401
