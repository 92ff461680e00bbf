"""`catalogzero bundle`: a support archive without secrets and without data."""

from __future__ import annotations

import asyncio
import platform
import zipfile
from collections import deque
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from catalogzero.cli.check import check_handler
from catalogzero.cli.run import RegistryOption
from catalogzero.config.logs import SECRET_NAMES
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.launch import make_handler, registry_path
from catalogzero.wire.messages import encode_json

AUDIT_LINES = 200
MASKED = "**********"


def bundle(
    target: Annotated[str, typer.Argument(help="A handler_id, an entry, or module:Class.")],
    out: Annotated[Path, typer.Option(help="The archive to write.")] = Path("support.zip"),
    registry: RegistryOption = None,
) -> None:
    """Write what a vendor's support needs: versions, settings, checks, outbox and audit log.

    Secrets are masked, and no record of the data is in it. Read it before you send it.

    Example: catalogzero bundle acme --out support.zip
    """
    handler = make_handler(target, registry=registry)
    parts = asyncio.run(_parts(handler))
    file = registry_path(registry)
    if file.exists():
        lines = file.read_text("utf-8", "replace").splitlines()
        parts["handler_registry.txt"] = "\n".join(map(_redacted, lines)) + "\n"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, handler.mask(text))
    typer.echo(f"{out}: {', '.join(parts)}")


async def _parts(handler: Handler) -> dict[str, str]:
    """The archive's files, before masking."""
    findings = [asdict(finding) for finding in await check_handler(handler)]
    parts = {
        "describe.json": await handler.describe(),
        "checks.json": findings,
        "versions.json": await asyncio.to_thread(_versions),
    }
    texts = {name: _pretty(value) for name, value in parts.items()}
    return texts | await asyncio.to_thread(_state, handler)


def _versions() -> dict[str, Any]:
    """Python, system, and every installed distribution."""
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "installed": dict(sorted(installed.items())),
    }


def _state(handler: Handler) -> dict[str, str]:
    """The outbox's list and the audit log's end, without a record."""
    from catalogzero.cloud.egress import verify_audit
    from catalogzero.cloud.outbox import Outbox

    parts, folder = {}, handler.state_dir
    if (folder / "outbox.sqlite").exists():
        with closing(Outbox(folder, handler.clock, mend=False)) as outbox:
            uploads = [upload.as_dict() for upload in outbox.uploads(limit=500)]
            facts = {"totals": asdict(outbox.totals()), "paused": outbox.fact("paused")}
        parts["outbox.json"] = _pretty({**facts, "uploads": uploads})
    if (folder / "audit.jsonl").exists():
        with (folder / "audit.jsonl").open(encoding="utf-8", errors="replace") as file:
            parts["audit_end.jsonl"] = "".join(deque(file, AUDIT_LINES))
        parts["audit.json"] = _pretty(asdict(verify_audit(folder / "audit.jsonl")))
    return parts


def _redacted(line: str) -> str:
    """A line of YAML; the value of a key that sounds secret is masked, that of `_file` keys not."""
    key, colon, value = line.partition(":")
    name = key.strip(" -\"'").lower()
    secret = any(word in name for word in (*SECRET_NAMES, "url", "proxy"))
    if not (colon and value.strip() and secret) or name.endswith("_file"):
        return line
    return f"{key}: {MASKED}"


def _pretty(value: Any) -> str:
    return orjson.dumps(orjson.loads(encode_json(value)), option=orjson.OPT_INDENT_2).decode()
