"""fleetfold aws greengrass: the agent as a component of Greengrass V2 cores."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from fleetfold.cli.fleet import installed
from fleetfold.cli.places import shown
from fleetfold.errors import BadConfig, typed
from fleetfold.wiring.local import home

greengrass = App(name="greengrass", help="The agent as a component of Greengrass V2 cores, classic or lite.")
Stack = Annotated[str, Parameter(help="which stack, if this machine knows several")]


@greengrass.command
def build(
    *,
    app: Annotated[Path | None, Parameter(help="the app, if it is to travel in the artifact")] = None,
    machine: Annotated[str, Parameter(help="of the cores, as `uname -m` has it")] = "aarch64",
    python: Annotated[str, Parameter(help="the cores' Python, as 3.11")] = "3.11",
    out: Annotated[Path, Parameter(help="where it is made; wheels of your own go into OUT/wheels")] = Path(
        "greengrass"
    ),
) -> None:
    """Make the artifact: wheels for the cores' machine, and the app with them.

    **Examples**

    - `fleetfold aws greengrass build --app my-app`
    - `fleetfold aws greengrass build --machine x86_64 --python 3.12`
    """
    installed()
    from fleetfold.aws.greengrass import artifact, recipe

    if app is not None and not app.exists():
        raise BadConfig(f"there is no app {app}", next="fleetfold init my-app")
    artifact.wheels(out / "wheels", machine, python)
    place = out / recipe.ARCHIVE
    digest = artifact.archive(place, out / "wheels", app)
    print(f"{shown(place)}: {place.stat().st_size / 1e6:.1f} MB, sha256 {digest[:12]}…")
    print(f"  next: {typed('fleetfold aws greengrass publish')}")


@greengrass.command
def publish(
    folder: Annotated[Path, Parameter(help="where `build` has made it")] = Path("greengrass"),
    *,
    stack: Stack = "",
) -> None:
    """Put the artifact into the stack's bucket, and make a version of the component of it.

    The cores' own role (of the token exchange) has to be allowed s3:GetObject on that bucket.

    **Examples**

    - `fleetfold aws greengrass publish`
    """
    import hashlib

    account, known, clients = _asked(stack)
    from fleetfold.aws.greengrass import publish as published
    from fleetfold.aws.greengrass import recipe

    archive = folder / recipe.ARCHIVE
    if not archive.exists():
        raise BadConfig(f"there is no {archive}", next="fleetfold aws greengrass build")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    version = published.publish(
        clients("greengrassv2"), clients("s3"), account, known.bucket, archive, digest
    )
    print(f"{recipe.COMPONENT} {version} in {known.region}, from s3://{known.bucket}/greengrass/")
    print(f"  the cores' token exchange role needs s3:GetObject on arn:aws:s3:::{known.bucket}/greengrass/*")
    print(f"  next: {typed('fleetfold aws greengrass deploy --group THING_GROUP')}")


@greengrass.command
def deploy(
    *,
    group: Annotated[str, Parameter(help="the thing group of the cores")],
    version: Annotated[str, Parameter(help="of the component; default: the newest")] = "",
    set: Annotated[
        list[str] | None,
        Parameter(
            help="NAME=VALUE: terms of the agent, as of `fleetfold join`: app, data, require, …", negative=""
        ),
    ] = None,
    stack: Stack = "",
) -> None:
    """Have the agent on every core of a thing group, those of today and those to come.

    Other components of the group's deployment stay as they are. The fleet's policy is attached to the group.

    **Examples**

    - `fleetfold aws greengrass deploy --group presses`
    - `fleetfold aws greengrass deploy --group presses --set data=/var/lib/press --set require=idle`
    """
    account, known, clients = _asked(stack)
    from fleetfold.aws.greengrass import publish as published
    from fleetfold.aws.greengrass import recipe

    terms = _terms(set or [])
    client = clients("greengrassv2")
    chosen = version or published.newest(client, published.component_arn(account))
    if not chosen:
        raise BadConfig("there is no version of the component yet", next="fleetfold aws greengrass publish")
    made = published.deploy(client, account, group, chosen, terms)
    print(f"deployment {made.id}: {recipe.COMPONENT} {chosen} on thing group {group}")
    print(f"  {len(made.cores)} cores are in the group now; those of fleet {known.fleet} from here on")
    for name in made.passed_over:
        print(f"  passed over: {name!r} is no name that a device of a fleet can have")
    print(f"  next: aws greengrassv2 get-deployment --deployment-id {made.id}")


def _terms(pairs: list[str]) -> dict[str, str]:
    from fleetfold.device import terms

    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise BadConfig(
                f"--set {pair!r} is not NAME=VALUE", next="fleetfold aws greengrass deploy --help"
            )
        found[name] = value
    terms.resolve({"--set": {name: value for name, value in found.items() if value}})
    return found


def _asked(stack: str) -> tuple[Any, Any, Any]:
    installed()
    from fleetfold.adapters.boto import client
    from fleetfold.aws import enrol
    from fleetfold.aws.stack import load

    known = load(home(), stack)
    return enrol.account(known), known, lambda name: client(name, region_name=known.region)
