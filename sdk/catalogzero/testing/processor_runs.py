"""Runs of a processor inside a test: a state folder and a backend of its own, and taps that play.

For sources that read no file as for those that do: what a run sent, and what the next one adds, is
what a backend shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from catalogzero.cloud.processor import CloudProcessor
from catalogzero.cloud.rows.values import Row
from catalogzero.testing.backend import API_KEY, FaultyBackend
from catalogzero.testing.handlers import serving
from catalogzero.wire.messages import JsonObject

CALL_TIMEOUT_S = 60.0
_TAP = """\
#!{python}
import sys
sys.stdout.write({lines!r})
"""


class Uploads:
    """Runs of one test, as at one client: each goes on where the one before ended.

    The fixture `uploads` is one.

        async def test_a_second_run_sends_what_is_new(uploads):
            await uploads.run(AcmeProcessor, "orders")
            assert len(uploads.rows) == 3

    Attributes:
        backend: Where the rows arrive; faults for the next requests go into its `plan`.
    """

    def __init__(self, folder: Path) -> None:
        self.backend = FaultyBackend()
        self._folder = folder

    @property
    def rows(self) -> list[Row]:
        """The rows that are visible at the backend."""
        return self.backend.rows

    async def run(
        self,
        processor: type[CloudProcessor],
        data_source: str,
        params: Mapping[str, Any] | None = None,
        *,
        full: bool = False,
        **config: Any,
    ) -> JsonObject:
        """Serve a processor, call `process_and_upload` once, and stop it.

        Args:
            processor: The class.
            data_source: As in a call.
            params: For `process`.
            full: Send all again.
            config: Settings of the class; endpoint and key are the backend's.

        Returns:
            The result of the call.

        Raises:
            RunError: The run failed; the error is what a caller sees.
        """
        given = {"data_source": data_source, "params": dict(params or {}), "full": full}
        async with self.backend:
            made = processor(endpoint=self.backend.url, api_key=API_KEY, **config)
            async with serving(
                made, state_dir=self._folder, min_file_age_s=0, installation_id="test"
            ) as at:
                result: JsonObject = await at.client.call(
                    "process_and_upload", given, timeout_s=CALL_TIMEOUT_S
                )
        return result


def write_tap(folder: Path, messages: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Write a Singer tap that says these messages, and what selects every stream of them.

    Each SCHEMA message makes a stream of the catalog file: with `bookmark_properties` it is read
    incrementally by the first of them, else as a whole.

    Args:
        folder: Where its files go.
        messages: SCHEMA, RECORD and STATE messages, in order.

    Returns:
        What a config says of it: `taps={"orders": write_tap(tmp_path, messages)}`.
    """
    said = list(messages)
    places = {
        "command": folder / "tap",
        "config_file": folder / "tap.json",
        "catalog_file": folder / "tap-catalog.json",
    }
    lines = "".join(json.dumps(message) + "\n" for message in said)
    places["command"].write_text(_TAP.format(python=sys.executable, lines=lines), "utf-8")
    places["command"].chmod(0o755)
    places["config_file"].write_text("{}", "utf-8")
    places["config_file"].chmod(0o600)
    schemas = [message for message in said if message["type"] == "SCHEMA"]
    catalog = {"streams": [_stream(message) for message in schemas]}
    places["catalog_file"].write_text(json.dumps(catalog), "utf-8")
    return {name: str(path) for name, path in places.items()}


def _stream(schema: Mapping[str, Any]) -> JsonObject:
    """A SCHEMA message as a selected stream of a catalog."""
    marks = schema.get("bookmark_properties") or []
    method = "INCREMENTAL" if marks else "FULL_TABLE"
    replication = {"replication-method": method} | ({"replication-key": marks[0]} if marks else {})
    keys = schema.get("key_properties", [])
    about = {"selected": True, "table-key-properties": keys, **replication}
    return {
        "tap_stream_id": schema["stream"],
        "stream": schema["stream"],
        "schema": schema["schema"],
        "key_properties": keys,
        "metadata": [{"breadcrumb": [], "metadata": about}],
    }
