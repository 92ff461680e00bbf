"""`catalogzero check --unit`: the check as the unit's user, with what that may see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from catalogzero.errors import ConfigError

NOT_THE_CHECK_S = (
    *("#", ";", "Type", "Exec", "Restart", "Timeout", "Kill", "OOM", "Notify"),
    *("StateDirectoryMode", "RuntimeDirectoryMode"),
)
"""What begins the settings that are about a service's life: a check has another."""


def check_in_unit(unit: str, target: str, registry: Path | None, *, json: bool) -> int:
    """Run the check within the settings of an installed unit; the check's exit code.

    Raises:
        ConfigError: systemd does not run here, this user may not, or there is no such unit.
    """
    if not Path("/run/systemd/system").exists() or not shutil.which("systemd-run"):
        raise ConfigError("--unit needs a running systemd, and systemd-run")
    if os.geteuid() != 0:
        raise ConfigError("--unit runs the check as the unit's user: be root, as with sudo")
    shown = subprocess.run(  # noqa: S603 - systemd's own
        ["systemctl", "cat", f"{unit.removesuffix('.service')}.service"],  # noqa: S607 - as above
        capture_output=True,
        text=True,
        check=False,
    )
    if shown.returncode:
        raise ConfigError(f"there is no unit {unit}: `catalogzero systemd {target}` prints one")
    command = [sys.executable, "-m", "catalogzero", "check", target]
    command += ["--registry", str(registry.resolve())] if registry else []
    command += ["--json"] if json else []
    properties = [f"--property={line}" for line in _settings(shown.stdout)]
    # A folder in /run goes with its unit, and this one may be the running handler's.
    start = ["systemd-run", "--pipe", "--wait", "--collect", "--quiet", *properties]
    start += ["--property=RuntimeDirectoryPreserve=yes"]
    return subprocess.run([*start, "--", *command], check=False).returncode  # noqa: S603 - our own


def _settings(text: str) -> Iterator[str]:
    """The lines of [Service], of the unit and its drop-ins, that bound a process."""
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith(NOT_THE_CHECK_S):
            yield line.replace("%%", "%")
