"""The recipe's own commands, as a nucleus would run them: installed from the artifact's wheels alone, trained
by the app in it, with models by signed addresses. In place of the nucleus: component.py."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fleetfold import layout
from fleetfold.adapters.stores import open_store
from fleetfold.aws.greengrass import artifact, recipe
from fleetfold.fold.tensors import read, write
from fleetfold.messages import Presence, Report, Task, encode
from tests.aws.component import Component, double_of_sdk, packed_again, until
from tests.s3 import BUCKET, serving

APP = Path(__file__).parents[1] / "hub/small_app.py"


@pytest.mark.fleet
def test_a_component_is_installed_and_trains_and_another_configuration_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    artifact.own_wheel(wheels)
    for name in ("numpy", "msgspec", "safetensors", "paho-mqtt"):
        packed_again(name, wheels)
    double_of_sdk(wheels)
    artifact.archive(tmp_path / "fleetfold.zip", wheels, APP)
    made = recipe.recipe("1.0.0", "s3://b/fleetfold.zip", "main")
    component = Component(tmp_path / "core", made, tmp_path / "fleetfold.zip", "core-1")
    environment = {"FLEETFOLD_AGENT_PLAIN": "1", "STAGE": str(tmp_path)}
    component.install()
    component.install()  # of the next version, over this one
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{BUCKET}/fleet")
        model = write({"w": np.zeros(8, np.float32)})
        store.put("model", [model])

        def invite(round: int) -> Task:
            key = f"updates/{round}"
            task = Task(
                run="r", round=round, kind="train", device="core-1", seed=1, deadline=4e9, most=1 << 20,
                model=store.to_fetch("model", "core-1", 600), digest=hashlib.sha256(model).hexdigest(),
                size=len(model), update=store.to_deliver(key, "core-1", 600, 1 << 20),
            )  # fmt: skip
            component.retain(layout.topic("main", "core-1", "task"), encode(task))
            return task

        def delivered(round: int) -> bool:
            said = [msgspec.json.decode(each, type=Report) for each in component.said("status")]
            return any(each.round == round and each.state == "delivered" for each in said)

        invite(1)
        run = component.run(**environment)
        until(lambda: delivered(1), component)
        assert read(server.objects["fleet/updates/1"])[0]["w"].tolist() == [1.0] * 8
        run.terminate()
        assert run.wait(60) == 0
        last = msgspec.json.decode(component.said("presence")[-1], type=Presence)
        assert not last.online
        component.configure({"fleet": "main", "terms": {"index": "2", "count": "3", "data": ""}})
        invite(2)
        run = component.run(**environment)
        until(lambda: delivered(2), component)
        assert read(server.objects["fleet/updates/2"])[0]["w"].tolist() == [3.0] * 8
        run.terminate()
        assert run.wait(60) == 0
        component.configure({"fleet": "other", "terms": {}})
        run = component.run()
        assert run.wait(60) == 2
        assert "is the home of core-1 of fleet main" in component.log.read_text()
