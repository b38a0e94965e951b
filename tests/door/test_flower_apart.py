"""Nobody has to have Flower: no module but those of `fleetfold.flower` asks for it as it is imported."""

import subprocess
import sys

EVERYTHING = """
import importlib, pkgutil, sys

class Absent:
    asked = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flwr", "ray"):
            self.asked.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import fleetfold
seen = 0
for module in pkgutil.walk_packages(fleetfold.__path__, "fleetfold."):
    if module.name.startswith(("fleetfold.flower", "fleetfold.__main__", "fleetfold.examples")):
        continue
    try:
        importlib.import_module(module.name)
        seen += 1
    except ImportError as error:
        if "fleetfold" in str(error.name) and not module.name.endswith("_kernel"):
            raise
print(seen, Absent.asked)
"""


def test_everything_but_flowers_own_part_is_imported_without_flower() -> None:
    done = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, asked = done.stdout.split(" ", 1)
    assert int(seen) > 100
    assert asked.strip() == "[]", f"Flower was asked for: {asked}"
