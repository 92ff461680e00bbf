"""The systemd unit of every service of ours: handler, conductor, scheduler, backend.

Pure text. What a service needs of its own is in `ServiceUnit`; how it is supervised and shut in is
the same for all, and tested under a real systemd.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_USER_CHARS = 31
STATE = Path("/var/lib/catalogzero")
"""Where each unit of a handler has a state folder of its handler's name."""
UNITS = tuple(Path(place, "systemd/system") for place in ("/etc", "/run", "/usr/lib"))

_TEXT = """\
{notes}[Unit]
Description={description}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0
{mounts}
[Service]
Type=notify
ExecStart={command}
Restart=on-failure
RestartSec=5
# 2: its command line, 3: its configuration, 243: a credential's file is missing
RestartPreventExitStatus=2 3 243
TimeoutStartSec={start_s}
TimeoutStopSec={stop_s}
KillMode=mixed
# What is over MemoryMax= is ended: a handler's worker, whose run then fails, and not the handler
OOMPolicy=continue
{lines}
DynamicUser=yes
User={user}
StateDirectory={state_directory}
StateDirectoryMode=0700
UMask=0077
Environment=CATALOGZERO_LOG_FORMAT=json

AmbientCapabilities=
CapabilityBoundingSet=
DevicePolicy=closed
LockPersonality=yes
MemoryDenyWriteExecute=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
PrivateUsers=yes
ProcSubset={proc}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
# AF_NETLINK: libzmq asks for the machine's addresses when it binds, and aborts where it may not
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# libzmq sets the policy of its threads, to what it is, and aborts where it may not
SystemCallFilter=sched_setscheduler

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, kw_only=True)
class ServiceUnit:
    """What one service's unit says of its own; texts are as a unit file writes them.

    Attributes:
        name: Of the file, without `.service`.
        description: One line.
        command: What is started.
        user: Of whom the user's name is made; a check runs as the same.
        state_directory: Below /var/lib.
        lines: Further lines of [Service].
        credentials: Files that systemd reads as root and hands over, by the credential's name.
        mounts: Paths whose file systems are mounted before it starts.
        notes: Comments at the top.
        memory_max: The most memory of all its processes, as systemd writes it.
        start_s: The longest start; `infinity` where a database is brought forward.
        stop_s: The longest stop.
        reads_machine: Whether it may read the machine's own figures in /proc.
    """

    name: str
    description: str
    command: str
    user: str
    state_directory: str
    lines: Sequence[str] = ()
    credentials: Mapping[str, Path] = field(default_factory=dict)
    mounts: Sequence[Path] = ()
    notes: Sequence[str] = ()
    memory_max: str | None = None
    start_s: str = "300"
    stop_s: int = 60
    reads_machine: bool = False

    def __str__(self) -> str:
        """The whole file."""
        own = [f"LoadCredential={name}:{literal(path)}" for name, path in self.credentials.items()]
        own += [f"MemoryMax={self.memory_max}"] if self.memory_max else []
        mounts = [f"RequiresMountsFor={quoted(path)}" for path in self.mounts]
        return _TEXT.format(
            notes=_lines(f"# {note}" for note in self.notes),
            description=literal(self.description),
            mounts=_lines(mounts),
            command=self.command,
            start_s=self.start_s,
            stop_s=self.stop_s,
            lines=_lines([*own, *self.lines]),
            user=user_name(self.user),
            state_directory=self.state_directory,
            proc="all" if self.reads_machine else "pid",
        )


def is_installed(name: str) -> bool:
    """Whether this machine has a unit of that name."""
    return any((folder / f"{name}.service").exists() for folder in UNITS)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def literal(value: object) -> str:
    """A value as a unit file writes it to the end of its line."""
    return str(value).replace("%", "%%")


def quoted(value: object) -> str:
    """One word of a line, in quotes where it needs them."""
    text = literal(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if re.search(r"[\s\"'\\]", text) else text


def user_name(name: str) -> str:
    """The user of a service: its name, made to fit; unlike ones stay unlike."""
    plain = re.sub(r"[^a-z0-9_-]", "-", f"cz-{name}".lower())
    if plain == f"cz-{name}" and len(plain) <= MAX_USER_CHARS:
        return plain
    end = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: MAX_USER_CHARS - 9]}-{end}"
