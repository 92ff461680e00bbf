"""Positions: where each stream of a tap was left, taken from its STATE and given back with one.

A position is `{"by": replication key, "bookmark": …}` where the state has bookmarks by stream, as
that of most taps; `{"by": …, "state": the whole}` where it has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from catalogzero.cloud.singer.tap_catalog import TapStream
from catalogzero.errors import FailedError
from catalogzero.wire.messages import JsonObject

MAX_POSITION_BYTES = 4_096
_UNSETTLED = ("progress_markers", "starting_replication_value")
"""Parts of a bookmark that the tap itself does not go on from."""


def positions_in(
    state: Any, streams: Mapping[str, TapStream], source: str
) -> dict[str, JsonObject]:
    """The positions of some streams that a STATE holds.

    Raises:
        FailedError: One is too long to be kept.
    """
    bookmarks = state.get("bookmarks") if isinstance(state, dict) else None
    found = dict[str, JsonObject]()
    for name, stream in streams.items():
        if isinstance(bookmarks, dict):
            position = {"bookmark": settled(bookmarks.get(name, bookmarks.get(stream.label)))}
        else:
            position = {"state": state}
        if not any(position.values()):
            continue
        found[name] = {"by": stream.replication_key, **position}
        size = len(orjson.dumps(found[name]))
        if size > MAX_POSITION_BYTES:
            raise FailedError(
                f"{source}: the bookmark of stream {name!r} has {size} bytes, and at most "
                f"{MAX_POSITION_BYTES} are kept (one for each of many partitions?): read the "
                "stream as FULL_TABLE, or divide what the tap reads"
            )
    return found


def settled(bookmark: Any) -> Any:
    """A bookmark without what the tap itself does not go on from."""
    if isinstance(bookmark, dict):
        kept = {key: one for key, one in bookmark.items() if key not in _UNSETTLED}
        return {key: settled(one) for key, one in kept.items()}
    return [settled(one) for one in bookmark] if isinstance(bookmark, list) else bookmark


def state_of(positions: Mapping[str, JsonObject | None]) -> JsonObject | None:
    """The state that a tap is given to go on from; None where it is to read all.

    A state that has no bookmarks by stream is given only where it is that of all streams.
    """
    given = {name: position for name, position in positions.items() if position}
    wholes = [position["state"] for position in given.values() if "state" in position]
    if wholes:
        same = len(wholes) == len(positions) and all(one == wholes[0] for one in wholes)
        return {"value": wholes[0]}["value"] if same else None
    if not given:
        return None
    return {"bookmarks": {name: position["bookmark"] for name, position in given.items()}}


def refuse_other_key(
    positions: Mapping[str, JsonObject | None], streams: Mapping[str, TapStream], source: str
) -> None:
    """Refuse to go on by another column than the position is of.

    Raises:
        FailedError: One is to.
    """
    for name, position in positions.items():
        now = streams[name].replication_key
        if position and position["by"] != now:
            raise FailedError(
                f"{source}: stream {name!r} went on by {position['by']!r} until now, and is to by "
                f"{now!r}: rows would be missing; call it once with full: true"
            )
