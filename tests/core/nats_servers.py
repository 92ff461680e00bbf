"""NATS servers of a test's own, and the one that every test may use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SHARED = os.environ.get("CATALOGZERO_TEST_NATS", "nats://127.0.0.1:4222")
"""A NATS server without credentials, which these tests share."""


def need_nats() -> str:
    """The URL of the shared NATS server; skips where nobody listens there."""
    host, _, port = SHARED.rpartition("://")[2].rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), 2):
        return SHARED
    pytest.skip(f"no NATS server at {SHARED}: start one, or name it in CATALOGZERO_TEST_NATS")


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nats_server(
    folder: Path, config: str = "", port: int = 0, host: str = "127.0.0.1"
) -> Iterator[int]:
    """A `nats-server` with that configuration; yields its port, and kills it at the end."""
    program = shutil.which("nats-server")
    if program is None:
        pytest.skip("no nats-server on this machine")
    port = port or free_port()
    path = folder / f"nats-{port}.conf"
    path.write_text(f'listen: "{host}:{port}"\n{config}')
    process = subprocess.Popen([program, "-c", str(path)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "Server is ready" in line:
            break
    else:
        raise AssertionError("".join(said))
    try:
        yield port
    finally:
        process.kill()
        process.communicate()
