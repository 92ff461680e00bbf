"""`catalogzero run --all`: every handler of a registry file, a process each, for a first look."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import typer

from catalogzero.config.registry import load_registry
from catalogzero.errors import ConfigError
from catalogzero.runtime.worker_child import end_with

SINGLE_VARIABLES = ("CATALOGZERO_HANDLER_ID", "CATALOGZERO_HOST", "CATALOGZERO_PORT")
PARENT_VARIABLE = "CATALOGZERO_RUN_ALL_PID"


class _Ended(NamedTuple):
    """How a handler's process ended."""

    handler_id: str
    code: int
    last_line: str


def run_all(path: Path) -> int:
    """Serve every handler until Ctrl-C or SIGTERM, or until one of them dies.

    The others are then ended too, and the exit code is 1; else it is 0.

    Raises:
        ConfigError: The file is wrong, or names no handler.
    """
    sections = load_registry(path).handlers
    if not sections:
        raise ConfigError(f"{path}: no handlers to run")
    environment = {k: v for k, v in os.environ.items() if k not in SINGLE_VARIABLES}
    environment[PARENT_VARIABLE] = str(os.getpid())
    if sys.stderr.isatty():  # which a child's pipe is not
        environment.setdefault("CATALOGZERO_LOG_FORMAT", "console")
    base = [sys.executable, "-m", "catalogzero", "run", "--registry", str(path)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ends: SimpleQueue[_Ended] = SimpleQueue()
    children: list[subprocess.Popen[bytes]] = []
    died = False
    try:
        for section in sections:
            # A group each, so that a terminal's Ctrl-C reaches them once, through this process.
            child = subprocess.Popen(  # noqa: S603 - our own command
                [*base, section.handler_id],
                env=environment,
                process_group=0,
                stderr=subprocess.PIPE,
            )
            children.append(child)
            threading.Thread(
                target=_follow, args=(section.handler_id, child, ends), daemon=True
            ).start()
        for _ in children:
            ended = ends.get()
            if ended.code:
                died = True
                typer.echo(
                    f"catalogzero: handler {ended.handler_id} ended with exit code {ended.code}: "
                    f"{ended.last_line or 'without a word'}; the others are ended too",
                    err=True,
                )
                break
    except KeyboardInterrupt:
        pass
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    codes = [child.wait() for child in children]
    return 1 if died or any(codes) else 0


def end_with_all() -> None:
    """In a handler's process: be asked to end when `run --all` dies, however it dies."""
    if parent := os.environ.pop(PARENT_VARIABLE, ""):
        end_with(int(parent), signal.SIGTERM)


def _follow(handler_id: str, child: subprocess.Popen[bytes], ends: SimpleQueue[_Ended]) -> None:
    """Pass on what a handler's process logs, and note how it ends."""
    last = b""
    for line in child.stderr or ():
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        last = line.strip() or last
    ends.put(_Ended(handler_id, child.wait(), last.decode(errors="replace")))
