"""A tap as an item of a run: `data_source: "singer:<name>"`.

Its selected streams are read in one pass, each from a position of its own. What it sends before a
STATE is what that covers: a range may end there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from catalogzero.cloud.reading.authors import RunAuthor
from catalogzero.cloud.reading.items import Item, Plan, Reading, StreamRows
from catalogzero.cloud.reading.readers import json_row, rows_at_once
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.rows.streams import Stream
from catalogzero.cloud.rows.values import Row, fingerprint, json_lines
from catalogzero.cloud.run_context import Checkpoint
from catalogzero.cloud.settings import TapSource
from catalogzero.cloud.singer.tap_catalog import (
    TapStream,
    plans_of,
    read_catalog,
    select_all,
    selected_streams,
)
from catalogzero.cloud.singer.tap_positions import (
    Position,
    positions_in,
    refuse_other_key,
    state_of,
)
from catalogzero.cloud.singer.tap_process import (
    MAX_LINE_BYTES,
    TapHost,
    TapProcess,
    refuse_unusable,
)
from catalogzero.errors import BadParamsError
from catalogzero.protocol.identities import digest_of
from catalogzero.wire.messages import JsonObject

PREFIX = "singer:"
CHECKPOINT_S = 10.0
"""A range ends at a STATE once it has a batch of rows, or is this old."""


def tap_item(author: RunAuthor, data_source: str, options: ReadOptions) -> TapItem:
    """The item of `singer:<name>`.

    Raises:
        BadParamsError: The config has no tap of that name, or all items of a run are to be one.
    """
    name, taps = data_source.removeprefix(PREFIX), author.settings.taps
    message = ""
    if name not in taps:
        message = f"no tap {name!r} in the config's taps; there are: {', '.join(sorted(taps))}"
    elif author.unit == "run":
        message = f'{data_source}: a tap\'s streams are uploads of their own: take unit = "run" out'
    if message:
        raise BadParamsError(message, details=[{"field": "data_source", "message": message}])
    host = TapHost(author.log, author.mask, author.clock, lambda: author.cancelled)
    return TapItem(data_source, taps[name], options, author.settings.allow_empty, host)


@dataclass(frozen=True)
class TapItem(Item):
    """A tap that the config names."""

    name: str
    source: TapSource
    options: ReadOptions
    allow_empty: bool
    host: TapHost
    positions_each: ClassVar[bool] = True

    def plans(self, declared: Sequence[Stream]) -> tuple[Plan, ...]:
        """See `Item.plans`: what is declared, or where nothing is, each selected stream.

        Raises:
            BadParamsError: A selected stream is not declared, cannot be read, or has no key.
        """
        return plans_of(self.streams, declared, self.catalog_name)

    def open(self, after: Mapping[str, Position | None] | None, bad: BadRecords) -> TapReading:
        """See `Item.open`; of all streams from their beginnings where nothing is given."""
        return TapReading(self, dict.fromkeys(self.streams) if after is None else after, bad)

    @property
    def catalog_name(self) -> str:
        """The catalog, for errors."""
        return str(self.source.catalog_file or f"{self.name} (--discover)")

    @property
    def watermarks(self) -> dict[str, str]:
        """The columns whose values leave with positions, by stream."""
        return {one.name: one.watermark for one in self.streams.values() if one.watermark}

    @cached_property
    def streams(self) -> dict[str, TapStream]:
        """The selected streams, by name.

        Raises:
            BadParamsError: The catalog cannot be used.
        """
        return selected_streams(self.catalog, self.catalog_name)

    @cached_property
    def catalog(self) -> JsonObject:
        """What the file holds, else what the tap discovers.

        Raises:
            ConfigError: The file cannot be read.
            FailedError: The tap fails, or says what is no catalog.
        """
        refuse_unusable(self.source)
        if self.source.catalog_file is not None:
            return read_catalog(self.source.catalog_file)
        with tempfile.TemporaryDirectory() as folder:
            tap = TapProcess(self.name, self.source, ["--discover"], Path(folder), self.host)
            with tap:
                text = bytearray()
                for block in tap.blocks():
                    text += block
                    if len(text) > MAX_LINE_BYTES:
                        raise tap.failure("its catalog is longer than 64 MiB")
                try:
                    return select_all(json_row(bytes(text)))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise tap.failure(f"what it discovers is no catalog: {error}") from None


class TapReading(Reading):
    """One pass over a tap's streams, as the tap sends them."""

    def __init__(
        self, item: TapItem, after: Mapping[str, Position | None], bad: BadRecords
    ) -> None:
        super().__init__(dict(after))
        self._item, self._bad = item, bad
        self._merged = {name: one for name, one in item.streams.items() if one.mode == "merge"}
        self._merged = {name: one for name, one in self._merged.items() if name in after}
        self.until = {name: after[name] for name in self._merged}
        self._rows: dict[str, list[Row]] = {name: [] for name in after if name in item.streams}
        self._counts = dict.fromkeys(self._rows, 0)
        self._digests = {name: hashlib.sha256() for name in self._rows if name not in self._merged}
        labels = Counter(one.label for one in item.streams.values())
        self._names = {one.label: name for name, one in item.streams.items()}
        self._names = {one: name for one, name in self._names.items() if labels[one] == 1}
        self._names |= {name: name for name in item.streams}
        self._described: set[str] = set()
        self._unknown: set[str] = set()
        self._line = 0

    def __enter__(self) -> Self:
        item = self._item
        refuse_other_key(self.until, self._merged, item.name)
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        catalog = item.source.catalog_file
        if catalog is None:
            catalog = folder / "catalog.json"
            catalog.write_bytes(json_lines([item.catalog]))
        arguments = ["--catalog", str(catalog.absolute())]
        if (state := state_of(self.until)) is not None:
            (folder / "state.json").write_bytes(json_lines([state]))
            arguments += ["--state", str(folder / "state.json")]
        tap = TapProcess(item.name, item.source, arguments, folder, item.host)
        self._tap = self._stack.enter_context(tap)
        return self

    def batches(self) -> Iterator[StreamRows | Checkpoint]:
        """See `Reading.batches`.

        Raises:
            FailedError: The tap ended badly, or says what cannot be followed.
        """
        clock, batch_rows = self._item.host.clock, self._item.options.batch_rows
        begun_at, rows, waiting = clock.monotonic(), 0, 0
        moved = dict[str, Position]()
        for message in self._messages():
            match message.get("type"):
                case "RECORD":
                    waiting += self._take(message)
                    if waiting >= batch_rows:
                        rows, waiting = rows + waiting, 0
                        yield from self._flushed()
                case "STATE":
                    moved |= self._moved(message.get("value"))
                    is_due = rows + waiting >= batch_rows
                    if moved and (is_due or clock.monotonic() - begun_at >= CHECKPOINT_S):
                        yield from self._flushed()
                        yield Checkpoint(dict(moved))
                        begun_at, rows, waiting = clock.monotonic(), 0, 0
                        moved.clear()
                case "SCHEMA":
                    self._describe(message)
                case kind:
                    self._pass_by(kind)
        yield from self._flushed()
        self._refuse_silent()

    def _messages(self) -> Iterator[Row]:
        """What the tap says, message by message."""
        for block in self._tap.blocks():
            lines = block.split(b"\n")[:-1]
            found = rows_at_once(block, lines)
            if found is not None:
                yield from found
            else:
                for number, line in enumerate(lines, self._line + 1):
                    if line and not line.isspace() and (one := self._one(line, number)):
                        yield one
            self._line += len(lines)

    def _one(self, line: bytes, number: int) -> Row | None:
        """The message of a line; None of a malformed record that is passed over."""
        try:
            return json_row(line)
        except (ValueError, ArithmeticError, RecursionError) as error:
            why, said = str(error), None
        with suppress(ValueError, RecursionError):
            said = json.loads(line)
        text = line.decode("utf-8", "backslashreplace")
        if not isinstance(said, dict) or said.get("type") != "RECORD":
            raise self._tap.failure(
                f"line {number} of its output is no Singer message ({why}): {text[:60]!r}"
            )
        self._bad.take(self._item.name, number, f"not a JSON object: {why}", text)
        return None

    def _take(self, message: Row) -> int:
        """Keep the row of a RECORD; how many rows wait more for it."""
        name, row = self._names.get(str(message.get("stream"))), message.get("record")
        if name is None:
            raise self._tap.failure(
                f"it sends records of a stream {message.get('stream')!r} that "
                f"{self._item.catalog_name} does not select"
            )
        if name not in self._described or not isinstance(row, dict):
            why = "before its SCHEMA" if isinstance(row, dict) else "that is no object"
            raise self._tap.failure(f"it sends a record of stream {name!r} {why}")
        if name not in self._rows:
            return 0  # nothing of it is read in this pass
        for column in self._item.streams[name].deselected & row.keys():
            del row[column]
        self._rows[name].append(row)
        return 1

    def _flushed(self) -> Iterator[StreamRows]:
        """The rows that wait, a batch for each stream."""
        for name, rows in self._rows.items():
            if rows:
                self._rows[name] = []
                self._counts[name] += len(rows)
                if name in self._digests:
                    self._digests[name].update(fingerprint(rows))
                if self._item.options.arrow:
                    from catalogzero.cloud.rows.tables import table_of_rows

                    yield StreamRows(name, table_of_rows(rows))
                else:
                    yield StreamRows(name, rows)

    def _moved(self, state: Any) -> dict[str, Position]:
        """The positions that a STATE moves on."""
        found = positions_in(state, self._merged, self._item.name)
        moved = {name: one for name, one in found.items() if one != self.until[name]}
        self.until |= moved
        return moved

    def _describe(self, message: Row) -> None:
        """Take a SCHEMA: what follows are rows with the key that was planned."""
        name = self._names.get(str(message.get("stream")))
        if name is None:
            return  # such as of a parent, which is read for its children alone
        self._described.add(name)
        said = [str(column) for column in message.get("key_properties") or ()]
        planned = self._item.streams[name].key
        if name in self._merged and planned and said and sorted(said) != sorted(planned):
            raise self._tap.failure(
                f"the key of stream {name!r} is {', '.join(said)}, and {', '.join(planned)} in "
                f"{self._item.catalog_name}: discover the catalog again"
            )

    def _pass_by(self, kind: Any) -> None:
        """Meet a message that brings no rows."""
        if kind == "BATCH":
            raise self._tap.failure(
                "it sends BATCH messages, files instead of rows: take `batch_config` out of its "
                "config"
            )
        if not isinstance(kind, str):
            raise self._tap.failure("it writes an object without the type of a Singer message")
        # A stream that is sent whole replaces all that was: older versions go by themselves.
        if kind != "ACTIVATE_VERSION" and kind not in self._unknown:
            self._unknown.add(kind)
            source = self._item.name
            self._item.host.log.warning("tap: unknown message", source=source, type=kind[:60])

    def _refuse_silent(self) -> None:
        """Refuse the end of a pass in which a stream was not spoken of, or came to no position.

        Raises:
            FailedError: There is one; it is named.
        """
        silent = sorted(self._rows.keys() - self._described)
        if silent and not self._item.allow_empty:
            raise self._tap.failure(
                f"it never spoke of stream {silent[0]!r} (no SCHEMA), which may be empty or left "
                "out: deselect it, or set `allow_empty: true` to take it for empty"
            )
        for name in self._merged:
            if self._counts[name] and self.until[name] is None:
                raise self._tap.failure(
                    f"it sent rows of stream {name!r}, and no bookmark from which to go on: give "
                    "it a replication key, or read it as FULL_TABLE"
                )

    def content_of(self, stream: str) -> str | None:
        """See `Reading.content_of`."""
        found = self._digests.get(stream)
        return self.content() if found is None else found.hexdigest()

    def content(self) -> str:
        """See `Reading.content`: of all streams that are read whole."""
        return digest_of({name: found.hexdigest() for name, found in self._digests.items()})
