"""Taps for tests: one that does what it is asked, its catalog, and its messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from catalogzero.clock import Clock, SystemClock
from catalogzero.cloud.reading.items import StreamRows
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.run_context import Checkpoint
from catalogzero.cloud.settings import TapSource
from catalogzero.cloud.singer.tap_process import TapHost
from catalogzero.cloud.singer.taps import TapItem
from catalogzero.config.settings import Mask

SCRIPT = Path(__file__).with_name("faulty_tap.py")
NAME = "singer:crm"
Given = list[tuple[str, Any]]
"""What a reading gave: stream and rows, or `checkpoint` and its value."""


def entry(name: str, method: str = "INCREMENTAL", **more: Any) -> dict[str, Any]:
    """A selected stream of a catalog, with the key `id` and the replication key `at`."""
    root = {"selected": True, "replication-method": method, "inclusion": "available"}
    fields = {"id": {"type": "integer"}, "at": {"type": "string"}, "email": {"type": "string"}}
    made = {
        "tap_stream_id": name,
        "stream": name,
        "schema": {"type": "object", "properties": fields},
        "key_properties": ["id"],
        "replication_key": "at" if method == "INCREMENTAL" else None,
        "metadata": [{"breadcrumb": [], "metadata": root}],
    }
    return {**made, **more}


def schema(stream: str, *key: str) -> dict[str, Any]:
    """A SCHEMA."""
    return {"type": "SCHEMA", "stream": stream, "schema": {}, "key_properties": [*(key or ["id"])]}


def record(stream: str, number: Any, **more: Any) -> dict[str, Any]:
    """A RECORD."""
    row = {"id": number, **more}
    return {"type": "RECORD", "stream": stream, "record": row, "time_extracted": "2026-01-01"}


def state(**bookmarks: Any) -> dict[str, Any]:
    """A STATE with a bookmark for each stream."""
    return {"type": "STATE", "value": {"bookmarks": bookmarks}}


class FaultyTap:
    """A tap in a folder, and readings of it.

    Attributes:
        lines: What its runs logged.
        is_cancelled: Asked while it is read.
    """

    def __init__(self, folder: Path, *streams: dict[str, Any], **config: Any) -> None:
        self.folder = folder
        self.command = folder / "tap"
        self.command.write_text(f"#!{sys.executable}\n{SCRIPT.read_text()}")
        self.command.chmod(0o755)
        self.catalog = folder / "catalog.json"
        self.catalog.write_text(json.dumps({"streams": streams}))
        self.seen_file, self.config_file = folder / "seen.json", folder / "tap.json"
        self.config_file.touch(mode=0o600)
        self.config_file.write_text(json.dumps({"folder": str(folder), **config}))
        self.lines: list[dict[str, Any]] = []
        self.is_cancelled: Callable[[], bool] = lambda: False
        self.clock: Clock = SystemClock()
        self.more: dict[str, Any] = {"catalog_file": self.catalog}
        self.does()

    def does(self, *steps: Any) -> FaultyTap:
        """What it does in its next runs."""
        (self.folder / "steps.json").write_text(json.dumps(steps))
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The tap as a handler's config names it."""
        paths = {"command": self.command, "config_file": self.config_file}
        return {key: str(value) for key, value in {**paths, **self.more}.items() if value}

    @property
    def seen(self) -> dict[str, Any]:
        """What its last run was given."""
        found: dict[str, Any] = json.loads(self.seen_file.read_text())
        return found

    def item(self, *, batch_rows: int = 10_000, **more: Any) -> TapItem:
        """The tap as an item of a run."""
        options = ReadOptions(batch_rows, **more)
        item = item_of(self.config, self.lines, options)
        host = replace(item.host, clock=self.clock, is_cancelled=lambda: self.is_cancelled())
        return replace(item, host=host)

    def read(
        self,
        after: dict[str, Any] | None = None,
        bad: BadRecords | None = None,
        given: Given | None = None,
        **more: Any,
    ) -> tuple[Given, dict[str, Any]]:
        """One reading, as it was given, and its positions at the end."""
        given = [] if given is None else given
        with self.item(**more).open(after, bad or BadRecords("fail")) as reading:
            for one in reading.batches():
                given.append(shown(one))
            return given, reading.until


def item_of(config: dict[str, Any], lines: list[dict[str, Any]], options: ReadOptions) -> TapItem:
    """A tap that a config names, as an item of a run; what it logs goes to `lines`."""
    source, mask = TapSource(**config), Mask()
    mask.learn(source)

    def keep(logger: Any, name: str, event: Any) -> Any:
        lines.append({"level": name, **event})
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[keep])
    host = TapHost(log, mask, SystemClock(), lambda: False)
    return TapItem(NAME, source, options, allow_empty=False, host=host)


def shown(one: StreamRows | Checkpoint) -> tuple[str, Any]:
    """What a reading gave, to compare."""
    if isinstance(one, Checkpoint):
        return "checkpoint", {name: bookmark_of(position) for name, position in one.value.items()}
    return one.stream, one.batch


def bookmark_of(position: Any) -> Any:
    """What a position says; None where there is none."""
    if position is None:
        return None
    said = json.loads(position["json"])
    return said.get("bookmark", said.get("state"))


def ids(given: Given) -> Iterator[tuple[str, Any]]:
    """The rows by their ids, and the checkpoints."""
    for name, rows in given:
        yield name, rows if name == "checkpoint" else [row["id"] for row in rows]


if __name__ == "__main__":  # one that reads a tap, to be killed
    with item_of(json.loads(sys.argv[1]), [], ReadOptions(1)).open(
        None, BadRecords("fail")
    ) as killed:
        for batch in killed.batches():
            sys.stdout.write(f"{batch}\n")
            sys.stdout.flush()
