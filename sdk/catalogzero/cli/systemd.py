"""`catalogzero systemd`: a hardened unit for a handler.

Layer: edge.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.run import RegistryOption
from catalogzero.errors import ConfigError
from catalogzero.launch import registry_path
from catalogzero.registry import load_registry

UNIT = """\
[Unit]
Description=catalogzero handler {handler_id}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart={command} run {handler_id} --registry {registry}
Restart=on-failure
RestartSec=5
TimeoutStopSec=45
KillSignal=SIGTERM
KillMode=mixed

DynamicUser=yes
StateDirectory=catalogzero
StateDirectoryMode=0700
{read_only}UMask=0077
Environment=CATALOGZERO_LOG_FORMAT=json

AmbientCapabilities=
CapabilityBoundingSet=
DevicePolicy=closed
IPAddressAllow=any
LockPersonality=yes
MemoryDenyWriteExecute=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
PrivateUsers=yes
ProcSubset=pid
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
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources

[Install]
WantedBy=multi-user.target
"""


def systemd(
    handler_id: Annotated[str, typer.Argument(help="A handler_id of the registry file.")],
    registry: RegistryOption = None,
) -> None:
    """Print a hardened systemd unit for one handler.

    Example: catalogzero systemd acme > /etc/systemd/system/acme.service
    """
    path = registry_path(registry).resolve()
    typer.echo(unit_for(handler_id, path), nl=False)


def unit_for(handler_id: str, registry: Path) -> str:
    """The unit of a handler; its data roots stay readable, nothing else of /home does.

    Raises:
        ConfigError: The file does not name the handler.
    """
    stanza = load_registry(registry).find(handler_id)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", stanza.handler_id):
        raise ConfigError(f"{stanza.where('handler_id')}: letters, digits, `.`, `_`, `-` only")
    roots = stanza.config.get("data_roots") or []
    read_only = "".join(f"ReadOnlyPaths={_quoted(str(root))}\n" for root in roots)
    command = shutil.which("catalogzero") or f"{sys.executable} -m catalogzero"
    return UNIT.format(
        handler_id=handler_id,
        command=command,
        registry=_quoted(str(registry)),
        read_only=read_only,
    )


def _quoted(text: str) -> str:
    """A path as a unit file writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if re.search(r"[\s\"'\\]", text) else escaped
