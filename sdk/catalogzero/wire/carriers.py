"""Which transport an address is called and served by; only the one that is chosen is imported."""

from __future__ import annotations

from catalogzero.config.address import Address
from catalogzero.config.settings import NatsSettings
from catalogzero.errors import ConfigError
from catalogzero.wire.keys import CurveClientSource, CurveServerSource
from catalogzero.wire.transport import Transport
from catalogzero.wire.zeromq import ZeroMQ


def transport_for(
    address: Address,
    *,
    server_keys: CurveServerSource | None = None,
    client_keys: CurveClientSource | None = None,
    nats: NatsSettings | None = None,
) -> Transport:
    """The transport of an address.

    Args:
        address: Where a handler is called, or listens.
        server_keys: Over ZeroMQ, those that a server uses; without them the wire is plain.
        client_keys: Over ZeroMQ, those that a client uses.
        nats: How the NATS server of the address is reached.

    Raises:
        ConfigError: What it needs is not installed.
    """
    if address.is_nats:
        try:
            from catalogzero.wire.nats import Nats
        except ModuleNotFoundError:
            from catalogzero.config.install_hint import install_hint

            raise ConfigError(f"{address} needs more: {install_hint('nats')}") from None
        return Nats(nats.key_file, nats.ca_file) if nats else Nats()
    return ZeroMQ(server_keys=server_keys, client_keys=client_keys)
