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
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from catalogzero.backend.schema import installations, tenant_keys, tenants
from catalogzero.backend.shares import Share
from catalogzero.backend.store import BackendDatabase
from catalogzero.clock import Clock
from catalogzero.config.logs import Logger
from catalogzero.errors import ConfigError

MAX_KEYS = 2
CACHE_S = 5.0
MAX_CACHED_KEYS = 10_000
KNOCK_LASTS = timedelta(days=1)
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


def revoke_key(connection: Connection, name: str, key_id: str, at: str) -> None:
    """End one key of a tenant.

    Raises:
        ConfigError: No such tenant, or it has no such key.
    """
    one = {"tenant_id": tenant_id_of(connection, name), "key_id": key_id, "revoked_at": None}
    # its row stays: whoever still knocks with it is known by it
    ended = update(tenant_keys).filter_by(**one).values(revoked_at=at)
    if connection.execute(ended).rowcount != 1:
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
    found = select(tenant_keys.c.key_id).filter_by(tenant_id=tenant_id, revoked_at=None)
    return list(connection.scalars(found.order_by(tenant_keys.c.created_at)))


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What was read of a key: `tenant` is None where there is no such key."""

    read_s: float
    digest: str = ""
    tenant: Tenant | None = None
    revoked_at: str | None = None


@dataclass(slots=True)
class Knock:
    """Requests with a key that was revoked, since this process began; times are ISO 8601."""

    tenant: str
    key_id: str
    revoked_at: str
    last_at: str = ""
    times: int = 0


class KeyRing:
    """Gives the tenant of a key; what it read is remembered for a few seconds.

    A key that is revoked opens nothing `CACHE_S` seconds later; one that is not known is not looked
    for again before. Who goes on knocking with a revoked key is remembered.
    """

    def __init__(self, database: BackendDatabase, clock: Clock, log: Logger) -> None:
        self._database, self._clock, self._log = database, clock, log
        self._known: dict[str, KnownKey] = {}
        self._knocks: dict[str, Knock] = {}

    def knocks(self) -> list[Knock]:
        """The revoked keys that were shown within a day, the longest revoked first."""
        before = (self._clock.now() - KNOCK_LASTS).isoformat()
        recent = (one for one in self._knocks.values() if one.last_at > before)
        return sorted(recent, key=lambda one: one.revoked_at)

    async def tenant_of(self, key: str) -> Tenant | None:
        """The tenant that a key belongs to, none for a key that is not active."""
        match = KEY_PATTERN.fullmatch(key)
        if match is None:
            return None
        key_id, now = match[1], self._clock.monotonic()
        known = self._known.get(key_id)
        if known is None or known.read_s + CACHE_S <= now:
            found = await self._database.read(lambda connection: read_key(connection, key_id, now))
            was_open = known is not None and known.tenant and not known.revoked_at
            if was_open and found.revoked_at and found.tenant:
                self._log.warning("key_revoked", tenant=found.tenant.name, key_id=key_id)
            # unknown keys are kept too: those that are made up must not fill the memory
            if len(self._known) >= MAX_CACHED_KEYS:
                self._known.clear()
            known = self._known[key_id] = found
        if known.tenant is None or not hmac.compare_digest(known.digest, _digest(match[2])):
            return None
        if known.revoked_at is None:
            return known.tenant
        new = Knock(known.tenant.name, key_id, known.revoked_at)
        knock = self._knocks.setdefault(key_id, new)
        knock.last_at, knock.times = self._clock.now().isoformat(), knock.times + 1
        return None


def read_key(connection: Connection, key_id: str, now_s: float) -> KnownKey:
    """What is known of a key at a moment."""
    statement = (
        select(tenant_keys.c.digest, tenant_keys.c.revoked_at, tenants)
        .join(tenants, tenants.c.tenant_id == tenant_keys.c.tenant_id)
        .where(tenant_keys.c.key_id == key_id)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return KnownKey(now_s)
    owner = Tenant(row.tenant_id, row.name, _share(row))
    return KnownKey(now_s, row.digest, owner, row.revoked_at)


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
    row = {"key_id": key_id, "tenant_id": tenant_id, "digest": _digest(secret), "created_at": at}
    connection.execute(insert(tenant_keys).values(row))
    return f"czk_{key_id}_{secret}"


def _digest(secret: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()
