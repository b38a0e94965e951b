"""A unit for systemd that keeps a device's agent running, with no more rights than it needs.

as root: a service of the machine, by a user of its own      else: one of the user's, while they are known
"""

import os
import pwd
import stat
import sys
from pathlib import Path

from msgspec import Struct

from fleetfold.device.terms import PREFIX, Home, Terms

NAME = "fleetfold-agent"
STATE = Path("/var/lib") / NAME
"""The home of a service of the machine: systemd gives it to the user that it makes."""
AGENT = 100_000_000
"""Bytes that the waiting process may take beside its worker."""


class Unit(Struct, frozen=True):
    place: Path
    text: str
    commands: tuple[str, ...]  # that start it
    notes: tuple[str, ...] = ()


def unit(home: Home, terms: Terms, *, root: bool) -> Unit:
    service = [f"ExecStart={sys.executable} -m fleetfold join", f"Environment={PREFIX}HOME={home.path}"]
    if root:
        service += _hardening(home)
    else:
        service.append("NoNewPrivileges=yes")
    service += [
        "Restart=always", "RestartSec=5", "KillMode=mixed", "TimeoutStopSec=20",
        "OOMPolicy=continue",  # a worker that took too much is the agent's to bury
        f"Nice={terms.nice}",
    ]  # fmt: skip
    if terms.idle_io:
        service.append("IOSchedulingClass=idle")
    if terms.memory:
        service.append(f"MemoryMax={terms.memory + AGENT}")
    text = "\n".join([
        "[Unit]", "Description=fleetfold agent", "After=network-online.target", "Wants=network-online.target",
        "", "[Service]", "Type=exec", *service, "",
        "[Install]", f"WantedBy={'multi-user' if root else 'default'}.target", "",
    ])  # fmt: skip
    manager = "systemctl" if root else "systemctl --user"
    folder = Path("/etc/systemd/system") if root else Path.home() / ".config/systemd/user"
    commands = [f"{manager} daemon-reload", f"{manager} enable --now {NAME}"]
    if not root:
        commands.append("loginctl enable-linger  # so that it runs while you are not logged in")
    return Unit(folder / f"{NAME}.service", text, tuple(commands), _notes(home, terms) if root else ())


def _hardening(home: Home) -> list[str]:
    """What is in the unit's own user's reach: its home to write, the rest of the machine at most to read."""
    if home.path == STATE:
        who = ["DynamicUser=yes", f"StateDirectory={NAME}", "StateDirectoryMode=0700"]
    else:
        who = [f"User={_owner(home.path)}", f"ReadWritePaths={home.path}"]
    return [
        *who, "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=read-only", "PrivateTmp=yes",
        "ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectControlGroups=yes",
        "RestrictSUIDSGID=yes", "LockPersonality=yes", "CapabilityBoundingSet=",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    ]  # fmt: skip


def _owner(path: Path) -> str:
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except (OSError, KeyError):
        return "root"


def _notes(home: Home, terms: Terms) -> tuple[str, ...]:
    """What a user of its own could not read."""
    if home.path != STATE:
        return ()
    needed = [Path(place) for place in (sys.executable, terms.app, terms.data) if os.path.isabs(place)]
    return tuple(
        f"{path} cannot be read by the service's own user: move it, or give --home a folder of a user who can"
        for path in needed
        if path.exists() and not _open_to_all(path)
    )


def _open_to_all(path: Path) -> bool:
    real = path.resolve()
    folders = all(parent.stat().st_mode & stat.S_IXOTH for parent in real.parents)
    return folders and bool(real.stat().st_mode & stat.S_IROTH)
