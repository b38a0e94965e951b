"""Files that commands leave: written whole or not at all; and a PDF of a page, by a browser that is there."""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from fleetfold.errors import BadConfig, Unavailable

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
PATIENCE = 120.0
"""Seconds that a browser may take to print."""


def saved(path: Path, data: bytes) -> None:
    """Raises BadConfig where it cannot be written."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        raise BadConfig(f"--out {path}: {error.strerror}") from None


def printed(page: Path, pdf: Path) -> None:
    """The page as a PDF. Raises BadConfig without a browser, Unavailable when it fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise BadConfig("a PDF is printed by Chromium, which is not here", next="sudo apt install chromium")
    with TemporaryDirectory() as folder:
        made = Path(folder, "page.pdf")
        command = [
            browser, "--headless", "--disable-gpu", f"--user-data-dir={folder}/profile",
            "--no-first-run", "--disable-extensions", "--disable-dev-shm-usage",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # root has none, and nothing in the page runs
            "--no-pdf-header-footer", f"--print-to-pdf={made}", page.absolute().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{browser} did not print within {PATIENCE:.0f} s") from None
        if not made.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
            raise Unavailable(f"{browser} did not print: {said[0][:300]}")
        saved(pdf, made.read_bytes())
