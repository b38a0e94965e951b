"""fleetfold join and agent, in the table of contents: they are a device's own, and start without the rest.

`fleetfold join …` never comes here (see `__main__`); only `--help` and whoever calls this program's parts do.
"""

from typing import Annotated

from cyclopts import Parameter

Tokens = Annotated[str, Parameter(allow_leading_hyphen=True, help="see `--help` of the command itself")]


def join(*tokens: Tokens) -> None:
    """On a device: join a fleet by its bundle, wait for tasks, do them.

    **Examples**

    - `fleetfold join camera-7.bundle --app my-app`
    - `fleetfold join camera-7.bundle --app my-app --require charging,unmetered --systemd`
    """
    from fleetfold.device.commands import main

    main(["join", *tokens])


def agent(*tokens: Tokens) -> None:
    """On a device: what it is doing and why (`agent status`); a key of its own (`agent csr`).

    **Examples**

    - `fleetfold agent status`
    - `fleetfold agent csr camera-7 --out camera-7.csr`
    """
    from fleetfold.device.commands import main

    main(["agent", *tokens])
