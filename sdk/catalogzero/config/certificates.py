"""Certificates in files: until when they are good.

Reads two times out of each certificate, on the standard library alone; it verifies nothing.
"""

from __future__ import annotations

import re
import shlex
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from catalogzero.config.preflight import Finding

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17
EXPIRES_SOON = timedelta(days=30)
_VALIDITY_AT = 3
"""Behind the serial number, the algorithm and the issuer."""


def good_until(path: Path, *, any_will_do: bool = False) -> datetime | None:
    """When the first of a PEM file's certificates expires; None where it holds none.

    With `any_will_do` the last of them: authorities, of which a renewed one stands beside the old.

    Raises:
        OSError: It cannot be read.
    """
    found = []
    for block in _PEM.findall(path.read_text("latin-1")):
        try:
            found.append(_not_after(ssl.PEM_cert_to_DER_cert(block)))
        except (ValueError, IndexError):
            continue  # who loads it says what is wrong
    return (max if any_will_do else min)(found, default=None)


def expiring(name: str, path: object, until: datetime, now: datetime) -> Finding | None:
    """What there is to say of a certificate that has expired, or will within 30 days."""
    if until - now > EXPIRES_SOON:
        return None
    fix = f"have it renewed, and write it to {shlex.quote(str(path))}: it is read again by itself"
    if until <= now:
        found = f"{name} {path} expired at {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        return Finding(name, "fail", found, fix)
    return Finding(name, "warn", f"{name} {path} expires in {(until - now).days} days", fix)


def _not_after(certificate: bytes) -> datetime:
    """The end of a certificate's validity (RFC 5280, 4.1)."""
    _, whole = next(_elements(certificate))
    _, signed = next(_elements(whole))
    fields = [content for tag, content in _elements(signed) if tag != _VERSION]
    _, (tag, text) = _elements(fields[_VALIDITY_AT])
    # Of two digits a year from 50 on is one of the last century.
    century = ("19" if text >= b"5" else "20") if tag == _UTC_TIME else ""
    return datetime.strptime(f"{century}{text.decode()}", "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of DER, one behind the other."""
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            long = size & 0x7F
            size, at = int.from_bytes(data[at : at + long], "big"), at + long
        yield tag, data[at : at + size]
        at += size
