"""A catalogzero handler, served through the NATS server at the port given."""

from __future__ import annotations

import asyncio
import sys

from catalogzero.testing import serving

from benchmarks.peers.own_handler import Echo


async def main(server: int) -> None:
    """Serve for ever; the server's port is the first line printed."""
    async with serving(Echo(), transport=f"nats://127.0.0.1:{server}", max_concurrent_jobs=64):
        sys.stdout.write(f"{server}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
