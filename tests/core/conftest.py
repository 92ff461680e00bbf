"""Fixtures of the core's tests."""

from __future__ import annotations

import os

import pytest

from tests.core.nats_servers import need_nats


@pytest.fixture(params=["zeromq", "nats"])
def over_each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handlers of a test are called over ZeroMQ, and through NATS."""
    if request.param == "nats":
        monkeypatch.setenv("CATALOGZERO_TRANSPORT", need_nats())
        # Others use the same server.
        monkeypatch.setenv("CATALOGZERO_HANDLER_ID", f"own-{os.urandom(6).hex()}")
