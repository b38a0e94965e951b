"""These tests need Flower: where there is none, they are passed over (`make test-flower` sets it up)."""

import warnings
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("flwr") else ["*.py"]
if find_spec("flwr"):
    from fleetfold.flower import private

    private.quiet()
    with warnings.catch_warnings():  # what it imports warns of what that is going to change
        warnings.simplefilter("ignore")
        import flwr.clientapp
        import flwr.serverapp.strategy  # noqa: F401
