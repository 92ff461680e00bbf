"""A real systemd for tests: this machine's own root as an overlay in memory, booted by nspawn.

Nothing is downloaded, and nothing of the machine is changed: what is written goes to a tmpfs. It
has a loopback of its own, so that no port meets one of the machine's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
BOOT_S = 60.0
BEAT_S = 0.1
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
BIN = Path(sys.executable).parent


class NoMachineError(Exception):
    """Why there is none here."""


class Machine:
    """A booted machine: its files, and commands in it."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._enter = ["nsenter", "-t", str(leader), "-a", "env", "-i"]
        self._enter += [f"{name}={value}" for name, value in ENVIRONMENT.items()]

    def run(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as its root."""
        done = subprocess.run(
            [*self._enter, *map(str, command)], capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def start(self, *command: object) -> subprocess.Popen[str]:
        """Start a command as its root."""
        return subprocess.Popen(
            [*self._enter, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def catalogzero(self, *command: object, check: bool = True) -> str:
        """Run `catalogzero` as its root, and return what it printed."""
        return self.run(BIN / "catalogzero", *command, check=check).stdout

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file of root's, and the folders above it."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"-p{name}" for name in names)).stdout
        return dict(line.split("=", 1) for line in lines.splitlines())

    def journal(self, unit: str) -> str:
        """What a unit has logged."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    def until(self, unit: str, **expected: str) -> dict[str, str]:
        """Wait until a unit has such properties; what it had last is shown where it never does."""
        ends_s = time.monotonic() + BOOT_S
        while (found := self.show(unit, *expected)) != expected:
            assert time.monotonic() < ends_s, f"{unit}: {found}: {self.journal(unit)[-3000:]}"
            time.sleep(BEAT_S)
        return found


@contextmanager
def booted(work: Path) -> Iterator[Machine]:
    """A machine while the block runs; `work` is a folder of this test's alone.

    Raises:
        NoMachineError: It cannot be had here; says what is missing.
    """
    _look_here()
    with ExitStack() as undo:
        # A test that served a handler in this process may have left it with the umask of one.
        undo.callback(os.umask, os.umask(0o022))
        _mount(undo, "-t", "tmpfs", "catalogzero", work)
        for name in ("up", "work", "root"):
            (work / name).mkdir()
        root = work / "root"
        layers = f"lowerdir=/,upperdir={work / 'up'},workdir={work / 'work'}"
        _mount(undo, "-t", "overlay", "overlay", "-o", layers, root)
        (root / "etc" / "machine-id").write_text("")
        seen = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
        for folder in {above for one in seen for above in (one, *one.parents)}:
            inside = root / str(folder).lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            inside.chmod(inside.stat().st_mode | 0o011)  # for the users of the units
        yield undo.enter_context(_running(root, work / "log", seen))


def _look_here() -> None:
    """Raise `NoMachineError` where something is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NoMachineError("needs Linux and root")
    for command in ("systemd-nspawn", "nsenter", "mount"):
        if not shutil.which(command):
            raise NoMachineError(f"needs {command} (Debian: apt-get install systemd-container)")
    if not Path("/lib/systemd/systemd").exists():
        raise NoMachineError("needs systemd (Debian: apt-get install systemd)")


def _mount(undo: ExitStack, *arguments: object) -> None:
    done = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NoMachineError(f"mount is refused: {done.stderr.strip()}")
    undo.callback(subprocess.run, ["umount", "--lazy", str(arguments[-1])], check=False)


@contextmanager
def _running(root: Path, log: Path, seen: list[Path]) -> Iterator[Machine]:
    command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--register=no"]
    command += [f"--machine=cz{os.getpid()}", "--keep-unit", "--private-network"]
    command += ["--console=pipe", *(f"--bind-ro={path}" for path in seen), "--"]
    command += ["--unit=basic.target"]
    with log.open("wb") as out:
        nspawn = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        machine = Machine(root, _leader(nspawn, log))
        ends_s = time.monotonic() + BOOT_S
        while machine.run("systemctl", "is-system-running", check=False).stdout.strip() not in (
            "running",
            "degraded",
        ):
            if nspawn.poll() is not None or time.monotonic() > ends_s:
                raise NoMachineError(f"it does not boot: {log.read_text()[-500:]}")
            time.sleep(BEAT_S)
        yield machine
        machine.run("systemctl", "poweroff", check=False)
    finally:
        try:
            nspawn.wait(30)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()


def _leader(nspawn: subprocess.Popen[bytes], log: Path) -> int:
    """The process of the machine's own systemd."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    ends_s = time.monotonic() + BOOT_S
    while nspawn.poll() is None and time.monotonic() < ends_s:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(BEAT_S)
    raise NoMachineError(f"nspawn does not start it: {log.read_text()[-500:].strip()}")
