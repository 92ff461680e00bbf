"""What docs/reference/upload-protocol.md says, and one might not expect, is so."""

from __future__ import annotations

import asyncio
import io
import math
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from catalogzero.protocol.bodies import Complete, Installation
from pydantic import BaseModel

from tests.backend.peer import Peer, completion

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "upload-protocol.md").read_text()
CSV = {"Content-Type": "text/csv"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}
LONG = "100000000000000000901"
"""More digits than a double, or 64 bits, can distinguish from …902."""


def names_in(heading: str) -> set[str]:
    """The names in the first column of the first table of fields below a heading."""
    table = PAGE.split(f"\n{heading}\n")[1].split("\n| field |")[1].split("\n\n")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(cells)))


def nested(depth: int, value: str = "") -> str:
    """A record whose value nests."""
    return f'{{"a":{"[" * depth}{value}{"]" * depth}}}'


@pytest.mark.parametrize(
    ("heading", "model"),
    [("### Complete", Complete), ("## Installations and epochs", Installation)],
)
def test_the_page_names_every_field_of_a_body(heading: str, model: type[BaseModel]) -> None:
    assert names_in(heading) == set(model.model_fields)


async def test_the_lines_of_curl_make_an_upload_visible(peer: Peer) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    lines = PAGE.split("## By hand")[1].split("```sh\n")[1].split("```")[0]
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-ec", lines),
        env={**os.environ, "BASE": peer.url + "/v1", "KEY": peer.key},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await shell.communicate()

    assert shell.returncode == 0
    assert b'"state":"complete"' in said
    assert peer.visible() == [{"flight": 1}]


async def test_the_document_for_machines_needs_no_key(peer: Peer) -> None:
    answer = await peer.ask("GET", "/v1/openapi.json", headers={"Authorization": ""})

    assert answer.json["openapi"].startswith("3.1")


@pytest.mark.parametrize(
    ("stored", "again"),
    [
        ('{"n":1}', '{"n":1.0}'),
        ('{"n":1}', '{"n":true}'),
        ('{"n":1.0}', '{"n":1.00}'),
        ('{"n":"1"}', '{"n":1}'),
        ('{"n":["1"]}', '{"n":[1]}'),
        (f'{{"n":{LONG}}}', f'{{"n":{LONG[:-1]}2}}'),
        ('{"n":0.1000000000000000055}', '{"n":0.1000000000000000056}'),
        (nested(1_000, "1"), nested(1_000, "2")),
    ],
)
async def test_other_records_are_distinguished_to_the_last_digit(
    peer: Peer, stored: str, again: str
) -> None:
    await peer.put("u1", 0, data=stored)

    answer = await peer.put("u1", 0, data=again)

    assert (answer.status, answer.problem) == (409, "chunk-differs")
    assert (await peer.put("u1", 0, data=stored)).status == 200


async def test_spelling_does_not_make_another_record(peer: Peer) -> None:
    await peer.put("u1", 0, data=f'{{"n":{LONG},"text":"a\u00e4\u2028"}}')

    answer = await peer.put("u1", 0, data=f'\n{{ "text": "\\u0061ä\\u2028", "n": {LONG} }}\r\n')

    assert answer.status == 200


async def test_records_keep_every_digit_and_u_0000_in_both_forms(peer: Peer) -> None:
    texts = [f'{{"n": {LONG}, "f":1.10}}', '{"nul":"\\u0000"}']
    await peer.put("u1", 0, data="\n".join(texts))
    await peer.complete("u1", records=2)
    array = f"[ {texts[0]} ,\n{texts[1]}]"
    await peer.ask("POST", "/v1", data=array, headers={"Content-Type": "application/json"})

    rows = peer.sql("SELECT payload FROM visible_records WHERE tenant = :tenant")
    assert sorted(row[0] for row in rows) == sorted(texts * 2)


async def test_an_array_with_line_ends_and_spaces_inside_is_its_records(peer: Peer) -> None:
    array = '[\n  {\n    "a": [1, "],{"]\n  },\r\n  {}\n]\n'
    await peer.ask("POST", "/v1", data=array, headers={"Content-Type": "application/json"})

    assert peer.visible() == [{"a": [1, "],{"]}, {}]


async def test_an_array_that_nests_deeper_than_python_reads_is_refused(peer: Peer) -> None:
    array = f"[{nested(1_010)}]"
    answer = await peer.ask("POST", "/v1", data=array, headers={"Content-Type": "application/json"})

    assert answer.status == (422 if sys.version_info < (3, 12) else 201)


