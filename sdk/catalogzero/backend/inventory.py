"""What the database holds of a tenant, for the operator's lists; it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, cast, func, select

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
    named = (func.coalesce(installations.c[name], "") for name in ("entry", "version"))
    one, own = installations.c.installation_id, installations.c.tenant_id
    found: Select[Any] = (
        select(one, *named, installations.c.last_seen_at, installations.c.removed_at)
        .where(own == tenant_id_of(connection, tenant))
        .order_by(one)
    )
    return [InstallationSummary(*row) for row in connection.execute(found)]


def read_sources(connection: Connection, tenant: str, installation_id: str) -> list[SourceSummary]:
    """An installation's sources in the order in which they were first heard of.

    Raises:
        ConfigError: No such tenant.
    """
    shown = (uploads.c.source_id == sources.c.source_id) & uploads.c.visible
    named = [func.max(uploads.c[name]) for name in ("stream", "source", "params")]
    held = cast(func.coalesce(func.sum(uploads.c.records), 0), BigInteger)
    found: Select[Any] = (
        select(sources.c.source_key, *named, held, sources.c.highest_seq, sources.c.removed_at)
        .join(uploads, shown, isouter=True)
        .where(
            sources.c.tenant_id == tenant_id_of(connection, tenant),
            sources.c.installation_id == installation_id,
        )
        .group_by(sources.c.source_id)
        .order_by(sources.c.source_id)
    )
    return [SourceSummary(*row) for row in connection.execute(found)]
