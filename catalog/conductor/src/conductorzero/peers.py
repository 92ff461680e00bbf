"""Which handlers there are: from the settings, a registry file, or the scheduler.

Owns the list of peers and reads it again as its sources change. It never talks to a
handler. A source that cannot be read keeps its last good answer, and says why in `problems`.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalogzero import Address, ConfigError, registry_sections

HTTP_TIMEOUT_S = 4.0
NEXT_RUNS_SHOWN = 5
MAX_LIST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Peer:
    """One process that the conductor may call; `source` is config, registry or scheduler.

    `instance_id` is its name among several that share the calls of a handler_id, `places` how many
    jobs it runs at once, where its scheduler says so.
    """

    handler_id: str
    address: str
    source: str
    instance_id: str | None = None
    places: int | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Its name in the fleet: `handler_id`, or `handler_id/instance_id`."""
        return f"{self.handler_id}/{self.instance_id}" if self.instance_id else self.handler_id

    @property
    def host(self) -> str:
        """Where it runs: the host of its address; behind a NATS server its own name."""
        if is_behind_nats(self.address):
            return self.instance_id or self.handler_id
        with suppress(ConfigError):
            return Address.parse(self.address).host or "localhost"  # a socket file is on this one
        return self.address

    @property
    def place(self) -> str:
        """Its address; behind a NATS server without the part that each start has of its own."""
        is_of_one_start = self.instance_id and is_behind_nats(self.address)
        return self.address.rpartition("/")[0] if is_of_one_start else self.address


@dataclass(frozen=True, slots=True)
class NextRun:
    """What a scheduler will run on a handler, and when: `at` is an ISO 8601 text."""

    job_id: str
    handler_id: str
    at: str


def is_behind_nats(address: str) -> bool:
    """Whether an address is called through a NATS server."""
    return address.startswith(("nats://", "tls://"))


def address_of(value: Any) -> str:
    """The address of a port, a `host:port` or an address.

    Raises:
        ConfigError: None of the three.
    """
    text = str(value).strip()
    if text.isdigit():
        text = f"tcp://127.0.0.1:{text}"
    with suppress(ConfigError):
        found = Address.parse(text if "://" in text else f"tcp://{text}")
        if found.port or found.path:
            return str(found)
    raise ConfigError(
        f"{value!r} is no port and no address: write 5001, tcp://host:5001, ipc:///folder/x.sock"
        " or nats://host:4222/handler_id"
    )


def peers_of_mapping(registry: Mapping[str, Any]) -> list[Peer]:
    """The peers of a `{handler_id[/instance_id]: port or address}` mapping.

    Raises:
        ConfigError: A value that is neither, or a key that lacks a name; the sentence has the key.
    """
    peers = []
    for key, value in registry.items():
        handler_id, slash, instance_id = key.partition("/")
        try:
            if slash and not (handler_id and instance_id):
                raise ConfigError("write handler_id, or handler_id/instance_id")
            peers.append(Peer(handler_id, address_of(value), "config", instance_id or None))
        except ConfigError as error:
            raise ConfigError(f"handler_registry: {key}: {error}") from None
    return peers


def peers_of_file(path: Path) -> list[Peer]:
    """The peers that a handler_registry.yaml names; a section without a fixed address is left out.

    Behind a NATS server one that is an instance has none: a scheduler lists it.

    Raises:
        ConfigError: Not readable, not YAML, or without a `handlers:` list.
    """
    try:
        sections = registry_sections(path)
    except ConfigError as error:
        raise ConfigError(f"cannot be read as a registry file: {error}") from None
    peers = []
    for section in sections:
        handler_id, port = section.get("handler_id"), section.get("port", 0)
        if not isinstance(handler_id, str) or type(port) is not int or not 0 <= port < 65536:
            continue
        instance = section.get("instance_id")
        instance_id = instance if isinstance(instance, str) and instance else None
        transport = str(section.get("transport") or "zeromq")
        with suppress(ConfigError):
            if is_behind_nats(transport):
                if not instance_id:
                    called = Address.nats_server(transport).called(handler_id)
                    peers.append(Peer(handler_id, str(called), "registry"))
                continue
            bound = Address.of(str(section.get("host") or "127.0.0.1").strip("[]"), port)
            if bound.port or bound.path:  # else it can only be found through a scheduler
                address = str(bound.callable_here)
                peers.append(Peer(handler_id, address, "registry", instance_id))
    return peers


def peers_of_listing(body: Any) -> list[Peer]:
    """The peers in a scheduler's answer to GET /api/handlers: handlers, or their instances.

    An invalid address stays as it is: its handler is shown, and cannot be reached.

    Raises:
        ConfigError: Not of that shape.
    """
    handlers = body.get("handlers") if isinstance(body, dict) else None
    if not isinstance(handlers, list):
        raise ConfigError("the scheduler's /api/handlers did not answer with a list of handlers")
    peers = []
    for item in handlers:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            continue
        listed = item.get("instances")
        named = [
            one
            for one in (listed if isinstance(listed, list) else [])
            if isinstance(one, dict) and one.get("instance_id") and one.get("address")
            if not one.get("left")  # it was stopped, and is missed by nobody
        ]
        for one in named or [item] * bool(item.get("address")):
            address = str(one["address"])
            with suppress(ConfigError):
                address = address_of(address)
            instance_id, places = one.get("instance_id"), one.get("places")
            peers.append(
                Peer(
                    item["id"],
                    address,
                    "scheduler",
                    instance_id if isinstance(instance_id, str) else None,
                    places if type(places) is int and places > 0 else None,
                )
            )
    return peers


