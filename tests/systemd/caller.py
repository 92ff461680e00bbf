"""Calls a handler again and again while it is restarted; its last line is what came of it."""

from __future__ import annotations

import asyncio
import sys
from itertools import count

from catalogzero import HandlerClient
from catalogzero.wire.messages import encode_json

SIDE_BY_SIDE = 4


async def main(address: str, wanted: int) -> None:
    """Call, a few at a time, until that number of boots has answered."""
    numbers, failed, called = count(), [], []
    boots: set[str] = set()

    async def one_after_another(client: HandlerClient) -> None:
        while len(boots) < wanted:
            number = next(numbers)
            called.append(str(number))
            reply = await client.run("note", {"number": str(number)}, timeout_s=120)
            if not reply.success:
                failed.append([number, reply.code, reply.error])
            pong = await client.run("ping", timeout_s=120)
            if (boot := pong.result["boot_id"]) not in boots:
                boots.add(boot)
                print("a new boot answers", flush=True)  # noqa: T201 - its restart waits for this

    async with HandlerClient(address) as client:
        await asyncio.gather(*(one_after_another(client) for _ in range(SIDE_BY_SIDE)))
    outcome = {"failed": failed, "called": called, "boots": len(boots)}
    sys.stdout.write(encode_json(outcome).decode())


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
