"""What a nucleus is told of the component, as data; in JSON, which both nuclei take.

install: an environment of its own from the wheels in the artifact      run: the agent in it

Lite reads keys by their exact case, knows no shutdown and no Skipif, and wants `runtime`.
"""

from typing import Any

import msgspec

from fleetfold.layout import FROM_DEVICE, TO_DEVICE, topic

COMPONENT = "io.fleetfold.Agent"
ARCHIVE = "fleetfold.zip"
"""The artifact's file; unpacked, it lies in a folder of that name without the ending."""
APP = "app"
"""The folder in it where the app lies, if it came along."""
SLOW = 1800
"""Seconds in which the environment has to be installed: small cores take their time to unpack numpy."""
_ARTIFACT = "{artifacts:decompressedPath}/fleetfold"
_PYTHON = "{work:path}/venv/bin/python"
_PIP = f"{_PYTHON} -m pip install --quiet --no-index --find-links {_ARTIFACT}/wheels"
_INSTALL = " && ".join(
    [
        "python3 -m venv {work:path}/venv",
        f"{_PIP} --upgrade fleetfold awsiotsdk",
        f"{_PIP} --no-deps --force-reinstall fleetfold",  # of the same version, it may be another one
    ]
)
_RUN = f"exec {_PYTHON} -m fleetfold.device.greengrass {{work:path}} {{iot:thingName}} {_ARTIFACT}/{APP}"


def recipe(version: str, uri: str, fleet: str) -> dict[str, Any]:
    """`uri`: s3://… of the artifact. The agent's terms are for a deployment to say."""
    return {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": COMPONENT,
        "ComponentVersion": version,
        "ComponentType": "aws.greengrass.generic",
        "ComponentDescription": "Takes part in a fleet: trains on this core's data, which stays here.",
        "ComponentPublisher": "fleetfold",
        "ComponentConfiguration": {
            "DefaultConfiguration": {"fleet": fleet, "terms": {}, "accessControl": _access(fleet)}
        },
        "Manifests": [
            {
                "Platform": {"os": "linux", "runtime": "*"},
                "Artifacts": [{"Uri": uri, "Unarchive": "ZIP", "Permission": {"Read": "ALL"}}],
                "Lifecycle": {"install": {"Script": _INSTALL, "Timeout": SLOW}, "run": {"Script": _RUN}},
            }
        ],
    }


def text(recipe: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(recipe)) + b"\n"


def _access(fleet: str) -> dict[str, Any]:
    """What the nucleus lets the component say and hear. Lite fills in no names here, so the device's is
    any: that a core speaks in its own name alone is for the broker to see to, by the fleet's policy."""

    def policy(what: str, operation: str, words: tuple[str, ...]) -> dict[str, Any]:
        return {
            "policyDescription": what,
            "operations": [f"aws.greengrass#{operation}"],
            "resources": [topic(fleet, "*", word) for word in words],
        }

    return {
        "aws.greengrass.ipc.mqttproxy": {
            f"{COMPONENT}:mqttproxy:1": policy("what a device says", "PublishToIoTCore", FROM_DEVICE),
            f"{COMPONENT}:mqttproxy:2": policy("what it is told", "SubscribeToIoTCore", TO_DEVICE),
        }
    }
