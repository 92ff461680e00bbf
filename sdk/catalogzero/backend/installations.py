"""Installations in the database: who reports, what runs there, how it is.

Owns the rows of `installations` and `health_reports`; every function takes the connection of a
running transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, insert, select

from catalogzero.backend.schema import health_reports, installations, sources
from catalogzero.backend.store import upsert
from catalogzero.protocol.bodies import Installation

KEY = ("tenant_id", "installation_id")


@dataclass(frozen=True, slots=True)
class Report:
    """One health report as it is stored; times are ISO 8601."""

    tenant_id: int
    installation_id: str
    received_at: str
    report: str


def seen(
    connection: Connection, tenant_id: int, installation_id: str, at: str, **columns: Any
) -> None:
    """Note that an installation was heard from at `at`, with what else became known."""
    key = {"tenant_id": tenant_id, "installation_id": installation_id}
    changes = {"last_seen_at": at, **columns}
    upsert(connection, installations, [{**key, "first_seen_at": at, **changes}], KEY, changes)


def register(
    connection: Connection, tenant_id: int, installation_id: str, body: Installation, at: str
) -> tuple[bool, dict[str, int]]:
    """Store what an installation says of itself.

    Returns:
        Whether it registers for the first time, and the highest source_seq of its sources.
    """
    one = (installations.c.tenant_id == tenant_id) & (
        installations.c.installation_id == installation_id
    )
    before = connection.scalar(select(installations.c.registered_at).where(one))
    columns = {
        "registered_at": at,
        "entry": body.entry,
        "version": body.version,
        "handler": body.handler,
        "host": orjson.dumps(body.host).decode(),
        "methods": orjson.dumps(body.methods).decode(),
    }
    seen(connection, tenant_id, installation_id, at, **columns)
    return before is None, highest_of(connection, tenant_id, installation_id)


def highest_of(connection: Connection, tenant_id: int, installation_id: str) -> dict[str, int]:
    """The highest source_seq of each source of an installation."""
    found = connection.execute(
        select(sources.c.source_key, sources.c.highest_seq).where(
            sources.c.tenant_id == tenant_id,
            sources.c.installation_id == installation_id,
            sources.c.highest_seq > 0,
        )
    )
    return {row.source_key: row.highest_seq for row in found}


def store_reports(connection: Connection, reports: Sequence[Report]) -> None:
    """Store health reports, all in the running transaction; the last of each is its health."""
    connection.execute(
        insert(health_reports),
        [
            {
                "tenant_id": report.tenant_id,
                "installation_id": report.installation_id,
                "received_at": report.received_at,
                "report": report.report,
            }
            for report in reports
        ],
    )
    latest = {(report.tenant_id, report.installation_id): report for report in reports}
    rows = [
        {
            "tenant_id": report.tenant_id,
            "installation_id": report.installation_id,
            "first_seen_at": report.received_at,
            "last_seen_at": report.received_at,
            "health_at": report.received_at,
            "health_report": report.report,
        }
        for _, report in sorted(latest.items())
    ]
    upsert(connection, installations, rows, KEY, ("last_seen_at", "health_at", "health_report"))
