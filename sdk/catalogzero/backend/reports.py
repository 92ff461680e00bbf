"""Health reports in the database: each as it came, and what the latest of each says.

Owns the rows of `health_reports`, and the columns of `installations` that a report fills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, case, func, select, tuple_

from catalogzero.backend import generations, hours, witness
from catalogzero.backend.installations import KEY, unix_s
from catalogzero.backend.report_columns import read_report, storable
from catalogzero.backend.schema import health_reports, installations
from catalogzero.backend.store import Columns, insert_many
from catalogzero.protocol.bodies import Acknowledged
from catalogzero.wire.messages import JsonObject

MAX_NAME_CHARS = 200
COLUMNS = ("tenant_id", "installation_id", "last_number", "last_upload_id", "generation")


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One health report as it is stored; times are ISO 8601.

    `acknowledged` is what its folder holds for acknowledged, under the generation that it knows.
    """

    tenant_id: int
    installation_id: str
    received_at: str
    report: str
    known: str | None = None
    acknowledged: Acknowledged | None = None


def store_reports(
    connection: Connection, reports: Sequence[StoredReport]
) -> dict[tuple[int, str], str]:
    """Store health reports, all in the running transaction; the last of each is its health.

    Returns:
        The generation of each installation, by tenant_id and installation_id.
    """
    keys = [{"tenant_id": one.tenant_id, "installation_id": one.installation_id} for one in reports]
    bodies = [orjson.loads(one.report) for one in reports]
    bodies = [body if isinstance(body, dict) else {} for body in bodies]
    said = [read_report(body) for body in bodies]
    stored = [{"received_at": one.received_at, "report": one.report} for one in reports]
    reported = [{**key, **row} for key, row in zip(keys, stored, strict=True)]
    insert_many(connection, health_reports, reported)
    latest = {(one.tenant_id, one.installation_id): place for place, one in enumerate(reports)}
    rows = [
        {
            **keys[place],
            "first_seen_at": reports[place].received_at,
            "last_seen_at": reports[place].received_at,
            "seen_s": unix_s(reports[place].received_at),
            "health_at": reports[place].received_at,
            "health_report": reports[place].report,
            "removed_at": None,
            "entry": name_in(bodies[place], "entry"),
            "version": name_in(bodies[place], "version"),
            "status_since": reports[place].received_at,
            **said[place],
        }
        # sorted: two batches lock their rows in one order, and so never wait for each other
        for _, place in sorted(latest.items())
    ]
    first = {"tenant_id", "installation_id", "first_seen_at"}

    def changes(new: Any) -> Columns:
        changed = {name: new[name] for name in rows[0] if name not in first}
        for name in ("entry", "version"):
            changed[name] = func.coalesce(new[name], installations.c[name])
        is_same = installations.c.status == new["status"]
        known = func.coalesce(installations.c.status_since, new["status_since"])
        changed["status_since"] = case((is_same, known), else_=new["status_since"])
        return changed

    insert_many(connection, installations, rows, KEY, changes)
    times = [one.received_at for one in reports]
    hours.add_reports(connection, zip(keys, times, said, strict=True))
    key = tuple_(installations.c.tenant_id, installations.c.installation_id)
    columns = (installations.c[name] for name in COLUMNS)
    found = connection.execute(select(*columns).where(key.in_(list(latest)))).all()
    current = generations.current(connection)
    answers = {}
    for row in found:
        one = row.tenant_id, row.installation_id
        report = reports[latest[one]]
        answers[one] = witness.heard(connection, current, row, report.acknowledged, report.known)
    return answers


def name_in(body: JsonObject, field: str) -> str | None:
    """What a report calls something; None where it says nothing."""
    value = body.get(field)
    return storable(value, MAX_NAME_CHARS) if isinstance(value, str) and value else None