def next_runs_of(body: Any) -> list[NextRun]:
    """The first runs in a scheduler's answer to GET /api/schedules; of nonsense none."""
    schedules = body.get("schedules") if isinstance(body, dict) else None
    found = []
    for one in schedules if isinstance(schedules, list) else []:
        if isinstance(one, dict) and not one.get("paused"):
            texts = [one.get(name) for name in ("id", "handler_id", "next_fire_time")]
            if all(isinstance(text, str) for text in texts):
                found.append(NextRun(*map(str, texts)))
    return sorted(found, key=lambda run: run.at)[:NEXT_RUNS_SHOWN]


class RegistryFile:
    """A handler_registry.yaml, read again when it changes or is replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._peers: list[Peer] = []

    async def read(self) -> list[Peer]:
        """The file's peers, from memory while it is unchanged.

        Raises:
            ConfigError: As `peers_of_file`.
        """
        try:
            stat = self.path.stat()
        except OSError:
            self._seen = None
            raise ConfigError(f"{self.path}: there is no such registry file") from None
        # The inode too: a file that is replaced may have the old one's time and size.
        mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if mark != self._seen:
            self._peers = await asyncio.to_thread(peers_of_file, self.path)
            self._seen = mark
        return self._peers

    async def close(self) -> None:
        """Nothing is open."""


class SchedulerListing:
    """A scheduler's HTTP list of registered handlers, asked every `interval_s`, and its next runs.

    It is asked beside whatever goes on: only the first question is waited for, so that a
    scheduler that hangs holds up nothing.
    """

    def __init__(
        self,
        url: str,
        monotonic: Callable[[], float],
        *,
        interval_s: float,
        token: Callable[[], str] | None,
    ) -> None:
        self.url = url.rstrip("/")
        self.next_runs: list[NextRun] = []
        self._monotonic = monotonic
        self._interval_s = interval_s
        self._token = token
        self._due_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._peers: list[Peer] | None = None
        self._problem = ""

    async def read(self) -> list[Peer]:
        """The registered handlers as last listed.

        Raises:
            ConfigError: The scheduler did not answer the last time, or not with a list.
        """
        if self._asking is None and self._monotonic() >= self._due_at:
            self._due_at = self._monotonic() + self._interval_s
            self._asking = asyncio.create_task(self._ask(), name="conductor-discovery")
        # Only where nothing is known yet; later the last list serves while this is asked.
        if self._asking is not None and self._peers is None and not self._problem:
            await asyncio.wait([self._asking])
        if self._problem:
            raise ConfigError(self._problem)
        return self._peers or []

    async def close(self) -> None:
        """Ask no longer."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        """Ask once, and keep the answer or why there is none."""
        try:
            self._peers, self._problem = peers_of_listing(await self._fetch("/api/handlers")), ""
            with suppress(ConfigError):  # they are shown where it has them, and missed by nobody
                path = f"/api/schedules?limit={NEXT_RUNS_SHOWN}"
                self.next_runs = next_runs_of(await self._fetch(path))
        except ConfigError as error:
            self._problem = str(error)
        finally:
            self._asking = None

    async def _fetch(self, path: str) -> Any:
        """One GET; a connection of its own, as it is seldom."""
        url = self.url + path
        import aiohttp  # only where a scheduler is named

        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._token()}"} if self._token else {}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status in (401, 403):
                    raise ConfigError(f"{url} wants a token: set scheduler_token_file")
                if response.status != 200:
                    raise ConfigError(f"{url} answered {response.status}")
                body = bytearray()  # it may be endless
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_LIST_BYTES:
                        raise ConfigError(f"{url} answered more than {MAX_LIST_BYTES} bytes")
                return json.loads(body)
        except ConfigError:
            raise
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ConfigError(f"{url} does not answer with a list: {reason}") from None


@dataclass(slots=True)
class Directory:
    """All peers of all sources; an id in several sources is taken from the first that has it.

    Where a source lists instances of a handler, they take the place of the handler itself.

    Args:
        fixed: Peers that never change.
        sources: Read again at each `refresh`, in this order.
        leave_out: Ids that are no peers, such as the conductor's own.
    """

    fixed: list[Peer]
    sources: list[RegistryFile | SchedulerListing]
    leave_out: frozenset[str] = frozenset()
    problems: list[str] = field(default_factory=list, init=False)
    _last: dict[int, list[Peer]] = field(default_factory=dict, init=False)

    async def refresh(self) -> dict[str, Peer]:
        """Read the sources again and return the peers, by key."""
        problems: list[str] = []
        peers = {peer.key: peer for peer in self.fixed}
        for number, source in enumerate(self.sources):
            try:
                self._last[number] = await source.read()
            except ConfigError as error:
                problems.append(str(error))
            for peer in self._last.get(number, ()):
                if peer.handler_id not in self.leave_out:
                    peers.setdefault(peer.key, peer)
        self.problems = problems
        shared = {peer.handler_id for peer in peers.values() if peer.instance_id}
        return {key: peer for key, peer in peers.items() if key not in shared}

    @property
    def next_runs(self) -> list[NextRun]:
        """What the schedulers among the sources will run next."""
        listings = (one for one in self.sources if isinstance(one, SchedulerListing))
        return [run for one in listings for run in one.next_runs]

    async def close(self) -> None:
        """Read no longer."""
        for source in self.sources:
            await source.close()
