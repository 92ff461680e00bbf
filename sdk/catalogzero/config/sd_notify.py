"""What a service says to systemd about itself: that it is ready, that it stops."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send a state such as `READY=1` to who waits for it; nothing where nobody does.

    Lines of several assignments are separated by newlines (see sd_notify(3)).
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name or not hasattr(socket, "AF_UNIX"):
        return
    address = f"\0{name[1:]}" if name.startswith("@") else name
    # A supervisor that is gone must not end the service that it supervised.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.sendto(state.encode(), address)


def ready(where: str) -> None:
    """Say that the service answers, and where."""
    notify(f"READY=1\nSTATUS=serving {where}")
