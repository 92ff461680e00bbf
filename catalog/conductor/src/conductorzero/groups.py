"""Handlers with several instances: how each is as a whole, and what its hosts have to do.

A pure function of the board. A group is as its instances are, by one rule:

- `failing`: no instance answers, or one of them is in a trouble that a person has to end.
- `warning`: some instances do not answer while others take the calls, or a warning of one.
- `well`: everything else; an instance that sleeps or is drained is what somebody asked for.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from conductorzero.board import Board, Row
from conductorzero.fleet import JsonObject, number
from conductorzero.troubles import CAUSES, Cause, Trouble

BY_ACTIVITY = ("active", "idle", "sleeping", "draining", "unknown", "unreachable")
"""States, that of a group first: as long as one instance is at work, the group is."""

SUMMED = ("memory_mb", "worker_memory_mb", "cpu_percent", "in_flight", "queued", "runs_total")


@dataclass(frozen=True, slots=True)
class Group:
    """One handler with its instances, of which there is at least one."""

    handler_id: str
    rows: list[Row]

    @property
    def state(self) -> str:
        """The state of its busiest instance."""
        states = {row.state for row in self.rows}
        return next(state for state in BY_ACTIVITY if state in states)

    @property
    def away(self) -> list[str]:
        """The names of the instances that do not answer."""
        return [str(row.peer.instance_id) for row in self.rows if row.state == "unreachable"]

    @property
    def troubles(self) -> list[Trouble]:
        """What is wrong with it, worst first: each cause once, since it began at one of them."""
        found: dict[Cause, Trouble] = {}
        for row in self.rows:
            for one in row.troubles:
                known = found.setdefault(one.cause, one)
                # All are away since the last of them is.
                is_later = (one.since or "") > (known.since or "")
                if is_later == (one.cause == "no_answer"):
                    found[one.cause] = one
        if "instance_away" in found:
            away, one = self.away, found["instance_away"]
            words = f"{len(away)} of {len(self.rows)} away"
            found["instance_away"] = replace(one, words=words, why=f"{', '.join(away)}: {one.why}")
        return sorted(found.values(), key=lambda one: CAUSES.index(one.cause))

    def health(self) -> JsonObject:
        """How it is, in a few words."""
        away, tones = self.away, {one.tone for one in self.troubles}
        health = "warning" if tones == {"warn"} else "failing" if tones else "well"
        answering = sum(row.alive for row in self.rows)
        return {
            **{"health": health, "state": self.state, "instances": len(self.rows)},
            **{"answering": answering, "away": away, **places_of(self.rows)},
        }

    def as_json(self) -> JsonObject:
        """The group as the API shows it: as a handler's row, with `health` and its `members`."""
        alive = [row for row in self.rows if row.alive]
        state = self.state
        since = [row.since for row in self.rows if row.state == state]
        took = [row.response_time_ms for row in alive if row.response_time_ms is not None]
        figures = {
            name: sum(number(row.metrics.get(name)) or 0 for row in alive) if alive else None
            for name in SUMMED
        }
        return {
            **{"key": self.handler_id, "handler_id": self.handler_id, **self.health()},
            "since": (max(since) if state == "unreachable" else min(since)).isoformat(),
            "troubles": [one.as_json() for one in self.troubles],
            "response_time_ms": max(took, default=None),
            **figures,
            "members": [row.peer.key for row in self.rows],
            "hosts": hosts_of(self.rows),
        }


def groups_of(board: Board) -> Iterator[Group]:
    """The handlers that have instances, in the order of the board."""
    for handler_id, rows in board.instances.items():
        yield Group(handler_id, rows)


def hosts_of(rows: Iterable[Row]) -> list[JsonObject]:
    """What each host of instances has to do, by its name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.peer.instance_id:
            found.setdefault(row.peer.host, []).append(row)
    return [
        {
            **{"host": host, "instances": len(rows), "answering": sum(row.alive for row in rows)},
            **places_of(rows),
        }
        for host, rows in sorted(found.items())
    ]


def places_of(rows: Iterable[Row]) -> JsonObject:
    """The places of those that answer, None where nobody says, and the runs that are there."""
    alive = [row for row in rows if row.alive]
    places = [row.peer.places for row in alive if row.peer.places is not None]
    return {"places": sum(places) if places else None, "load": sum(row.load or 0 for row in alive)}
