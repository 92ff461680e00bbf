"""`catalogzero catalog`: publish a catalog, look into one, install from one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli import catalog_client as client
from catalogzero.cli.output import JsonFlag, PackageFolder, print_answer, print_json

app = typer.Typer(no_args_is_help=True, help="Publish a catalog; install from one.")


@app.command("build")
def build(
    dists: Annotated[list[Path], typer.Argument(help="Wheels, or folders with wheels.")],
    *,
    out: Annotated[Path, typer.Option(help="The site's folder; an existing one is added to.")],
    find_links: Annotated[
        list[Path] | None, typer.Option(help="Folder with wheels of the dependencies.")
    ] = None,
    index_url: Annotated[
        str | None, typer.Option(help="Index of the dependencies; default: pip's own setting.")
    ] = None,
    no_index: Annotated[bool, typer.Option("--no-index", help="Ask no index at all.")] = False,
    python: Annotated[
        list[str] | None,
        typer.Option(help="Python to serve, such as 3.12; default: each that is allowed."),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            help="Platform to serve, such as manylinux_2_28_x86_64; default: this machine's."
        ),
    ] = None,
    yank: Annotated[
        list[str] | None, typer.Option(help="id==version=reason: warn clients off a release.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="A published file may change its content.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Publish entries with everything that they need as a static site.

    Every Python that an entry's requires-python and catalogzero allow is served, on this
    machine's platform, unless you name others.

    Example: catalogzero catalog build dist/ --out site
    """
    from catalogzero.entry import index
    from catalogzero.entry.lock import Origin

    report = index.build_catalog(
        dists,
        out,
        origin=Origin(tuple(find_links or ()), index_url, no_index),
        pythons=python or (),
        platforms=platform or (),
        yank=dict(parse_yank(text) for text in yank or ()),
        replace=replace,
    )
    if as_json:
        print_json(report)
        return
    for entry_id, version in report.entries.items():
        machines = ", ".join(report.serves[entry_id]) or "no machine: build it again"
        typer.echo(f"{entry_id} {version} for {machines}")
    size_mb = report.bytes / 1_000_000
    typer.echo(
        f"{report.out}: {report.wheels} wheels, {size_mb:.1f} MB. Serve it with any web "
        f"server, or look at it: catalogzero catalog serve {report.out}"
    )


def parse_yank(text: str) -> tuple[str, str]:
    """`id==version=reason` as the release and the reason.

    Raises:
        typer.BadParameter: It is not of that form.
    """
    entry_id, mark, rest = text.partition("==")
    version, _, reason = rest.partition("=")
    if not (entry_id and mark and version):
        raise typer.BadParameter(f"{text!r}: write id==version=reason", param_hint="--yank")
    return f"{entry_id}=={version}", reason or "withdrawn by its vendor"


@app.command("lint")
def lint(
    folder: PackageFolder = Path(),
    *,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write what the code declares into the manifest.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check whether a package is fit for a catalog; exit code 1 where it is not.

    Example: catalogzero catalog lint acme-processor --fix
    """
    from catalogzero.entry import lint as rules
    from catalogzero.entry.package_source import read_package

    package = read_package(folder)
    changed = rules.fix(package) if fix else []
    findings = rules.lint(package)
    errors = [finding for finding in findings if finding.rule.severity == "error"]
    if as_json:
        listed = [
            # The key beside `fix` is its name of a release before, which goes with the next.
            {"code": one.rule.code, "demand": one.rule.demand, "fix": one.rule.fix}
            | {"severity": one.rule.severity, "mend": one.rule.fix}
            | {"path": one.path, "message": one.message}
            for one in findings
        ]
        print_json({"changed": [str(path) for path in changed], "findings": listed})
    else:
        for path in changed:
            typer.echo(f"{path} written")
        for finding in findings:
            typer.echo(finding, err=True)
        typer.echo(f"{len(errors)} errors, {len(findings) - len(errors)} warnings")
    raise typer.Exit(1 if errors else 0)


@app.command("serve")
def serve(
    site: Annotated[
        Path, typer.Argument(help="The site's folder.", exists=True, file_okay=False)
    ] = Path("site"),
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8880,
    as_json: JsonFlag = False,
) -> None:
    """Serve a catalog on this machine, for a look or for a network without a web server.

    Example: catalogzero catalog serve site --port 8880
    """
    from catalogzero.entry.serving import CatalogServer

    with CatalogServer(site, host, port) as server:
        print_answer({"url": server.url}, f"{server.url} (Ctrl-C ends it)", json=as_json)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


app.command("list")(client.list_entries)
app.command("show")(client.show)
app.command("install")(client.install)
app.command("upgrade")(client.upgrade)
app.command("remove")(client.remove)
