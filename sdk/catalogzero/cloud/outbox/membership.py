"""Who is at work on a shared outbox: members with leases, and which upload is whose.

A member is one start of one instance. What it builds and what it has taken to send is its own while
its lease lasts; the database's clock says how long. Each call belongs into a transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from catalogzero.cloud.outbox.store import (
    BEHIND_A_DEAD_LETTER,
    BEHIND_ANOTHER,
    IN_ORDER,
    OutboxStore,
)
from catalogzero.cloud.outbox.stored import Upload, as_text, from_text
from catalogzero.errors import ConfigError

LEASE_S, BEAT_S = 15.0, 3.0
"""How long a member counts as at work after it was last heard of, and how often it is, in seconds.

A network that is away for ten seconds costs no lease; a killed instance's uploads wait that long.
"""
KEPT_S = 30 * 86_400.0
"""How long one that is not heard of any more is remembered: until then it is known again."""
_AT_WORK = "EXISTS (SELECT 1 FROM members m WHERE m.member = {} AND m.until > clock_timestamp())"
_FOR_S = "clock_timestamp() + make_interval(secs => ?)"


class Membership:
    """One member of a shared outbox.

    Args:
        store: What is shared.
        instance_id: Whose process this is.

    Attributes:
        member: Its name, another one for each start.
    """

    def __init__(self, store: OutboxStore, instance_id: str) -> None:
        self._store, self._instance_id = store, instance_id
        self.member = uuid.uuid4().hex
        self._alike: Mapping[str, str] = {}

    def join(self, alike: Mapping[str, str]) -> bool:
        """Be at work from now on, in the place of an earlier start of this instance.

        Args:
            alike: What all that are at work must have in common, by the setting's name.

        Returns:
            Whether others are at work.

        Raises:
            ConfigError: They differ.
        """
        store = self._store
        store.delete("members", instance_id=self._instance_id)
        old = "DELETE FROM members WHERE until < clock_timestamp() - make_interval(secs => ?)"
        store.execute(old, [KEPT_S])
        others = store.execute(
            "SELECT instance_id, alike FROM members WHERE until > clock_timestamp()"
        )
        for other, theirs in others:
            for name, value in from_text(theirs).items():
                if alike.get(name, value) != value:
                    raise ConfigError(
                        f"{name}: instance {other or '(without a name)'}, which is at work on the "
                        "same store, has another one: give all instances the same, or this "
                        "handler a `handler_id` of its own"
                    )
        self._alike = alike
        self.rejoin()
        return bool(others)

    def rejoin(self) -> None:
        """Be known again to a store that had forgotten this member, as one that has just begun."""
        self._store.delete("members", instance_id=self._instance_id)
        sql = (
            "INSERT INTO members (member, instance_id, alike, beat, until)"  # noqa: S608  # only constants
            f" VALUES (?, ?, ?, 1, {_FOR_S})"
        )
        about = [self.member, self._instance_id, as_text(dict(self._alike))]
        self._store.execute(sql, [*about, LEASE_S])

    def renew(self, beat: int) -> bool:
        """Be at work for a lease more.

        Args:
            beat: The number of this time, one above that of the last.

        Returns:
            False where the store does not know the last time: it was put back from an older copy,
            or another process has taken this instance's place.
        """
        sql = f"UPDATE members SET beat = ?, until = {_FOR_S} WHERE member = ? AND beat IN (?, ?)"  # noqa: S608  # only constants
        # The same number again is the one whose commit was not answered.
        return self._store.change(sql, [beat, LEASE_S, self.member, beat - 1, beat]) == 1

    def keep_from(self, number: int) -> None:
        """Have the rows of uploads from this number on kept, while this member is at work."""
        self._store.update("members", {"member": self.member}, kept_from=number)

    def kept_from(self) -> int:
        """The lowest number from which on somebody at work has the rows of uploads kept."""
        sql = "SELECT MIN(kept_from) FROM members WHERE until > clock_timestamp() OR member = ?"
        return int(self._store.execute(sql, [self.member])[0][0] or 0)

    def timeline(self) -> str:
        """Which of the database's lives this is: another one after a failover or a restore."""
        [(name,)] = self._store.execute(
            "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
        )
        return str(name)

    def leave(self) -> None:
        """Be at work no longer: what was taken to send is free."""
        self._store.delete("members", member=self.member)

    def lapsed(self) -> list[str]:
        """The uploads that are built by nobody who is at work."""
        sql = f"SELECT upload_id FROM uploads WHERE state = 'building' AND NOT {_AT_WORK}"  # noqa: S608  # only constants
        return [row[0] for row in self._store.execute(sql.format("builder"))]

    def take(self, without: Iterable[str], limit: int) -> None:
        """Take uploads to send, in order: those that nobody at work has.

        Of an appended source that is the first one alone, so that it is sent in sealing order.
        Who takes some at the same time takes others.

        Args:
            without: Ids of uploads that are not taken.
            limit: How many there are with those that were taken before, at most.
        """
        store = self._store
        [(has,)] = store.execute(
            "SELECT COUNT(*) FROM uploads WHERE ended_at IS NULL AND sender = ?", [self.member]
        )
        if has >= limit:
            return
        is_free = f"(u.sender IS NULL OR u.sender <> ? AND NOT {_AT_WORK.format('u.sender')})"
        store.execute(
            "UPDATE uploads SET sender = ? WHERE upload_id IN (SELECT u.upload_id FROM uploads u"  # noqa: S608  # only constants
            f" WHERE ended_at IS NULL AND state <> 'building' AND {is_free}"
            f" AND upload_id NOT IN ({store.base.each})"
            f" AND NOT (mode <> 'replace' AND ({BEHIND_ANOTHER} OR {BEHIND_A_DEAD_LETTER}))"
            f" ORDER BY {IN_ORDER} LIMIT ? FOR UPDATE OF u SKIP LOCKED)",
            [self.member, self.member, as_text(list(without)), limit - has],
        )

    def taken(self, without: Iterable[str], limit: int) -> list[Upload]:
        """What this member has to send, and what it builds, in order."""
        of = "CASE state WHEN 'building' THEN builder ELSE sender END"
        return self._store.uploads_where(
            f"ended_at IS NULL AND {of} = ? AND upload_id NOT IN ({self._store.base.each})"
            f" ORDER BY {IN_ORDER} LIMIT ?",
            (self.member, as_text(list(without)), limit),
        )

    def release(self, keep: Iterable[str]) -> None:
        """Let others send what this member has taken, but for some."""
        self._store.execute(
            "UPDATE uploads SET sender = NULL WHERE ended_at IS NULL AND sender = ?"  # noqa: S608  # only constants
            f" AND upload_id NOT IN ({self._store.base.each})",
            [self.member, as_text(list(keep))],
        )
