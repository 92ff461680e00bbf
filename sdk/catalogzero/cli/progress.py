"""A call that shows how far its run is: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any

import typer

from catalogzero.cli.output import print_json
from catalogzero.errors import CatalogZeroError, RunError
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.messages import JsonObject, Reply

LOOK_S = 0.5
ASK_TIMEOUT_S = 2.0
SHOW_CURSOR = f"\x1b[?{25}h"


async def call_shown(
    client: HandlerClient, method: str, params: Mapping[str, Any], timeout_s: float
) -> Any:
    """As `HandlerClient.run`, unwrapped; what `get_run` reports meanwhile stands on standard error.

    A plain handler knows no runs, and works on one call at a time: nothing is asked meanwhile.
    What a failed run did all the same, its `details`, is printed as a result is.
    """

    @cache
    def report_wait(why: str) -> None:
        """Say once why nothing happens yet: the call may wait for an hour."""
        typer.echo(f"catalogzero: waiting: {why}", err=True)

    run = partial(client.run, method, params, timeout_s=timeout_s, on_wait=report_wait)
    try:
        if client.is_plain or not sys.stderr.isatty():
            return (await run()).unwrap()
        return (await _with_bar(client, method, run)).unwrap()
    except RunError as error:
        if isinstance(error.details, dict) and "status" in error.details:
            print_json(error.details)
        raise


async def _with_bar(
    client: HandlerClient, method: str, run: Callable[..., Coroutine[Any, Any, Reply]]
) -> Reply:
    """A run with a bar on the terminal."""
    sent: list[str] = []
    call = asyncio.create_task(run(on_send=sent.append))
    try:
        # On the stream below: ours escapes what moves a terminal's cursor (see `Console`).
        with typer.progressbar(length=1, label=method, file=sys.__stderr__) as bar:
            while not (await asyncio.wait([call], timeout=LOOK_S))[0]:
                shown: JsonObject = {}
                if sent:
                    with suppress(CatalogZeroError):  # not known there yet, or no more
                        asked = {"request_id": sent[-1]}
                        found = await client.call("get_run", asked, timeout_s=ASK_TIMEOUT_S)
                        shown = found.get("progress") or {}
                if shown.get("at_breakpoint"):  # the terminal is the debugger's from here on
                    typer.echo(SHOW_CURSOR, nl=False, file=sys.__stderr__)
                    await asyncio.wait([call])
                    break
                done, bar.length = done_of(shown)
                bar.label = figures_of(shown) or method
                bar.update(done - bar.pos)
        return await call
    finally:
        call.cancel()


def done_of(progress: JsonObject) -> tuple[int, int]:
    """How much is done, of how much: as the author says, bytes where they are known, else items."""
    if progress.get("of"):
        return int(progress.get("rows") or 0), int(progress["of"])
    if progress.get("bytes_total"):
        return int(progress.get("bytes_read", 0)), int(progress["bytes_total"])
    return int(progress.get("items_done", 0)), int(progress.get("items") or 1)


def figures_of(progress: JsonObject) -> str:
    """The figures beside the bar: `1,000 rows read, 998 records, 2 of 3 items`."""
    names = [name for name in ("rows_read", "records") if name in progress]
    words = [f"{progress[name]:,} {name.replace('_', ' ')}" for name in names]
    if progress.get("rows") is not None:
        whole = f" of {progress['of']:,}" if progress.get("of") else ""
        words.insert(0, f"{progress['rows']:,}{whole} rows")
    if progress.get("items", 1) > 1:
        words.append(f"{progress.get('items_done', 0)} of {progress['items']} items")
    return ", ".join(words)
