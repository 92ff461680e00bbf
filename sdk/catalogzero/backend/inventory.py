"""What the database holds of a tenant, for the operator's lists; it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from catalogzero.backend.schema import installations, sources, uploads
from catalogzero.backend.tenants import tenant_id_of


@dataclass(frozen=True, slots=True)
class InstallationSummary:
    """An installation; times are ISO 8601, `removed_at` None where it was not removed."""

    installation_id: str
    entry: str
    version: str
    last_seen_at: str
    removed_at: str | None


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """A source with what is visible of it; without a name where that is nothing."""

    source_key: str
    stream: str | None
    source: str | None
    params: str | None
    records: int
    source_seq: int
    removed_at: str | None


def read_installations(connection: Connection, tenant: str) -> list[InstallationSummary]:
    """A tenant's installations by id.

    Raises:
        ConfigError: No such tenant.
    """
    own = installations.c.tenant_id == tenant_id_of(connection, tenant)
    return [
        InstallationSummary(
            row.installation_id,
            row.entry or "",
            row.version or "",
            row.last_seen_at,
            row.removed_at,
        )
        for row in connection.execute(
            select(installations).where(own).order_by(installations.c.installation_id)
        )
    ]


def read_sources(connection: Connection, tenant: str, installation_id: str) -> list[SourceSummary]:
    """An installation's sources in the order in which they were first heard of.

    Raises:
        ConfigError: No such tenant.
    """
    shown = (uploads.c.source_id == sources.c.source_id) & uploads.c.visible
    named = [func.max(uploads.c[name]).label(name) for name in ("stream", "source", "params")]
    held = func.coalesce(func.sum(uploads.c.records), 0).label("held")
    found = connection.execute(
        select(sources, *named, held)
        .join(uploads, shown, isouter=True)
        .where(
            sources.c.tenant_id == tenant_id_of(connection, tenant),
            sources.c.installation_id == installation_id,
        )
        .group_by(sources.c.source_id)
        .order_by(sources.c.source_id)
    )
    return [
        SourceSummary(
            row.source_key,
            row.stream,
            row.source,
            row.params,
            int(row.held),
            row.highest_seq,
            row.removed_at,
        )
        for row in found
    ]
