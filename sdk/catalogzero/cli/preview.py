"""`catalogzero preview`: the very bytes that would leave, and nothing sent."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalogzero.cli.output import JsonFlag, print_json
from catalogzero.cli.run import RegistryOption, json_object
from catalogzero.cloud.processor import CloudProcessor
from catalogzero.config.registry import load_registry
from catalogzero.config.settings import shown_url
from catalogzero.config.state_folder import create_private, make_private
from catalogzero.errors import CatalogZeroError, ConfigError, FailedError, place_of
from catalogzero.runtime.launch import Flags, class_of_entry, make_handler, registry_path

if TYPE_CHECKING:
    from catalogzero.cloud.outbox.store import Outbox

NEXT_EPOCH = 0
"""Stands for the epoch that the next start is given."""
_PLACEHOLDERS = {"api_key": "not-set", "endpoint": "https://endpoint.invalid"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it would leave."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    plain: bytes


def preview(
    target: Annotated[str, typer.Argument(help="A handler_id, an entry, or module:Class.")],
    data_source: Annotated[str, typer.Argument(help="A file, folder, pattern or sql:<name>.")],
    registry: RegistryOption = None,
    params: Annotated[str, typer.Option(help="JSON object, as in the call.")] = "{}",
    full: Annotated[bool, typer.Option("--full", help="Also what was sent before.")] = False,
    lines: Annotated[int, typer.Option(help="Lines to show of each body.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write the bodies here, byte for byte.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show every request that a run would make: URL, headers, body; send nothing.

    Works without registry, key and endpoint for an installed entry.

    Example: catalogzero preview acme /data/exports/orders.csv --lines 5
    """
    given = json_object(params, "--params")
    source = data_source if ":" in data_source else str(Path(data_source).absolute())
    handler = _handler(target, registry, source)
    try:
        result, requests = preview_run(handler, source, given, full=full)
    except (CatalogZeroError, ModuleNotFoundError):
        raise
    except Exception as error:  # what the author's `process` or `read` raised
        text = f"{type(error).__name__}: {error}{place_of(error)}"
        raise FailedError(f"{type(handler).__name__} failed: {text}") from error
    if out is not None:
        _write(requests, out)
    if json:
        shown = [
            {"method": r.method, "url": r.url, "headers": r.headers}
            | {"bytes": len(r.body), "body": _text(r, None)}
            for r in requests
        ]
        print_json({"result": result, "requests": shown})
        return
    for request in requests:
        _print(request, lines)
    for file in result["files"]:
        typer.echo(_read_as(file))
    if result["left_out"]:
        names = ", ".join(result["left_out_files"])
        typer.echo(f"left out, as their names say: {result['left_out']} files ({names})")
    records, skipped = result["records"], result["skipped"]
    typer.echo(f"nothing was sent: {records} records, {skipped} items unchanged")
    for rule in result.get("unmatched_rules", ()):
        typer.echo(f"egress.{rule} matched no column")
    if older := result.get("sources_under_other_policy"):
        typer.echo(f"{older} sources were sent by another egress policy: full: true replaces them")
    if _key_is_to_be_made(handler):
        typer.echo("the key of hashes is made at the first start: hashes will be others then")


def preview_run(
    handler: CloudProcessor, data_source: str, params: dict[str, Any], *, full: bool = False
) -> tuple[dict[str, Any], list[Request]]:
    """What a run would answer and ask of the backend; reads the source, touches no state."""
    from catalogzero.cloud.egress import egress_key
    from catalogzero.cloud.encoding import ColumnFilter
    from catalogzero.cloud.outbox.store import Outbox
    from catalogzero.cloud.pipeline import UploadRun

    policy, state = handler.runtime.egress, handler.state_dir
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key = egress_key(policy, state if (state / "egress.key").exists() else folder)
        outbox = stack.enter_context(closing(Outbox(folder, handler.clock, max_bytes=1 << 50)))
        if (state / "outbox.sqlite").exists():
            outbox.adopt_marks(state / "outbox.sqlite")
        run = UploadRun(
            author=handler,
            identity=handler.identity(),
            outbox=outbox,
            wake=lambda: None,
            wait_ended=lambda upload_ids, timeout_s: None,
            columns=ColumnFilter(policy, key),
            names_key=key if policy.hash_sources else None,
            folder=folder,
            progress=lambda **fields: None,
            data_source=data_source,
            params=params,
            chunk_format=str(params.get("format") or "ndjson"),
            full=full or bool(params.get("full")),
        )
        return run(), list(_requests(handler, outbox))


def _key_is_to_be_made(handler: CloudProcessor) -> bool:
    """Whether the egress policy hashes with a key that is not there yet."""
    policy = handler.runtime.egress
    made = policy.hash_key_file or (handler.state_dir / "egress.key").exists()
    return bool(policy.hash or policy.hash_sources) and not made


