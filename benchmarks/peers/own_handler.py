"""A catalogzero handler, served as `catalogzero run` serves it."""

from __future__ import annotations

import asyncio
import sys

from catalogzero import Handler
from catalogzero.testing import serving


class Echo(Handler):
    """One job method."""

    async def echo(self, data: str) -> str:
        """The data."""
        return data


async def main() -> None:
    """Serve for ever; the port is the first line printed."""
    async with serving(Echo(), max_concurrent_jobs=64) as at:
        sys.stdout.write(f"{at.service.port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
