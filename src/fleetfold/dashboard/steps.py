"""What devices are at that have answered nothing yet, as far as anybody knows it.

on this machine   the device's own journal: a promise that is not settled is being worked on
a hub             what its devices last told of their task
AWS               nothing: progress is not forwarded there (docs/design.md)
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from fleetfold import layout
from fleetfold.adapters.sqlite import SqliteRecords
from fleetfold.messages import Report
from fleetfold.ports import Records
from fleetfold.round.state import Round
from fleetfold.wiring import local as wiring
from fleetfold.wiring.local import Place

MOST = 2000
"""Devices whose step is looked for in one look."""


class _Task(Struct):
    round: int = 0


class _Entry(Struct):
    """So much of a journal's entry as is needed here."""

    task: _Task
    report: msgspec.Raw = msgspec.Raw(b"null")


_ENTRY = msgspec.json.Decoder(_Entry)
_REPORT = msgspec.json.Decoder(Report)
_STEPS = {
    "fetching": "downloading", "training": "training", "evaluating": "training", "delivering": "uploading",
}  # fmt: skip


def _step(report: Report) -> str:
    """Who has accepted begins by fetching, and says so when another step lasts; who waits is only invited."""
    return "downloading" if report.state == "accepted" else _STEPS.get(report.reason, "")


class Steps:
    """Of one run's devices."""

    def __init__(self, place: Place) -> None:
        self._place, self._where = place, wiring.where(place)
        self._records: Records | None = None

    def of(self, round: Round, devices: Sequence[str]) -> dict[str, str]:
        """Device → what it is at; who is not in it was only invited."""
        asked = devices[:MOST]
        if self._where == "here":
            return self._promised(round, asked)
        return self._told(round, asked) if self._where == "hub" else {}

    def _told(self, round: Round, devices: Sequence[str]) -> dict[str, str]:
        if self._records is None:
            self._records = wiring.hub_records(self._place.home)
        found = self._records.get_many([layout.doing(device) for device in devices])
        said = (_REPORT.decode(record.value) for record in found.values())
        key = (round.run, round.number, round.kind)
        here = (each for each in said if (each.run, each.round, each.kind) == key)
        return {each.device: step for each in here if (step := _step(each))}

    def _promised(self, round: Round, devices: Sequence[str]) -> dict[str, str]:
        path = self._place.folder / "devices.db"
        if self._records is None:
            if not path.exists():
                return {}
            self._records = SqliteRecords(path)
        keys = {f"journal/{device}/{round.run}:{round.kind}": device for device in devices}
        found = self._records.get_many(list(keys))
        entries = {keys[key]: _ENTRY.decode(record.value) for key, record in found.items()}
        return {
            device: "training"
            for device, entry in entries.items()
            if entry.task.round == round.number and bytes(entry.report) == b"null"
        }
