"""Where there is no flwr nothing here is collected; `make test-flower` has environments with it."""

import os
from importlib.util import find_spec

from tests.flower.environments import OFFLINE

collect_ignore_glob = [] if find_spec("flwr") else ["test_*.py"]
os.environ.update(OFFLINE)
