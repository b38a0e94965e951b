"""The process of a ServerApp, for one turn: python -m fleetfold.flower.server HOME RUN

    exit 75   all is committed, and only waiting is left to do: start it again when something has arrived
    exit 0    the app has ended

turns.py starts it so; it opens exchanges and merges what came, and has nothing to do with the devices.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fleetfold.errors import BadConfig, told
from fleetfold.flower.leaving import EXIT, Suspend, Words
from fleetfold.wiring.local import Place


def main(arguments: Sequence[str]) -> int:
    home, run = arguments
    from fleetfold.flower import run as flower_run

    try:
        flower_run.turn(Place(Path(home), run))
    except Suspend:
        return EXIT
    except Exception as error:  # noqa: BLE001 - the parent says it, as it says its own
        sentence, next, code = told(error)
        words = Words(sentence=sentence, next=next, users=isinstance(error, BadConfig))
        sys.stdout.flush()
        print(msgspec.json.encode(words).decode(), file=sys.stderr, flush=True)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
