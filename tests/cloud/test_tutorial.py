"""Every block of "Write a processor" and "Run a backend" does what its page says."""

from __future__ import annotations

import importlib
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from catalogzero import (
    BadParamsError,
    Checkpoint,
    CloudProcessor,
    FailedError,
    Params,
    Rows,
    Stream,
)
from catalogzero.backend.server import serving as backend_serving
from catalogzero.cli.main import app
from catalogzero.cloud.settings import CloudSettings
from catalogzero.runtime.launch import make_handler
from catalogzero.testing import in_run, serving
from typer.testing import CliRunner

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site

DOCS = Path(__file__).parents[2] / "docs"
CSV = "id,price\n1,9.5\n2,10\n3,40\n"


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of a page, those in lists too, without their indent."""
    found = re.findall(rf"^( *)```{kind}\n(.*?)^ *```", (DOCS / page).read_text(), re.S | re.M)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


PROCESSOR, REJECTING, TYPED, IN_RUN, AGGREGATE, OWN_READ, PAGES, STREAMS = blocks(
    "tutorial/write-a-processor.md", "python"
)
REGISTRY, QUERIES, LOOKBACK = blocks("tutorial/write-a-processor.md", "yaml")
PREVIEW, SERVICE = blocks("tutorial/write-a-processor.md", "sh")


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's handler as `acme.handler`, and data."""
    package = tmp_path / "acme"
    package.mkdir()
    (package / "handler.py").write_text(PROCESSOR)
    (tmp_path / "exports").mkdir()
    for path in (tmp_path / "sample.csv", tmp_path / "exports" / "orders.csv"):
        path.write_text(CSV)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("acme", "acme.handler"):
        sys.modules.pop(name, None)


def test_the_preview_shows_what_the_page_says(acme: Path) -> None:
    done = CliRunner().invoke(app, shlex.split(PREVIEW)[1:])

    assert done.exit_code == 0, done.output
    assert '{"id":"2","price":"10"}' in done.output
    assert '"1"' not in done.output
    assert "nothing was sent: 2 records" in done.output


async def test_the_section_makes_a_handler_that_uploads(acme: Path) -> None:
    (acme / "key").write_text("a-key")
    async with ReferenceBackend("a-key") as backend:
        places = {"/etc/acme/api_key": acme / "key", "/data/exports": acme / "exports"}
        text = REGISTRY.replace("https://api.acme.example/v1", backend.url)
        for place, here in places.items():
            text = text.replace(place, str(here))
        (acme / "handler_registry.yaml").write_text(text)
        handler = make_handler("acme")
        call = shlex.split(SERVICE.splitlines()[-1])
        params = yaml.safe_load(call[call.index("--params") + 1])
        params["data_source"] = str(acme / "exports")
        async with serving(handler, state_dir=acme / "state", min_file_age_s=0) as at:
            done = await at.client.call(call[3], params)

    assert (done["status"], done["records"]) == ("uploaded", 2)
    assert backend.rows() == [{"id": "2", "price": "10"}, {"id": "3", "price": "40"}]


def test_a_row_that_is_rejected_is_quarantined() -> None:
    space: dict[str, Any] = {}
    exec(f"class Careful:\n{REJECTING}", space)  # noqa: S102 - the page's own example
    careful, rejected = space["Careful"](), list[tuple[Any, str]]()
    careful.reject = lambda row, why: rejected.append((row, why))

    kept = list(careful.process([[{"price": "1"}, {"price": "n/a"}]], {}))

    assert kept == [[{"price": 1.0}]]
    assert rejected == [({"price": "n/a"}, "price is no number")]


async def test_typed_params_are_checked_and_one_is_no_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "typed_page.py").write_text(TYPED)
    monkeypatch.syspath_prepend(tmp_path)
    author = importlib.import_module("typed_page").TypedProcessor
    async with ReferenceBackend() as backend, Site(backend.url, tmp_path, author=author) as site:
        site.write("a.csv", CSV)
        with pytest.raises(BadParamsError, match=r"params\.leest: there is no such key"):
            await site.run(params={"leest": 10})
        await site.run(params={"least": 10, "as_of": "2026-01-01"})
        other = await site.run(params={"least": 10, "as_of": "2026-01-02"})
        full = await site.run(params={"least": 10, "as_of": "2026-01-02"}, full=True)

    assert (other["status"], full["status"]) == ("unchanged", "uploaded")
    assert [(row["id"], row["as_of"]) for row in backend.rows()] == [
        ("2", "2026-01-02"),
        ("3", "2026-01-02"),
    ]


