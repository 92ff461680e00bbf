"""Where a process can be called: the one place that reads and writes addresses.

`tcp://host:port`; `ipc:///run/acme/acme.sock`: a socket file, for users of this machine alone; or
`nats://host:port/acme`: the handler acme behind a NATS server (`tls://`: encrypted to it), and
`nats://host:port/acme/instance`: one of those that are named so.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Self

from catalogzero.errors import ConfigError

FORMS = "tcp://host:port, ipc:///folder/name.sock or nats://host:port/handler_id"
SERVER_FORMS = "nats://host:port or tls://host:port"
NATS_PORT = 4222
MAX_PATH_BYTES = 100
"""A little below what systems take for a socket file (Linux 107, macOS 103)."""

WILDCARDS = frozenset({"0.0.0.0", "::", "*"})  # noqa: S104 - recognised, not bound
_NATS = re.compile(
    r"(nats|tls)://(?:\[([0-9A-Fa-f:.]+)\]|([^\s\[\]:/?#@]+))(?::(\d{1,5}))?"
    r"(?:/([A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*)(?:/([A-Za-z0-9_-]{1,100}))?)?"
)
"""A handler_id as NATS can carry it: a subject has no empty part between two dots."""
_TCP = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s\[\]:/?#@]+)):(\d{1,5}|\*)")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port over TCP; or, where `path` is set, a socket file. Port 0 is any free one.

    With the `scheme` `nats` or `tls` host and port are those of a NATS server, behind which
    `handler_id` is called: any of that name, or one `instance`.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    scheme: str = ""
    handler_id: str = ""
    instance: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address that a text is.

        Raises:
            ConfigError: It is not one; says how to write it.
        """
        scheme, _, rest = text.partition("://")
        if scheme == "ipc" and _is_socket_path(rest):
            return cls(path=rest)
        if scheme in ("nats", "tls") and (found := cls._behind_nats(text)).handler_id:
            return found
        over_tcp = _TCP.fullmatch(rest) if scheme == "tcp" else None
        port = int(over_tcp[3].replace("*", "0")) if over_tcp else -1
        if over_tcp is None or not 0 <= port < 65_536:
            shown = text[:200]
            raise ConfigError(f"{shown!r} is not an address: write {FORMS}")
        return cls(over_tcp[1] or over_tcp[2], port)

    @classmethod
    def nats_server(cls, text: str) -> Self:
        """The address of a NATS server, with no handler behind it yet.

        Raises:
            ConfigError: It is not one; says how to write it.
        """
        found = cls._behind_nats(text)
        if found.handler_id:
            raise ConfigError(f"{text[:200]!r} names a handler, too: write {SERVER_FORMS}")
        return found

    @classmethod
    def _behind_nats(cls, text: str) -> Self:
        if "@" in text:  # never shown: what stands before it is a secret
            raise ConfigError("an address holds no password: name `nats.key_file` beside it")
        found = _NATS.fullmatch(text)
        port = int((found and found[4]) or NATS_PORT)
        if found is None or not 0 < port < 65_536:
            raise ConfigError(
                f"{text[:200]!r} is not an address: write {SERVER_FORMS}[/handler_id]"
            )
        scheme, in_brackets, name, _, handler_id, instance = found.groups(default="")
        return cls(in_brackets or name, port, "", scheme, handler_id, instance)

    def called(self, handler_id: str, instance: str = "") -> Self:
        """Where the handler of that name is called that listens here.

        Raises:
            ConfigError: NATS cannot carry that name.
        """
        if not self.is_nats:
            return self
        found = replace(self, handler_id=handler_id, instance=instance)
        return self.parse(str(found))

    @classmethod
    def of(cls, host: str, port: int = 0) -> Self:
        """The address of the settings `host`, which may be an `ipc://` address, and `port`.

        Raises:
            ConfigError: The host is an address of another form.
        """
        return cls.parse(host) if "://" in host else cls(host, port)

    def __str__(self) -> str:
        if self.path:
            return f"ipc://{self.path}"
        server = f"{self.scheme or 'tcp'}://{host_port(self.host, self.port)}"
        return "/".join(filter(None, (server, self.handler_id, self.instance)))

    @property
    def is_nats(self) -> bool:
        """Whether it is behind a NATS server."""
        return bool(self.scheme)

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can reach it."""
        return bool(self.path) or is_loopback(self.host)

    @property
    def callable_here(self) -> Self:
        """Where this machine calls it: loopback where it is bound to every interface."""
        loopback = "::1" if self.host == "::" else "127.0.0.1"
        return type(self)(loopback, self.port) if self.host in WILDCARDS else self


def listener_at(port: int) -> str:
    """Who listens at a port of this machine, as ` (postgres, process 812)`; empty if unknown."""
    import psutil  # only a port that is taken needs it

    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            here = one.laddr  # empty for a socket that is not bound
            if one.status == psutil.CONN_LISTEN and here and here.port == port and one.pid:
                return f" ({psutil.Process(one.pid).name()}, process {one.pid})"
    return ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = parse_ip(host)
    return address is not None and address.is_loopback


def parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a host is; `None` for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def host_port(host: str, port: int | str) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_socket_path(path: str) -> bool:
    """Whether a path is absolute, printable, short enough, and names a file."""
    # In bytes: systems bound the path in sockaddr_un, and cut a longer one or refuse it.
    fits = path.isprintable() and len(path.encode()) <= MAX_PATH_BYTES
    return fits and path.startswith("/") and not path.endswith("/")
