"""Builds the fold's kernel when the package is built, if there is a C compiler; without one, numpy folds.

A failure here is never the user's problem: `fleetfold.fold.kernel` says which of the two is in use.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC"]


class Kernel(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        source = Path(self.root) / "src/fleetfold/fold/_kernel.c"
        target = source.with_suffix(".so")
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            self.app.display_warning("no C compiler: the fold will use numpy, which is slower")
            return
        command = [*compiler.split(), *FLAGS, str(source), "-o", f"{target}.new"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            self.app.display_warning(f"the fold will use numpy: {compiler} failed: {built.stderr[-500:]}")
            return
        os.replace(f"{target}.new", target)
        build_data["artifacts"].append("src/fleetfold/fold/_kernel.so")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