def test_a_test_stands_for_a_run() -> None:
    space: dict[str, Any] = {"in_run": in_run}
    exec(f"class Careful:\n{REJECTING}", space)  # noqa: S102 - the page's own example
    cls: Any = type("Careful", (space["Careful"], CloudProcessor), {})
    made = cls(endpoint="https://api.acme.example/v1", api_key="k", data_roots=["/data"])

    exec(IN_RUN, space := {**space, "processor": made})  # noqa: S102 - as above

    assert space["rows"] == [[]]
    assert space["rejected"] == [({"price": "n/a"}, "price is no number")]


def test_an_aggregate_is_one_row() -> None:
    space: dict[str, Any] = {}
    exec(f"class Sums:\n{AGGREGATE}", space)  # noqa: S102 - the page's own example

    rows = [[{"price": "1"}], [{"price": "2"}, {"price": "3"}]]

    assert list(space["Sums"]().process(rows, {})) == [[{"total": 6.0}]]


def test_the_named_query_is_one_that_the_settings_take() -> None:
    config = yaml.safe_load(QUERIES)["config"]

    settings = CloudSettings(endpoint="https://api.acme.example/v1", api_key="k", **config)

    assert settings.sources["orders"].watermark == "id"


async def test_an_own_read_goes_on_from_its_watermark(tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    exec(f"class Own:\n{re.sub('^', '    ', OWN_READ, flags=re.M)}", space)  # noqa: S102 - as above
    pages = [SimpleNamespace(number=n, rows=[{"n": n}]) for n in (1, 2)]

    def newer(self: Any, data_source: str, since: int) -> list[SimpleNamespace]:
        return [page for page in pages if page.number > since]

    cls: Any = type("Pages", (space["Own"], CloudProcessor), {"pages": newer})
    handler = cls(endpoint="https://api.acme.example/v1", api_key="k")

    assert handler.reads_itself
    assert [list(handler.read("shop", {}, after)) for after in (None, 1, 2)] == [
        [[{"n": 1}], [{"n": 2}]],
        [[{"n": 2}]],
        [],
    ]


async def test_a_read_with_checkpoints_goes_on_behind_the_last_page(tmp_path: Path) -> None:
    space: dict[str, Any] = {"Checkpoint": Checkpoint}
    exec(f"class Own:\n{re.sub('^', '    ', PAGES, flags=re.M)}", space)  # noqa: S102 - as above
    calls: list[int] = []

    class Paged(space["Own"], CloudProcessor):  # type: ignore[name-defined,misc,valid-type]
        stream = "pages"

        def page(self, data_source: str, number: int) -> Rows:
            calls.append(number)
            if calls == [0, 1]:
                raise OSError("429")
            return [{"page": number}] if number < 3 else []

        def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Rows]:
            yield from batches

    async with (
        ReferenceBackend() as backend,
        Site(backend.url, tmp_path, author=Paged) as site,
    ):
        with pytest.raises(FailedError, match="429"):
            await site.run("api")
        await site.run("api")

    assert calls == [0, 1, 1, 2, 3]
    assert sorted(row["page"] for row in backend.rows()) == [0, 1, 2]


async def test_the_streams_of_the_page_are_sent(tmp_path: Path) -> None:
    space: dict[str, Any] = {"Stream": Stream}
    exec(f"class Own:\n{re.sub('^', '    ', STREAMS, flags=re.M)}", space)  # noqa: S102 - as above
    cls: Any = type("Several", (space["Own"], CloudProcessor), {})
    config = yaml.safe_load(LOOKBACK)["config"]

    async with ReferenceBackend() as backend, Site(backend.url, tmp_path, author=cls) as site:
        site.write("a.csv", "id,user\n1,ann\n")
        await site.run()

    assert backend.rows() == [{"order_id": "1", "user": "ann"}, {"user": "ann"}]
    assert CloudSettings(endpoint=backend.url, api_key="k", **config).sources["orders"].lookback


async def test_the_mounted_backend_takes_requests_and_has_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    served: list[tuple[web.Application, dict[str, Any]]] = []
    (code,) = blocks("how-to/run-a-backend.md", "python")
    assert "web.run_app(" in code
    take = {"take": lambda app, **options: served.append((app, options))}
    exec(code.replace("web.run_app(", "take("), take)  # noqa: S102 - as above
    (application, options), *_ = served

    async with backend_serving(application) as url, aiohttp.ClientSession() as session:
        answer = await session.put(f"{url}/v1/process/installations/one", json={})

    assert options == {"auto_decompress": False}
    assert answer.status == 401
    query = blocks("how-to/get-at-the-rows.md", "sql")[0]
    lite = query.replace("data ->> 'carrier'", "json_extract(payload, '$.carrier')")
    with closing(sqlite3.connect("backend.db")) as database:
        assert database.execute(lite).fetchall() == []
