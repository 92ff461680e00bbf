"""Health reports in the database: each as it came, and what the latest of each says.

Owns the rows of `health_reports`, and the columns of `installations` that a report fills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, func, select, tuple_

from catalogzero.backend import generations, hours, witness
from catalogzero.backend.installations import KEY, unix_s
from catalogzero.backend.report_columns import read_report, storable
from catalogzero.backend.schema import health_reports, installations
from catalogzero.backend.store import insert_many
from catalogzero.protocol.bodies import Acknowledged

MAX_NAME_CHARS = 200
COLUMNS = ("tenant_id", "installation_id", "last_number", "last_upload_id", "generation")


@dataclass(frozen=True, slots=True)
class Report:
    """One health report as it is stored; times are ISO 8601.

    `acknowledged` is what its folder holds for acknowledged, under the generation that it knows.
    """

    tenant_id: int
    installation_id: str
    received_at: str
    report: str
    known: str | None = None
    acknowledged: Acknowledged | None = None


def store_reports(connection: Connection, reports: Sequence[Report]) -> dict[tuple[int, str], str]:
    """Store health reports, all in the running transaction; the last of each is its health.

    Returns:
        The generation of each installation, by tenant_id and installation_id.
    """
    keys = [{"tenant_id": one.tenant_id, "installation_id": one.installation_id} for one in reports]
    bodies = [_body(one.report) for one in reports]
    said = [read_report(body) for body in bodies]
    stored = [{"received_at": one.received_at, "report": one.report} for one in reports]
    reported = [{**key, **row} for key, row in zip(keys, stored, strict=True)]
    insert_many(connection, health_reports, reported)
    latest = {tuple(key.values()): place for place, key in enumerate(keys)}
    rows = [_row(reports[place], bodies[place], said[place]) for _, place in sorted(latest.items())]
    first = {"tenant_id", "installation_id", "first_seen_at"}

    def changes(new: Any) -> dict[str, Any]:
        changed = {name: new[name] for name in rows[0] if name not in first}
        for name in ("entry", "version"):
            changed[name] = func.coalesce(new[name], installations.c[name])
        return changed

    insert_many(connection, installations, rows, KEY, changes)
    hours.add_reports(
        connection,
        [
            (key, one.received_at, found)
            for key, one, found in zip(keys, reports, said, strict=True)
        ],
    )
    return _generations(connection, {key: reports[place] for key, place in latest.items()})


def _generations(
    connection: Connection, reports: Mapping[Any, Report]
) -> dict[tuple[int, str], str]:
    """The generation of each installation that reports, after what it holds for acknowledged."""
    key = tuple_(installations.c.tenant_id, installations.c.installation_id)
    columns = (installations.c[name] for name in COLUMNS)
    rows = connection.execute(select(*columns).where(key.in_(list(reports)))).all()
    found = {(row.tenant_id, row.installation_id): row for row in rows}
    current = generations.current(connection)
    return {
        one: witness.heard(connection, current, row, reports[one].acknowledged, reports[one].known)
        for one, row in found.items()
    }


def _body(text: str) -> dict[str, Any]:
    """What a report says; nothing where it is no object."""
    body = orjson.loads(text)
    return body if isinstance(body, dict) else {}


def _row(report: Report, body: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """The row of an installation after a report."""
    at = report.received_at
    return {
        "tenant_id": report.tenant_id,
        "installation_id": report.installation_id,
        "first_seen_at": at,
        "last_seen_at": at,
        "seen_s": unix_s(at),
        "health_at": at,
        "health_report": report.report,
        "removed_at": None,
        "entry": _name(body.get("entry")),
        "version": _name(body.get("version")),
        **said,
    }


def _name(value: Any) -> str | None:
    """What a report calls something; None where it says nothing."""
    return storable(value, MAX_NAME_CHARS) if isinstance(value, str) and value else None
