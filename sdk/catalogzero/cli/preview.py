"""`catalogzero preview`: the very bytes that would leave, and nothing sent."""

from __future__ import annotations

from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from catalogzero.cli.output import JsonFlag, print_json
from catalogzero.cli.run import RegistryOption, Target, json_object
from catalogzero.cloud.processor import CloudProcessor
from catalogzero.config.registry import load_registry
from catalogzero.config.state_folder import create_private, make_private
from catalogzero.errors import (
    CatalogZeroError,
    ConfigError,
    FailedError,
    place_of,
    traceback_of,
)
from catalogzero.runtime.launch import (
    Flags,
    class_of_entry,
    make_handler,
    registry_path,
    sample_of,
)
from catalogzero.wire.messages import JsonObject

if TYPE_CHECKING:
    from catalogzero.cloud.counters import RowPair, RunSummary
    from catalogzero.cloud.preview import Previewed, Request
    from catalogzero.cloud.reading.records import FoundFile

# No network knows a name under .invalid (RFC 6761): what would be sent all the same ends nowhere.
_PLACEHOLDERS = {"api_key": "not-set", "endpoint": "https://endpoint.invalid"}


def preview(
    target: Target,
    data_source: Annotated[
        str | None, typer.Argument(help="A file, folder, pattern, sql:<name> or singer:<name>.")
    ] = None,
    registry: RegistryOption = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="The sample of data that the entry's package brings.")
    ] = False,
    params: Annotated[str, typer.Option(help="JSON object, as in the call.")] = "{}",
    full: Annotated[bool, typer.Option("--full", help="Also what was sent before.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Rows to read; 0: all. Default: all of files up to 100 MB, 20 of other sources.",
        ),
    ] = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="Each row beside what process makes of it.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Where process or read failed, call by call.")
    ] = False,
    lines: Annotated[int, typer.Option(help="Lines to show of each body.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write the bodies here, byte for byte.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show every request that a run would make: URL, headers, body; send nothing.

    Works without registry, key and endpoint for an installed entry.
    With --sample, an entry's own source is not asked: its rows are those of the sample.

    A `breakpoint()` in process or read stops there, on this terminal.

    Example: catalogzero preview acme /data/exports/orders.csv --rows --limit 5
    """
    from catalogzero.cloud.preview import hash_key_is_missing, preview_run

    given = json_object(params, "--params")
    if (data_source is None) != sample:
        raise typer.BadParameter("name a DATA_SOURCE, or --sample")
    handler, source = to_preview(target, registry, data_source)
    pairs: list[RowPair] | None = [] if rows else None
    try:
        seen = preview_run(
            handler, source, given, full=full, limit=limit, pairs=pairs, from_file=sample
        )
        result, requests = seen.result, seen.requests
    except Exception as error:
        for pair in pairs or () if not json else ():
            print_pair(pair)
        if traceback:
            typer.echo(handler.mask(traceback_of(error)), err=True, nl=False)
        if isinstance(error, CatalogZeroError | ModuleNotFoundError):
            raise
        raise authors_failure(handler, error) from error
    if out is not None:
        write_bodies(requests, out)
    if json:
        print_json(shown_preview(seen, pairs))
        return
    for pair in pairs or ():
        print_pair(pair)
    for request in requests if pairs is None else ():
        print_request(request, lines)
    print_result(result, is_cut=seen.is_cut)
    if hash_key_is_missing(handler):
        typer.echo("the key of hashes is made at the first start: hashes will be others then")


def to_preview(
    target: str, registry: Path | None, data_source: str | None
) -> tuple[CloudProcessor, str]:
    """The processor, and what it reads: its package's sample where nothing is named."""
    # A folder that may be read, until the class is known, and where its sample is.
    source = gettempdir() if data_source is None else data_source
    source = source if ":" in source else str(Path(source).absolute())
    handler = processor_of(target, registry, source)
    if data_source is None:
        return handler, sampled(handler)
    # To an own `read` it need be no path.
    return handler, data_source if handler.reads_itself else source


def authors_failure(handler: CloudProcessor, error: Exception) -> FailedError:
    """What the author's code raised, with its line and without a traceback."""
    text = f"{type(error).__name__}: {error}{place_of(error)}"
    return FailedError(f"{type(handler).__name__} failed: {text}")


def shown_preview(seen: Previewed, pairs: list[RowPair] | None) -> JsonObject:
    """What a run would do, as `--json` shows it."""
    requests = [
        {"method": r.method, "url": r.url, "headers": r.headers}
        | {"bytes": len(r.body), "body": body_text(r, None)}
        for r in seen.requests
    ]
    rows = {} if pairs is None else {"rows": [shown_pair(pair) for pair in pairs]}
    return {"result": seen.result, "requests": requests, **rows}


def sampled(handler: CloudProcessor) -> str:
    """The sample of the handler's package, and nothing else to be read."""
    path = sample_of(type(handler))
    if path is None:
        raise ConfigError(f"{type(handler).__name__} has no sample.csv beside its module")
    handler.settings = handler.settings.model_copy(update={"data_roots": [path.parent]})
    return str(path)


def print_result(result: RunSummary, *, is_cut: bool) -> None:
    """Print what was read and made, and what somebody should look at."""
    for file in result["files"]:
        typer.echo(read_as(file))
    if result["left_out"]:
        names = ", ".join(result["left_out_files"])
        typer.echo(f"left out, as their names say: {result['left_out']} files ({names})")
    records, skipped = result["records"], result["skipped"]
    typer.echo(f"nothing was sent: {records} records, {skipped} items unchanged")
    if is_cut:
        typer.echo("not all rows may have been read: --limit 0 reads all")
    for rule in result.get("unmatched_rules", ()):
        typer.echo(f"egress.{rule} matched no column")
    if older := result.get("sources_under_other_policy"):
        typer.echo(f"{older} sources were sent by another egress policy: full: true replaces them")


def shown_pair(pair: RowPair) -> JsonObject:
    """A row beside what was made of it, as `--json` shows it: values without a form as text."""
    whole = {
        **{"source": pair.source, "row": pair.row, "in": pair.given},
        **{"out": pair.made, "rejected": pair.rejected},
    }
    found: JsonObject = orjson.loads(dumped(whole))
    return found


def print_pair(pair: RowPair) -> None:
    """Print a row, and below it what was made of it."""
    if pair.row is None and not (pair.made or pair.rejected):
        return
    typer.echo(f"{pair.source}, " + (f"row {pair.row}" if pair.row else "beside its rows"))
    parts = [("in", dumped(pair.given))] if pair.given is not None else []
    parts += [("out", dumped(row)) for row in pair.made]
    parts += [("rejected", why) for why in pair.rejected]
    if not (pair.made or pair.rejected):
        parts.append(("out", "(nothing)"))
    for name, text in parts:
        typer.echo(f"  {name:<9}{text}")


def dumped(value: object) -> str:
    """A value as JSON; a part that has no form there as its text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def processor_of(target: str, registry: Path | None, source: str) -> CloudProcessor:
    """The processor; what an unconfigured one lacks is filled in, as nothing is sent."""
    path = registry_path(registry)
    configured = path.exists() and target in {s.handler_id for s in load_registry(path).handlers}
    if not configured and registry is None and (entry := class_of_entry(target)):
        target = f"{entry.__module__}:{entry.__qualname__}"
    filled: JsonObject = {}
    folder = Path(source) if Path(source).is_dir() else Path(source).absolute().parent
    fillings = iter([("data_roots", [str(folder)]), *_PLACEHOLDERS.items()])
    # One at a time, and only while it is refused: what has a value of its own keeps it.
    while True:
        try:
            made = make_handler(target, registry=registry, flags=Flags(config=filled))
            if not isinstance(made, CloudProcessor):
                kind = type(made).__name__
                raise ConfigError(f"{kind} is not a CloudProcessor: it uploads nothing")
            break
        except ConfigError:
            filling = next(fillings, None)
            if configured or filling is None:
                raise
            filled = {**filled, filling[0]: filling[1]}
    if not (made.runtime.installation_id or (made.state_dir / "installation_id").exists()):
        # One that never started has no id yet, and a preview makes none.
        runtime = made.runtime.model_copy(update={"installation_id": "(made at first start)"})
        made._attach(runtime=runtime, handler_id=made.handler_id)
    return made


def read_as(file: FoundFile) -> str:
    """What a file was read as, in a line."""
    known = [file["kind"], file["encoding"], file["delimiter"] and repr(file["delimiter"])]
    text = ", ".join(part for part in known if part)
    columns = "" if file["columns"] is None else f" of {file['columns']} columns"
    return f"{file['source']}: {text}; {file['rows']} rows{columns}"


def body_text(request: Request, lines: int | None) -> str:
    """A body's content as text, some lines of it; binary ones by their size."""
    try:
        text = request.plain.decode()
    except UnicodeDecodeError:
        return f"({len(request.plain)} bytes of {request.headers.get('Content-Type')})"
    kept = text.splitlines()
    if lines is None or len(kept) <= lines:
        return text
    return "\n".join([*kept[:lines], f"… {len(kept) - lines} more lines"])


def print_request(request: Request, lines: int) -> None:
    """Print a request as it would be sent, with some lines of its body."""
    typer.echo(f"{request.method} {request.url}")
    for name, value in request.headers.items():
        typer.echo(f"{name}: {value}")
    packed = request.headers.get("Content-Encoding")
    note = f", unpacked {len(request.plain)}" if packed else ""
    typer.echo(f"Content-Length: {len(request.body)}{note}\n")
    typer.echo(body_text(request, lines).rstrip("\n") + "\n")


def write_bodies(requests: list[Request], folder: Path) -> None:
    """Each body as a private file of its own, byte for byte: it holds the client's data."""
    make_private(folder)
    for number, request in enumerate(requests, 1):
        name = request.url.partition("?")[0].rstrip("/").rpartition("/")[2]
        path = folder / f"{number:04}-{request.method}-{name}"
        create_private(path)
        path.write_bytes(request.body)
