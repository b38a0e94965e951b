"""fleetfold export: a run's model as a file of its own."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fleetfold import layout
from fleetfold.agent.torch_file import save_torch
from fleetfold.cli.places import existing
from fleetfold.errors import BadConfig
from fleetfold.fold.tensors import read, write
from fleetfold.ports import fetch
from fleetfold.wiring import local as wiring


def export(
    run: str = "latest",
    /,
    *,
    out: Annotated[Path, Parameter(help="the file to write: .safetensors, or .pt with PyTorch")],
    version: Annotated[
        int | None, Parameter(help="the model after so many rounds; default: the newest")
    ] = None,
) -> None:
    """Write a run's model to a file: .safetensors, or .pt (a PyTorch state_dict).

    **Examples**

    - `fleetfold export latest --out model.safetensors`
    - `fleetfold export digits-1 --version 5 --out after-5.pt`
    """
    place = existing(run)
    found = wiring.ledger(place).run(place.run)
    if found is None:
        raise BadConfig(f"run {place.run} was never opened", next="fleetfold runs")
    number = found[0].version if version is None else version
    try:
        data = fetch(wiring.objects(place), layout.model(place.run, number))
    except KeyError:
        raise BadConfig(
            f"run {place.run} has no model {number}; its newest is {found[0].version}",
            next=f"fleetfold show {place.run}",
        ) from None
    tensors, _ = read(data)
    try:
        match out.suffix:
            case ".safetensors":
                out.write_bytes(write(tensors))
            case ".pt" | ".pth":
                save_torch(tensors, out)
            case _:
                raise BadConfig(f"--out {out}: the name must end in .safetensors or .pt")
    except OSError as error:
        raise BadConfig(f"--out {out}: {error.strerror}") from None
    parameters = sum(array.size for array in tensors.values())
    private = _privacy(place, number)
    print(f"{out}: model {number} of {place.run}, {len(tensors)} tensors, {parameters:,} values{private}")


def _privacy(place: wiring.Place, version: int) -> str:
    """What the run had spent when it released that model; nothing where it hides nobody."""
    for round in wiring.ledger(place).rounds(place.run):
        told = round.metrics.get("privacy")
        if told and round.base + 1 == version:
            return f", ε {told['epsilon']:.3f} at δ = {told['delta']:.3g}"
    return ""
