"""The emulated AWS by itself, to try things by hand: python -m tests.aws.stack FOLDER, ctrl-c ends it."""

import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.aws.stack.stack import Stack

with Stack(Path(sys.argv[1]).absolute()) as aws, suppress(KeyboardInterrupt):
    for name, value in aws.environment.items():
        print(f"export {name}={value}")
    print(f"broker: {aws.core.address}, authority: {aws.core.folder / 'ca.pem'}", flush=True)
    while True:
        time.sleep(1)
