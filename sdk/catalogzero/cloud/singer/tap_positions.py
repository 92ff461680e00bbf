"""Positions: where each stream of a tap was left, taken from its STATE and given back with one.

A position is `{"by": replication key, "json": text}`. The text is `{"bookmark": …}` where the state
has bookmarks by stream, as that of most taps, and `{"state": the whole}` where it has not; a text,
as numbers in it keep digits that JSON readers drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from catalogzero.cloud.reading.items import MAX_POSITION_BYTES
from catalogzero.cloud.reading.readers import json_row
from catalogzero.cloud.rows.values import json_lines
from catalogzero.cloud.singer.tap_catalog import TapStream
from catalogzero.errors import FailedError
from catalogzero.wire.messages import JsonObject, encode_json

_UNSETTLED = ("progress_markers", "starting_replication_value")
"""Parts of a bookmark that the tap itself does not go on from."""


class Position(TypedDict):
    """Where a stream was left: see above."""

    by: str | None
    json: str


def positions_in(state: Any, streams: Mapping[str, TapStream], source: str) -> dict[str, Position]:
    """The positions of some streams that a STATE holds.

    Raises:
        FailedError: One is too long to be kept.
    """
    found = dict[str, Position]()
    if not isinstance(state, dict):
        return found
    bookmarks = state.get("bookmarks")
    for name, stream in streams.items():
        said = {"state": state}
        if isinstance(bookmarks, dict):
            said = {"bookmark": settled(bookmarks.get(name, bookmarks.get(stream.label)))}
        if not any(said.values()):
            continue
        text = json_lines([said]).decode().strip()
        found[name] = {"by": stream.replication_key, "json": text}
        size = len(encode_json(found[name]))
        if size > MAX_POSITION_BYTES:
            raise FailedError(
                f"{source}: the bookmark of stream {name!r} has {size} bytes, and at most "
                f"{MAX_POSITION_BYTES} are kept (is it one for each of many partitions?): read the "
                "stream as FULL_TABLE, or divide what the tap reads"
            )
    return found


def settled(bookmark: Any) -> Any:
    """A bookmark without what the tap itself does not go on from."""
    if isinstance(bookmark, dict):
        return {key: settled(one) for key, one in bookmark.items() if key not in _UNSETTLED}
    return [settled(one) for one in bookmark] if isinstance(bookmark, list) else bookmark


def state_of(positions: Mapping[str, Position | None]) -> JsonObject | None:
    """The state that a tap is given to go on from; None where it is to read all.

    A state that has no bookmarks by stream is given only where it is that of all streams.
    """
    said = {name: json_row(one["json"].encode()) for name, one in positions.items() if one}
    wholes = [one["state"] for one in said.values() if "state" in one]
    if wholes:
        is_of_all = len(wholes) == len(positions) and all(one == wholes[0] for one in wholes)
        return dict(wholes[0]) if is_of_all else None
    return {"bookmarks": {name: one["bookmark"] for name, one in said.items()}} if said else None


def refuse_other_key(
    positions: Mapping[str, Position | None], streams: Mapping[str, TapStream], source: str
) -> None:
    """Refuse to go on by another column than the position is of.

    Raises:
        FailedError: One is to.
    """
    for name, position in positions.items():
        now = streams[name].replication_key
        if position and position["by"] != now:
            raise FailedError(
                f"{source}: stream {name!r} went on by {position['by']!r} until now, and is to go "
                f"on by {now!r}: rows would be missing; call it once with full: true"
            )
