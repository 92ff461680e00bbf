"""CURVE key pairs and the files that hold them: a pair, the keys that may call, the handlers' keys.

A key is 40 characters of z85 (RFC 32). In a file of several keys `#` begins a comment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import zmq
from zmq.utils import z85

from catalogzero.config.key_files import read_key
from catalogzero.config.renewal import Renewed
from catalogzero.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair, each key 40 characters of z85 (RFC 32)."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """A fresh pair."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The pair in a file of two lines, `public: …` and `secret: …`.

        Raises:
            ConfigError: No such file, or not a key pair.
        """
        try:
            lines = read_key(path).splitlines()
            pairs = dict(line.split(": ", 1) for line in lines if ": " in line)
            return cls(key_of(pairs["public"]), key_of(pairs["secret"]))
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: no key pair ({error}); `catalogzero keys new`") from None


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The server's pair and the public keys that may call it."""

    keys: CurveKeys
    clients: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class CurveClient:
    """The client's pair and the server's public key."""

    keys: CurveKeys
    server: bytes

    @classmethod
    def renewed(cls, key_file: Path, server: bytes) -> Renewed[Self]:
        """The keys of a client whose pair is taken from its file with each connection.

        Raises:
            ConfigError: The file holds no pair.
        """
        return Renewed(lambda: cls(CurveKeys.read(key_file), server), key_file)


CurveServerSource = CurveServer | Callable[[], CurveServer]
CurveClientSource = CurveClient | Callable[[], CurveClient]
"""Keys, or what gives those of now: see `Renewed`."""


def server_keys_in(key_file: Path, clients_file: Path) -> Renewed[CurveServer]:
    """The keys that a server's two files hold, renewed as they are.

    Raises:
        ConfigError: A file cannot be read.
    """

    def read() -> CurveServer:
        return CurveServer(CurveKeys.read(key_file), read_client_keys(clients_file))

    return Renewed(read, key_file, clients_file)


def public_key(text: str) -> bytes:
    """A public key as it is written.

    Raises:
        ConfigError: It is invalid.
    """
    try:
        return key_of(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no public key of 40 characters") from None


def read_client_keys(path: Path) -> frozenset[bytes]:
    """The public keys in a file, one a line; `#` begins a comment.

    Raises:
        ConfigError: No such file, or a line that is no key; names the line.
    """
    keys = set()
    for place, text in lines_of_keys(path, "the allowed client keys"):
        try:
            keys.add(key_of(text.removeprefix("public: ")))
        except ValueError:
            raise ConfigError(f"{place}: not a public key of 40 characters") from None
    return frozenset(keys)


def read_server_keys(path: Path) -> dict[str, bytes]:
    """The public keys of handlers in a file of lines `handler_id: key`; `#` begins a comment.

    Raises:
        ConfigError: No such file, or a line that is not of that form; names the line.
    """
    keys = {}
    for place, text in lines_of_keys(path, "the handlers' keys"):
        handler_id, _, key = text.partition(": ")
        try:
            keys[handler_id] = key_of(key)
        except ValueError:
            message = f"{place}: not `handler_id: public key of 40 characters`"
            raise ConfigError(message) from None
    return keys


def lines_of_keys(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """Each line of a file of keys that is not a comment: where it is, and its text."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        text = line.split(" #")[0].strip()
        if text and not text.startswith("#"):
            yield f"{path}:{number}", text


def key_of(text: str) -> bytes:
    """The key that 40 characters of z85 are.

    Raises:
        ValueError: They are not.
    """
    key = text.strip().encode("ascii")
    if len(key) != 40:
        raise ValueError("a key has 40 characters")
    z85.decode(key)
    return key