async def test_an_empty_cell_is_null_and_blank_lines_and_marks_are_passed_over(
    peer: Peer,
) -> None:
    body = '\ufeffa,b\n\n,""\r\n"x,"",",\n\n'.encode()
    await peer.put("u1", 0, data=body, headers=CSV)
    await peer.put("u1", 1, data='\ufeff{"n":1}\n \n\n{"n":2}'.encode())
    await peer.put("u1", 2, data=b"")
    answer = await peer.complete("u1", chunks=3, records=4)

    assert answer.status == 201
    assert peer.visible() == [{"a": None, "b": ""}, {"a": 'x,",', "b": None}, {"n": 1}, {"n": 2}]


async def test_values_of_parquet_become_those_of_json(peer: Peer) -> None:
    sink = io.BytesIO()
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    row = {"nan": math.nan, "amount": Decimal("1.50"), "at": at, "raw": b"\0\1", "n": 2**60 + 1}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), sink)
    await peer.put("u1", 0, data=sink.getvalue(), headers=PARQUET)
    await peer.complete("u1")

    as_json = {"nan": None, "amount": "1.50", "at": "2026-01-02T03:04:05+00:00", "raw": "AAE="}
    assert peer.visible() == [{**as_json, "n": 2**60 + 1}]


async def test_columns_of_one_name_are_refused(peer: Peer) -> None:
    sink = io.BytesIO()
    table = pyarrow.Table.from_arrays([[1], [2]], names=["a", "a"])
    pyarrow.parquet.write_table(table, sink)

    answers = [
        await peer.put("u1", 0, data=b"a,b,a\n1,2,3\n", headers=CSV),
        await peer.put("u1", 0, data=sink.getvalue(), headers=PARQUET),
    ]

    assert [(a.status, a.problem) for a in answers] == [(422, "refused-records")] * 2


@pytest.mark.parametrize("record", ['{"a":"\\ud800"}', '{"a":NaN}', '{"a":"\t"}', "[1]"])
async def test_what_is_no_record_is_refused(peer: Peer, record: str) -> None:
    assert (await peer.put("u1", 0, data=record)).status == 422


async def test_a_body_of_records_names_its_type_and_others_need_none(peer: Peer) -> None:
    bare = {"Content-Type": ""}
    untyped = [
        await peer.put("u1", 0, data=b"{}\n", headers=bare),
        await peer.ask("POST", "/v1", data=b"[]", headers=bare),
    ]
    await peer.put("u1", 0, {})
    body = orjson.dumps(completion())
    done = await peer.ask("POST", "/v1/uploads/u1/complete", data=body, headers=bare)

    assert [answer.status for answer in untyped] == [415, 415]
    assert done.status == 201


async def test_a_body_may_come_in_pieces_without_a_length(peer: Peer) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"n"', b":1}\n"):
            yield piece

    answer = await peer.put("u1", 0, data=pieces())

    assert (answer.status, answer.json["records"]) == (201, 1)


async def test_refusals_have_an_order(peer: Peer) -> None:
    async def chunk(upload: str, body: bytes, **headers: str) -> int:
        return (await peer.put(upload, 0, data=body, headers=headers)).status

    await peer.put("u1", 0, {"a": 1})
    await peer.complete("u1")

    assert await chunk("u1", b"no", Authorization="") == 401
    assert await chunk("u" * 129, b"no") == 400
    assert await chunk("u1", b"no") == 422
    assert await chunk("u1", b"{}") == 410
    await peer.put("u2", 0, {"a": 1})
    other = {"mode": "append", "upload_key": "k", "source_seq": 2}
    assert (await peer.complete("u2", **other, chunks=2)).problem == "mode-changed"
    more = {"upload_key": "k", "source_seq": 2, "records": 9}
    assert (await peer.complete("u2", **more, chunks=2)).problem == "chunks-missing"
    assert (await peer.complete("u2", **more)).problem == "totals-differ"


async def test_an_append_to_an_unknown_source_follows_null(peer: Peer) -> None:
    append = {"mode": "append", "source_seq": 7, "chunks": 0, "records": 0}

    late = await peer.complete("u1", **append, after=5, until=9)
    first = await peer.complete("u2", **append, upload_key="k", until=5)
    again = await peer.complete("u1", **append, after=5, until=9)

    assert late.json == {"superseded": True, "source_seq": 0, "watermark": None}
    assert first.status == 201
    assert again.json == {"superseded": True, "source_seq": 7, "watermark": 5}


@pytest.mark.parametrize(("depth", "status"), [(200, 409), (300, 400), (900, 400)])
async def test_params_that_nest_are_taken_or_refused(peer: Peer, depth: int, status: int) -> None:
    nested = b"[" * depth + b"]" * depth
    body = orjson.dumps(completion(params="nested")).replace(b'"nested"', nested)

    answer = await peer.ask("POST", "/v1/uploads/u1/complete", data=body)

    assert answer.status == status
