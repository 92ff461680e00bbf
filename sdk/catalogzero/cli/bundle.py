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
import yaml

from catalogzero.cli.check import check_handler
from catalogzero.cli.run import RegistryOption
from catalogzero.config.logs import SECRET_NAMES
from catalogzero.config.registry import read_yaml
from catalogzero.config.settings import HIDDEN, shown_url
from catalogzero.config.state_folder import create_private
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.launch import make_handler, registry_path
from catalogzero.wire.messages import encode_json

AUDIT_LINES = 200
LEFT_OUT = "(left out: --with-messages)"
TEXTS = {
    "checks.json": frozenset({"found"}),
    "outbox.json": frozenset({"answer", "paused", "after", "until"}),
    "audit_end.jsonl": frozenset({"fault"}),
    "describe.json": frozenset({"query"}),
    "handler_registry.txt": frozenset({"query"}),
}
"""What may hold a message, a value or SQL, in each file of the archive."""


def bundle(
    target: Annotated[str, typer.Argument(help="A handler_id, an entry, or module:Class.")],
    out: Annotated[Path, typer.Option(help="The archive to write.")] = Path("support.zip"),
    registry: RegistryOption = None,
    with_messages: Annotated[
        bool, typer.Option("--with-messages", help="Also messages and SQL; they may hold values.")
    ] = False,
) -> None:
    """Write what a vendor's support needs: versions, settings, checks, outbox and audit log.

    Secrets are masked; no record of the data is in it, and no message, answer, watermark or SQL
    text, as these may hold values. Read it before you send it.

    Example: catalogzero bundle acme --out support.zip
    """
    handler = make_handler(target, registry=registry)
    parts = asyncio.run(_parts(handler))
    file = registry_path(registry)
    if file.exists():
        parts["handler_registry.txt"] = _registry(file)
    if not with_messages:
        parts = {name: _without_texts(name, value) for name, value in parts.items()}
    create_private(out)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in parts.items():
            archive.writestr(name, handler.mask(_written(name, value)))
    typer.echo(f"{out}: {', '.join(parts)}")


async def _parts(handler: Handler) -> dict[str, Any]:
    """The archive's files as values, before masking."""
    return {
        "describe.json": await handler.describe(),
        "checks.json": [asdict(finding) for finding in await check_handler(handler)],
        "versions.json": await asyncio.to_thread(_versions),
        **await asyncio.to_thread(_state, handler),
    }


def _versions() -> dict[str, Any]:
    """Python, system, and every installed distribution."""
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "installed": dict(sorted(installed.items())),
    }


def _state(handler: Handler) -> dict[str, Any]:
    """The outbox's list and the audit log's end, without a record."""
    from catalogzero.cloud.egress import verify_audit
    from catalogzero.cloud.outbox.store import Outbox

    parts: dict[str, Any] = {}
    folder = handler.state_dir
    if (folder / "outbox.sqlite").exists():
        with closing(Outbox(folder, handler.clock, repair=False)) as outbox:
            uploads = [asdict(upload) for upload in outbox.uploads(limit=500)]
            facts = {"totals": asdict(outbox.totals()), "paused": outbox.fact("paused")}
        parts["outbox.json"] = {**facts, "uploads": uploads}
    if (folder / "audit.jsonl").exists():
        with (folder / "audit.jsonl").open(encoding="utf-8", errors="replace") as file:
            parts["audit_end.jsonl"] = [_entry(line) for line in deque(file, AUDIT_LINES)]
        parts["audit.json"] = asdict(verify_audit(folder / "audit.jsonl"))
    return parts


def _entry(line: str) -> Any:
    """An entry of the audit log; None for a line that was cut short."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _registry(file: Path) -> Any:
    """The registry file's content, secrets masked by the names of their keys."""
    try:
        return _masked("", read_yaml(file, option="--registry")[0])
    except ConfigError as error:
        return f"(left out: {error})"


def _masked(name: str, value: Any) -> Any:
    """A value without what sounds secret; `_file` keys are kept."""
    if isinstance(value, dict):
        return {key: _masked(str(key).lower(), one) for key, one in value.items()}
    if isinstance(value, list):
        return [_masked(name, one) for one in value]
    secret = any(word in name for word in (*SECRET_NAMES, "url", "proxy"))
    if secret and value and not name.endswith("_file"):
        return HIDDEN
    return shown_url(value) if isinstance(value, str) else value


def _without_texts(part: str, value: Any) -> Any:
    """A part of the archive without what may hold a value of the data, at any depth."""
    if isinstance(value, list):
        return [_without_texts(part, one) for one in value]
    if not isinstance(value, dict):
        return value
    left_out = TEXTS.get(part, frozenset())
    return {
        name: LEFT_OUT if one and name in left_out else _without_texts(part, one)
        for name, one in value.items()
    }


def _written(name: str, value: Any) -> str:
    """A part as the text of its file."""
    value = orjson.loads(encode_json(value))
    if name.endswith(".jsonl"):
        return "".join(orjson.dumps(entry).decode() + "\n" for entry in value)
    if name.endswith(".txt"):
        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
