"""Tenants and their keys: made once, shown once, stored as hashes.

Owns the rows of `tenants` and `tenant_keys`, and what a key looks like: `czk_<key_id>_<secret>`,
where the secret is 256 random bits, so that a plain SHA-256 of it is enough. The tenant of a
request comes from its key alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from catalogzero.backend.schema import installations, tenant_keys, tenants
from catalogzero.backend.shares import Share
from catalogzero.backend.store import Database
from catalogzero.clock import Clock
from catalogzero.errors import ConfigError

MAX_KEYS = 2
CACHE_S = 5.0
MAX_CACHED_KEYS = 10_000
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
KEY_PATTERN = re.compile(r"czk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of the vendor's customers."""

    tenant_id: int
    name: str
    share: Share


@dataclass(frozen=True, slots=True)
class TenantSummary:
    """A tenant with its keys' ids (oldest first), its number of installations and its share."""

    name: str
    created_at: str
    key_ids: list[str]
    installations: int
    share: Share


def add_tenant(connection: Connection, name: str, at: str) -> str:
    """Make a tenant; returns its first key, which is stored nowhere.

    Raises:
        ConfigError: The name is taken, or not a name.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"{name!r} is no tenant name: letters, digits, dot, dash, underscore, at most 100"
        )
    if connection.scalar(select(tenants.c.tenant_id).where(tenants.c.name == name)) is not None:
        raise ConfigError(
            f"there is a tenant {name!r} already: `catalogzero backend tenants rotate {name}` "
            "gives it a second key"
        )
    connection.execute(insert(tenants).values(name=name, created_at=at))
    return _add_key(connection, tenant_id_of(connection, name), at)


def rotate_key(connection: Connection, name: str, at: str) -> str:
    """Give a tenant a second key beside its first; returns it.

    Raises:
        ConfigError: No such tenant, or two keys are active already.
    """
    tenant_id = tenant_id_of(connection, name)
    active = key_ids(connection, tenant_id)
    if len(active) >= MAX_KEYS:
        raise ConfigError(
            f"{name!r} has two keys already: end the old one with "
            f"`catalogzero backend tenants revoke {name} {active[0]}` first"
        )
    return _add_key(connection, tenant_id, at)


def revoke_key(connection: Connection, name: str, key_id: str) -> None:
    """End one key of a tenant.

    Raises:
        ConfigError: No such tenant, or it has no such key.
    """
    one = (tenant_keys.c.tenant_id == tenant_id_of(connection, name)) & (
        tenant_keys.c.key_id == key_id
    )
    if connection.execute(delete(tenant_keys).where(one)).rowcount != 1:
        raise ConfigError(
            f"{name!r} has no key {key_id!r}: `catalogzero backend tenants list` shows them"
        )


def set_share(connection: Connection, name: str, share: dict[str, float | None]) -> Share:
    """Set parts of a tenant's share, each None for what the settings say; the whole share.

    Raises:
        ConfigError: No such tenant.
    """
    one = tenants.c.tenant_id == tenant_id_of(connection, name)
    if share:
        connection.execute(update(tenants).where(one).values(**share))
    return _share(connection.execute(select(tenants).where(one)).one())


def list_tenants(connection: Connection) -> list[TenantSummary]:
    """Every tenant, by name."""
    counts = select(installations.c.tenant_id, func.count()).group_by(installations.c.tenant_id)
    counts = counts.where(installations.c.removed_at.is_(None))
    found = {row[0]: row[1] for row in connection.execute(counts)}
    return [
        TenantSummary(
            row.name,
            row.created_at,
            key_ids(connection, row.tenant_id),
            found.get(row.tenant_id, 0),
            _share(row),
        )
        for row in connection.execute(select(tenants).order_by(tenants.c.name))
    ]


def key_ids(connection: Connection, tenant_id: int) -> list[str]:
    """The ids of a tenant's active keys, oldest first."""
    found = select(tenant_keys.c.key_id).where(tenant_keys.c.tenant_id == tenant_id)
    return list(connection.scalars(found.order_by(tenant_keys.c.created_at)))


class KeyRing:
    """Tells the tenant of a key; what it read is remembered for a few seconds.

    A key that is revoked opens nothing `CACHE_S` seconds later; one that is not known is not looked
    for again before.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._known: dict[str, tuple[float, str, Tenant | None]] = {}

    async def tenant_of(self, key: str) -> Tenant | None:
        """The tenant that a key belongs to, none for a key that is not active."""
        match = KEY_PATTERN.fullmatch(key)
        if match is None:
            return None
        key_id, now = match[1], self._clock.monotonic()
        known = self._known.get(key_id)
        if known is None or known[0] <= now:
            found = await self._database.read(_reader(key_id))
            if len(self._known) >= MAX_CACHED_KEYS:
                self._known.clear()
            known = self._known[key_id] = (now + CACHE_S, *(found or ("", None)))
        return known[2] if hmac.compare_digest(known[1], _digest(match[2])) else None


def _reader(key_id: str) -> Callable[[Connection], tuple[str, Tenant] | None]:
    """What reads a key's digest and tenant."""
    statement = (
        select(tenant_keys.c.digest, tenants)
        .join(tenants, tenants.c.tenant_id == tenant_keys.c.tenant_id)
        .where(tenant_keys.c.key_id == key_id)
    )

    def read(connection: Connection) -> tuple[str, Tenant] | None:
        row = connection.execute(statement).one_or_none()
        return None if row is None else (row.digest, Tenant(row.tenant_id, row.name, _share(row)))

    return read


def tenant_id_of(connection: Connection, name: str) -> int:
    """The id of a tenant by name.

    Raises:
        ConfigError: No such tenant.
    """
    found = connection.scalar(select(tenants.c.tenant_id).where(tenants.c.name == name))
    if found is None:
        raise ConfigError(
            f"there is no tenant {name!r}: `catalogzero backend tenants add {name}` makes one"
        )
    return int(found)


def _share(row: Row[Any]) -> Share:
    """A tenant's share."""
    return Share(row.requests_per_s, row.held_bytes, row.chunks, row.rows_per_s)


def _add_key(connection: Connection, tenant_id: int, at: str) -> str:
    """Make, store and return a key."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    connection.execute(
        insert(tenant_keys).values(
            key_id=key_id, tenant_id=tenant_id, digest=_digest(secret), created_at=at
        )
    )
    return f"czk_{key_id}_{secret}"


def _digest(secret: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()
