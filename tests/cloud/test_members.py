"""Several at work on one outbox in PostgreSQL: what one does is nothing to the others' harm."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing, WholeUpload
from catalogzero.cloud.outbox.stored import EPOCH, MOVED, NONCE
from catalogzero.protocol.bodies import Known
from catalogzero.sql import postgresql
from sqlalchemy import make_url
from structlog.testing import capture_logs

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until
from tests.cloud.stores import stores
from tests.sql.tcp_proxy import TcpProxy

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True),
    pytest.mark.usefixtures("store_kind"),
]


@contextmanager
def outboxes(folder: Path, *names: str) -> Iterator[list[Outbox]]:
    """Outboxes of instances on one store; each keeps few rows of ended uploads."""
    with ExitStack() as undo:
        made = [
            Outbox(folder, SystemClock(), stores.shared(folder, name), kept_ended=3)
            for name in names
        ]
        for outbox in made:
            undo.callback(outbox.close)
        yield made


def sealed(outbox: Outbox, source: str) -> str:
    """The upload_id of a sealed upload of a source."""
    upload_id = uuid.uuid4().hex
    opening = Opening(upload_id, source, source, "replace", full=False, params={})
    chunk = Chunk(seq=0, records=1, body=b"1", coding="identity", content_type="text/csv")
    sealing = Sealing(upload_id=upload_id, upload_key=upload_id)
    upload = WholeUpload(opening=opening, chunks=[chunk], sealing=sealing)
    assert outbox.seal_whole([[upload]]) == [None]
    return upload_id


def test_a_beat_that_comes_after_the_end_pauses_nobody(tmp_path: Path) -> None:
    with outboxes(tmp_path, "a", "b") as (a, b):
        a.join()
        b.join()
        a.leave()

        assert not a.beat("site")
        assert b.store.fact(MOVED) is None
        assert b.beat("site") is False


def test_a_start_that_a_killed_instance_owed_is_made_by_the_next_that_joins(
    tmp_path: Path,
) -> None:
    with outboxes(tmp_path, "a", "b", "c") as (a, b, c):
        a.remember(EPOCH, 7)
        assert a.join()
        # It is killed here: its lease goes on, and nobody has compared.
        assert b.join()
        b.started(Known(epoch=8, generation="g", states={}), "site", str(b.store.fact(NONCE)))

        assert not c.join()


def test_the_rows_of_a_run_stay_while_another_instance_ends_uploads(tmp_path: Path) -> None:
    with outboxes(tmp_path, "a", "b") as (a, b):
        a.join()
        b.join()
        with a.keeping():
            mine = [sealed(a, f"mine-{number}") for number in range(6)]
            for upload_id in mine:
                b.done(upload_id, "job")
            during = a.store.summary(mine, 20)
        b.done(sealed(b, "later"), "job")

        assert during.states == {"done": 6}
        assert a.store.summary(mine, 20).states == {"done": 2}


async def test_the_loop_goes_on_while_the_store_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status says so, and sending goes on once the store is back."""
    monkeypatch.setattr(postgresql, "WAIT_S", 0.5)
    (tmp_path / "state").mkdir()
    database = make_url(stores.url_of(tmp_path / "state" / "site") or "")
    with TcpProxy(database.host or "", database.port or 5432) as proxy, capture_logs() as lines:
        behind = database.set(host="127.0.0.1", port=proxy.port)
        runtime = {"state": behind.render_as_string(hide_password=False), "upload_wait_s": 60}
        async with (
            ReferenceBackend() as backend,
            Site(backend.url, tmp_path, runtime=runtime) as site,
        ):
            site.write("a.csv", "n\n1\n")
            assert (await site.run())["status"] == "uploaded"
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            gaps = [begun_s]
            proxy.mute()
            while not says(site, "does not answer") or not logged(lines, "cannot be read"):
                await asyncio.sleep(0)
                gaps.append(loop.time())
                assert gaps[-1] - begun_s < 60
            proxy.speak()
            site.write("b.csv", "n\n2\n")
            await until(lambda: not says(site, "does not answer"))
            assert (await site.run())["status"] == "uploaded"
            assert sorted(row["n"] for row in backend.rows()) == ["1", "2"]
    longest_s = max(later - one for one, later in pairwise(gaps))
    assert longest_s < postgresql.ANSWER_S / 2


def says(site: Site, text: str) -> bool:
    """Whether a reason in the status says so."""
    return any(text in reason for reason in site.status.get("reasons", ()))


def logged(lines: Iterable[MutableMapping[str, Any]], text: str) -> bool:
    """Whether a line of the log says so."""
    return any(text in str(line["event"]) for line in lines)
