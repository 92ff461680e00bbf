"""Which transport an address is called and served by; only the one that is chosen is imported."""

from __future__ import annotations

from catalogzero.config.address import Address
from catalogzero.wire.keys import CurveClientSource, CurveServerSource
from catalogzero.wire.transport import Transport
from catalogzero.wire.zeromq import ZeroMQ


def transport_for(
    address: Address,
    *,
    server_keys: CurveServerSource | None = None,
    client_keys: CurveClientSource | None = None,
) -> Transport:
    """The transport of an address.

    Args:
        address: Where a handler is called, or listens.
        server_keys: Over ZeroMQ, those that a server uses; without them the wire is plain.
        client_keys: Over ZeroMQ, those that a client uses.
    """
    return ZeroMQ(server_keys=server_keys, client_keys=client_keys)
