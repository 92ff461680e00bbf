"""How a handler of this machine stands, and the one command that is next for it."""

from __future__ import annotations

import asyncio
import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from catalogzero.config.address import Address
from catalogzero.config.service_unit import is_installed
from catalogzero.config.state_folder import holder_of
from catalogzero.errors import CatalogZeroError
from catalogzero.runtime.last_boot import boot_in
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.messages import JsonObject
from catalogzero.wire.transport import Transport

ASK_S = 1.5


@dataclass(frozen=True)
class HandlerStanding:
    """How a handler stands: as it says itself, else as its state folder says.

    Attributes:
        handler_id: Its name.
        status: `active`, `idle`, `sleeping` or `draining` as it says; `silent` where its process
            is there and does not answer; else `stopped`.
        metrics: Its answer to `get_metrics`; empty where there is none.
        pid: Its process, where the lock of its state folder shows one.
    """

    handler_id: str
    status: str
    metrics: JsonObject = field(default_factory=dict)
    pid: int | None = None

    @property
    def answers(self) -> bool:
        """Whether it says itself how it stands."""
        return self.status not in ("silent", "stopped")

    @property
    def outbox(self) -> JsonObject:
        """What it says of its outbox; empty where it has none, or does not answer."""
        return self.metrics.get("outbox") or {}

    def next_command(self, registry: str = "", *, checked: bool = False) -> str:
        """What an operator does next with it.

        Args:
            registry: The option that names its file.
            checked: Whether `check` found nothing that fails.
        """
        name = shlex.quote(self.handler_id)
        if self.status == "stopped":
            return (
                f"systemctl start {name}" if self.is_unit else f"catalogzero run {name}{registry}"
            )
        if self.status == "silent":
            return f"systemctl restart {name}" if self.is_unit else f"kill {self.pid}"
        if self.outbox.get("paused_code") == "installation_moved":
            return f"catalogzero installation adopt {name}{registry}"
        if (self.outbox.get("paused") or self.outbox.get("fault")) and not checked:
            return f"catalogzero check {name}{registry}"
        if self.outbox.get("paused"):
            return f"catalogzero outbox retry --now {name}{registry}"
        if self.outbox.get("dead"):
            return f"catalogzero outbox list {name}{registry}"
        return f"catalogzero metrics {name}{registry}"

    @property
    def is_unit(self) -> bool:
        """Whether systemd starts it here."""
        return is_installed(self.handler_id)


def called_here(address: str, state_dir: Path | None) -> str | None:
    """Where the handler of this machine is called; None where its state folder shows that it ended.

    Behind a NATS server any of its name may answer: the state folder has the boot that is its own.
    """
    at = Address.parse(address)
    if not at.is_nats or at.instance or state_dir is None:
        return address
    with suppress(OSError):  # it never began here, or this user may not look
        (state_dir / "lock").stat()
        if holder_of(state_dir) is None:
            return None
        return str(at.called(at.handler_id, boot_in(state_dir)))
    return address


async def standing_of(
    handler_id: str, address: str | None, state_dir: Path | None, transport: Transport | None = None
) -> HandlerStanding:
    """Ask a handler, and look at its state folder, which is not changed.

    Args:
        handler_id: Its name; another that answers at its address is not it.
        address: Where it is called; None where nobody knows.
        state_dir: Its own state folder.
        transport: What carries the question, with the keys; by default that of the address.
    """
    pid = await asyncio.to_thread(holder_of, state_dir) if state_dir else None
    address = address and await asyncio.to_thread(called_here, address, state_dir)
    if address is not None:
        with suppress(CatalogZeroError, TimeoutError):
            async with (
                asyncio.timeout(2 * ASK_S),
                HandlerClient(address, transport=transport) as client,
            ):
                found = await client.call("get_metrics", timeout_s=ASK_S)
                if isinstance(found, dict) and found.get("handler_id") == handler_id:
                    return HandlerStanding(
                        handler_id, str(found.get("status", "active")), found, pid
                    )
    return HandlerStanding(handler_id, "stopped" if pid is None else "silent", pid=pid)
