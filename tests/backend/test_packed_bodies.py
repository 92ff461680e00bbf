"""Packed bodies: what a small one may unpack to, in memory that is bounded."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from tests.backend.peer import NDJSON, Peer
from tests.backend.test_command import run, served
from tests.protocol.streams import SKIPPABLE, gzip_bomb, pack, zstd_bomb


@pytest.mark.parametrize(
    ("coding", "body", "problem", "sentence"),
    [
        ("zstd", zstd_bomb(1_025), "too-large", "more than 2000 times its size"),
        ("zstd", zstd_bomb(1_025) + SKIPPABLE * 9_000, "too-large", "more than 134217728 bytes"),
        ("gzip", gzip_bomb(129), "too-large", "more than 134217728 bytes"),
        ("zstd", pack(b"", "zstd") * 10_001, "too-large", "more than 10000 zstd frames"),
        ("gzip", pack(b"", "gzip") * 10_001, "too-large", "more than 10000 gzip members"),
        ("zstd", zstd_bomb(9, 24), "too-large", "a window of more than 8 MiB"),
        ("zstd", pack(b"{}\n", "zstd") + b"more", "undecodable-body", "is damaged"),
        ("gzip", pack(b"{}\n", "gzip") + b"more", "undecodable-body", "is damaged"),
        ("gzip", pack(b"{}\n", "gzip") + b"\x1f", "undecodable-body", "has no end"),
    ],
)
async def test_a_body_over_a_bound_is_refused_with_the_bound(
    peer: Peer, coding: str, body: bytes, problem: str, sentence: str
) -> None:
    answer = await peer.put("u1", 0, data=body, headers={"Content-Encoding": coding})

    assert (answer.problem, answer.status) == (problem, 413 if problem == "too-large" else 400)
    assert sentence in answer.json["detail"]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_body_of_many_frames_is_read_to_its_end(peer: Peer, coding: str) -> None:
    lines = [b'{"n":%d}\n' % number for number in range(10_000)]
    body = b"".join(pack(line, coding) for line in lines)

    answer = await peer.put("u1", 0, data=body, headers={"Content-Encoding": coding})

    assert (answer.status, answer.json["records"]) == (201, 10_000)


async def test_bombs_at_once_leave_the_backend_s_memory_bounded(tmp_path: Path) -> None:
    """Bodies of 12 KB each, which stand for 384 MiB; two are unpacked at a time."""
    database = str(tmp_path / "backend.db")
    key = run("tenants", "add", "skylark", "--database", database).stdout.strip()
    headers = {"Authorization": f"Bearer {key}", **NDJSON, "Content-Encoding": "zstd"}
    with served("--database", database) as (process, announced):
        async with aiohttp.ClientSession(announced["endpoint"] + "/", headers=headers) as session:

            async def put(body: bytes) -> int:
                async with session.put("uploads/u1/chunks/0", data=body) as answer:
                    return answer.status

            assert await put(pack(b'{"n":1}\n', "zstd")) == 201
            before = peak_mib(process.pid)
            statuses = [await put(zstd_bomb(3_072)) for _ in range(8)]

        assert statuses == [413] * 8
        assert peak_mib(process.pid) - before < 160


def peak_mib(pid: int) -> int:
    """The most memory that a process ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