def _requests(handler: CloudProcessor, outbox: Outbox) -> Iterator[Request]:
    """Every request of the sealed uploads, in order."""
    from catalogzero.cloud.sending.sender import chunk_request, complete_body, whole_request
    from catalogzero.protocol.bodies import AS_JSON
    from catalogzero.protocol.codings import decoded
    from catalogzero.protocol.identities import url_under
    from catalogzero.wire.messages import encode_json

    base, identity = shown_url(handler.settings.endpoint), handler.identity()
    common = {"Authorization": "Bearer (the API key)", "User-Agent": identity.user_agent}
    for upload in reversed(outbox.uploads(("sealed",))):
        chunks = list(outbox.bodies(upload.upload_id))
        if handler.settings.upload_form == "simple":
            body, headers = whole_request(upload, chunks, identity, NEXT_EPOCH)
            yield Request("POST", base, {**common, **headers}, body, body)
            continue
        for chunk in chunks:
            path, headers = chunk_request(upload.upload_id, chunk, chunk.body, chunk.coding)
            plain = decoded(chunk.body, chunk.coding)
            yield Request("PUT", url_under(base, *path), {**common, **headers}, chunk.body, plain)
        body = encode_json(complete_body(upload, identity, NEXT_EPOCH))
        url = url_under(base, "uploads", upload.upload_id, "complete")
        yield Request("POST", url, {**common, **AS_JSON}, body, body)


def _handler(target: str, registry: Path | None, source: str) -> CloudProcessor:
    """The processor; what an unconfigured one lacks is filled in, as nothing is sent."""
    path = registry_path(registry)
    configured = path.exists() and target in {s.handler_id for s in load_registry(path).handlers}
    if not configured and registry is None and (entry := class_of_entry(target)):
        target = f"{entry.__module__}:{entry.__qualname__}"
    filled: dict[str, Any] = {}
    folder = Path(source) if Path(source).is_dir() else Path(source).absolute().parent
    fillings = iter([("data_roots", [str(folder)]), *_PLACEHOLDERS.items()])
    while True:
        try:
            made = make_handler(target, registry=registry, flags=Flags(config=filled))
            if isinstance(made, CloudProcessor):
                return _with_known_id(made)
            raise ConfigError(f"{type(made).__name__} is no CloudProcessor: it uploads nothing")
        except ConfigError:
            filling = next(fillings, None)
            if configured or filling is None:
                raise
            filled = {**filled, filling[0]: filling[1]}


def _with_known_id(handler: CloudProcessor) -> CloudProcessor:
    """An installation that never started has no id yet, and a preview makes none."""
    known = handler.runtime.installation_id or (handler.state_dir / "installation_id").exists()
    if not known:
        runtime = handler.runtime.model_copy(update={"installation_id": "(made at first start)"})
        handler._attach(runtime=runtime, handler_id=handler.handler_id)
    return handler


def _read_as(file: dict[str, Any]) -> str:
    """What a file was read as, in a line."""
    known = [file["kind"], file["encoding"], file["delimiter"] and repr(file["delimiter"])]
    text = ", ".join(part for part in known if part)
    columns = "" if file["columns"] is None else f" of {file['columns']} columns"
    return f"{file['source']}: {text}; {file['rows']} rows{columns}"


def _text(request: Request, lines: int | None) -> str:
    """A body's content as text, some lines of it; binary ones by their size."""
    try:
        text = request.plain.decode()
    except UnicodeDecodeError:
        return f"({len(request.plain)} bytes of {request.headers.get('Content-Type')})"
    kept = text.splitlines()
    if lines is None or len(kept) <= lines:
        return text
    return "\n".join([*kept[:lines], f"… {len(kept) - lines} more lines"])


def _print(request: Request, lines: int) -> None:
    typer.echo(f"{request.method} {request.url}")
    for name, value in request.headers.items():
        typer.echo(f"{name}: {value}")
    packed = request.headers.get("Content-Encoding")
    note = f", unpacked {len(request.plain)}" if packed else ""
    typer.echo(f"Content-Length: {len(request.body)}{note}\n")
    typer.echo(_text(request, lines).rstrip("\n") + "\n")


def _write(requests: list[Request], folder: Path) -> None:
    """Each body as a private file of its own, byte for byte: it holds the client's data."""
    make_private(folder)
    for number, request in enumerate(requests, 1):
        name = request.url.partition("?")[0].rstrip("/").rpartition("/")[2]
        path = folder / f"{number:04}-{request.method}-{name}"
        create_private(path)
        path.write_bytes(request.body)
