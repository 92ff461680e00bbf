"""A call that shows how far its run is: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import typer

from catalogzero.cli.output import print_json
from catalogzero.errors import CatalogZeroError, RunError
from catalogzero.wire.client import HandlerClient

LOOK_S = 0.5
ASK_TIMEOUT_S = 2.0
_SHOWN = ("rows_read", "records")


async def call_shown(
    client: HandlerClient, method: str, params: Mapping[str, Any], timeout_s: float
) -> Any:
    """As `HandlerClient.call`; what `get_run` reports meanwhile stands on standard error.

    A plain handler knows no runs, and works on one call at a time: nothing is asked meanwhile.
    What a failed run did all the same, its `details`, is printed as a result is.
    """
    try:
        return await _called(client, method, params, timeout_s)
    except RunError as error:
        if isinstance(error.details, dict) and "status" in error.details:
            print_json(error.details)
        raise


async def _called(
    client: HandlerClient, method: str, params: Mapping[str, Any], timeout_s: float
) -> Any:
    """The call, with a bar on a terminal."""
    if client.is_plain or not sys.stderr.isatty():
        return await client.call(method, params, timeout_s=timeout_s)
    request_id = str(uuid.uuid4())
    calling = client.call(method, params, timeout_s=timeout_s, request_id=request_id)
    call = asyncio.create_task(calling)
    try:
        with typer.progressbar(length=1, label=method, file=sys.__stderr__) as bar:
            while not (await asyncio.wait([call], timeout=LOOK_S))[0]:
                answer = await _progress(client, request_id)
                done, bar.length = _share(answer)
                bar.label = _words(answer) or method
                bar.update(done - bar.pos)
        return await call
    finally:
        call.cancel()


async def _progress(client: HandlerClient, request_id: str) -> dict[str, Any]:
    """What the run has told; nothing where it is not known, or told nothing."""
    with suppress(CatalogZeroError):
        run = await client.call("get_run", {"request_id": request_id}, timeout_s=ASK_TIMEOUT_S)
        return dict(run.get("progress") or {})
    return {}


def _share(shown: Mapping[str, Any]) -> tuple[int, int]:
    """How much is done, of how much: bytes where they are known, else items."""
    if shown.get("bytes_total"):
        return int(shown.get("bytes_read", 0)), int(shown["bytes_total"])
    return int(shown.get("items_done", 0)), int(shown.get("items") or 1)


def _words(shown: Mapping[str, Any]) -> str:
    """The figures beside the bar."""
    words = [f"{shown[name]:,} {name.replace('_', ' ')}" for name in _SHOWN if name in shown]
    if shown.get("items", 1) > 1:
        words.append(f"{shown.get('items_done', 0)} of {shown['items']} items")
    return ", ".join(words)
