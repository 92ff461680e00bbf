"""The how-tos on sources do what they print: a Singer tap, an API in code, an object store."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from tests.cloud.environments import environment
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site
from tests.cloud.taps import FaultyTap, entry, schema, state
from tests.cloud.test_checking import answering

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of a kind on a page."""
    found: list[str] = re.findall(
        rf"^```{kind}\n(.*?)^```", (PAGES / page).read_text(), re.S | re.M
    )
    return found


async def test_the_page_on_taps_declares_what_its_catalog_selects(tmp_path: Path) -> None:
    _, orders = map(json.loads, blocks("read-from-a-singer-tap.md", "json"))
    ((registry),) = map(yaml.safe_load, blocks("read-from-a-singer-tap.md", "yaml"))
    (code,) = blocks("read-from-a-singer-tap.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  # the page's own
    orders["schema"] = {"properties": {"order_id": {}, "updated_at": {}, "email": {}}}
    tap = FaultyTap(tmp_path, orders, entry("public-customers", "FULL_TABLE"))
    order = {"order_id": 1, "updated_at": "a", "email": "a@b.example"}
    customer = {"id": 7, "country": "DE", "name": "Ada"}
    records = (("public-orders", order), ("public-customers", customer))
    tap.does(
        *(schema("public-orders", "order_id"), schema("public-customers")),
        *({"type": "RECORD", "stream": stream, "record": row} for stream, row in records),
        state(**{"public-orders": "a"}),
    )
    ((name, printed),) = registry["config"]["taps"].items()

    assert printed.keys() == tap.config.keys()
    async with ReferenceBackend() as backend:
        taps = {name: tap.config}
        async with Site(backend.url, tmp_path, author=names["ShopProcessor"], taps=taps) as site:
            result = await site.run(f"singer:{name}")

    assert (result["status"], result["uploads"]) == ("uploaded", 2)
    assert sorted(backend.rows(), key=str) == [
        {"id": 7, "country": "DE"},
        {"order_id": 1, "updated_at": "a"},
    ]


@pytest.fixture
def acme(tmp_path: Path) -> Any:
    """Previews the class of a page: its requests, each with its body."""
    packages = next(environment("own-sources").glob("lib/*/site-packages"))

    async def previewed(page: str, source: str, **variables: str) -> list[dict[str, Any]]:
        (code,) = blocks(page, "python")
        # Behind our own packages: what both have is ours.
        borrowed = f"import sys; sys.path.append({str(packages)!r})\n"
        (tmp_path / "acme.py").write_text(borrowed + code)
        command = [sys.executable, "-m", "catalogzero", "preview", "acme:AcmeProcessor", source]
        process = await asyncio.create_subprocess_exec(
            *(*command, "--limit", "0", "--json"),
            cwd=tmp_path,
            env={"PATH": "/usr/bin", "HOME": str(tmp_path), **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        requests: list[dict[str, Any]] = json.loads(out)["requests"]
        return requests

    return previewed


def sent(requests: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The ids that were sent, and the values that the parts end at."""
    texts = [one["body"] for one in requests if "/chunks/" in one["url"]]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    ends = [json.loads(one["body"])["until"][0] for one in requests if one["method"] == "POST"]
    return [row["id"] for row in rows], ends


async def test_the_page_on_apis_reads_page_by_page_with_a_position_behind_each(acme: Any) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        page = int(request.query["page"])
        asked.append(f"{request.path} {request.headers['Authorization']}")
        if len(asked) == 2:
            return web.json_response({}, status=429, headers={"Retry-After": "0"})
        rows = [{"id": page * 10 + n, "updated_at": f"2026-01-0{page}T00:0{n}"} for n in (1, 2)]
        return web.json_response({"events": rows, "pages": 3})

    async with answering(answer) as url:
        settings = {"ACME_API_URL": url, "ACME_API_TOKEN": "t-1"}
        requests = await acme("read-an-api.md", "events", **settings)

    ids, ends = sent(requests)
    assert ids == [11, 12, 21, 22, 31, 32]
    assert ends == ["2026-01-01T00:02", "2026-01-02T00:02", "2026-01-03T00:02"]
    assert asked == ["/v1/events Bearer t-1"] * 4


async def test_the_page_on_object_stores_reads_object_by_object(acme: Any, tmp_path: Path) -> None:
    for name, ids in (("b/2.jsonl", (3,)), ("b/1.jsonl", (1, 2)), ("other/3.jsonl", (9,))):
        path = tmp_path / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f'{{"id": {number}}}\n' for number in ids))

    url = (tmp_path / "bucket").as_uri()
    requests = await acme("read-an-object-store.md", "b", ACME_BUCKET_URL=url)

    assert sent(requests) == ([1, 2, 3], ["b/1.jsonl", "b/2.jsonl"])
