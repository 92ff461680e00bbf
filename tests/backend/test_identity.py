"""One installation, one writer; a restored backend is seen; another mode needs `full`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from catalogzero.backend.generations import renew
from catalogzero.backend.store import BackendDatabase

from tests.backend.peer import Answer, Peer
from tests.backend.test_command import run

HEADER = "Catalogzero-Generation"
CHANGED = "generation-changed"


async def start(
    peer: Peer, epoch: int = 0, nonce: str = "", name: str = "site-1", last_nonce: str = ""
) -> Answer:
    """A folder's start."""
    about = {"entry": "skylark", "epoch": epoch, "nonce": nonce, "last_nonce": last_nonce}
    return await peer.ask("PUT", f"/v1/installations/{name}", json=about)


async def deliver(peer: Peer, upload: str, **fields: Any) -> Answer:
    """One chunk of one record, and its complete."""
    await peer.put(upload, 0, {"upload": upload})
    return await peer.complete(upload, **fields)


async def test_each_start_takes_an_epoch_above_the_last_and_not_below_the_clock(
    peer: Peer,
) -> None:
    first = await start(peer)
    second = await start(peer, first.json["epoch"])
    higher = await start(peer, second.json["epoch"] + 10**9)
    empty = await start(peer)

    epochs = [answer.json["epoch"] for answer in (first, second, higher, empty)]
    assert epochs == sorted(set(epochs))
    assert epochs[0] > 1_700_000_000_000
    assert epochs[2] > second.json["epoch"] + 10**9


async def test_an_older_folder_is_refused_and_nothing_changes(peer: Peer) -> None:
    old = (await start(peer)).json["epoch"]
    new = (await start(peer)).json["epoch"]

    refused = await start(peer, old)
    again = await start(peer, new)

    assert (refused.status, refused.problem) == (409, "installation-moved")
    assert refused.json["since"]
    assert again.status == 200


async def test_a_start_whose_answer_was_lost_is_known_by_its_nonce(peer: Peer) -> None:
    old = (await start(peer)).json["epoch"]
    lost = (await start(peer, old, "n1")).json["epoch"]

    again = await start(peer, old, "n1")
    other = await start(peer, old, "n2")

    assert again.status == 200
    assert again.json["epoch"] > lost
    assert other.problem == "installation-moved"


async def test_a_start_that_comes_again_on_its_way_takes_nobodys_place(peer: Peer) -> None:
    own = (await start(peer, 0, "n1")).json["epoch"]
    repeated = (await start(peer, 0, "n1")).json["epoch"]  # late: nobody heard the answer
    refused = await deliver(peer, "u1", installation_epoch=own)
    again = await start(peer, own, "n2", last_nonce="n1")
    other = await start(peer, 0, "n3")
    late = await start(peer, 0, "n1")
    older = await start(peer, again.json["epoch"], "n4", last_nonce="n2")

    assert own < repeated
    assert (refused.problem, again.status, other.status) == ("installation-moved", 200, 200)
    assert late.problem == older.problem == "installation-moved"
    assert (await start(peer, other.json["epoch"])).status == 200


async def test_a_start_for_another_generation_takes_no_epoch(peer: Peer) -> None:
    about = {"entry": "skylark", "epoch": 0, "nonce": "n1"}
    first = await peer.ask("PUT", "/v1/installations/site-1", json=about | {"generation": ""})
    named = first.json["generation"]
    own = await peer.ask("PUT", "/v1/installations/site-1", json=about | {"generation": named})
    epoch = own.json["epoch"]
    database = BackendDatabase(peer.database)
    renewed = database.write_now(renew)
    database.close()

    late = await peer.ask("PUT", "/v1/installations/site-1", json=about | {"generation": named})
    again = {"entry": "skylark", "epoch": epoch, "nonce": "n2", "generation": renewed}
    known = await peer.ask("PUT", "/v1/installations/site-1", json=again)

    assert (first.status, first.problem) == (late.status, late.problem) == (409, CHANGED)
    assert named == first.headers[HEADER] == own.json["generation"]
    assert late.json["generation"] == late.headers[HEADER] == renewed
    assert (own.status, known.status) == (201, 200)


async def test_a_complete_of_an_older_folder_is_refused_before_anything_else(peer: Peer) -> None:
    old = (await start(peer)).json["epoch"]
    await deliver(peer, "u1", installation_epoch=old)
    new = (await start(peer)).json["epoch"]

    finished = await peer.complete("u1", installation_epoch=old)
    late = await deliver(peer, "u2", upload_key="k2", source_seq=2, installation_epoch=old)
    without = await peer.complete("u2", upload_key="k2", source_seq=2)
    own = await peer.complete("u2", upload_key="k2", source_seq=2, installation_epoch=new)

    for answer in (finished, late, without):
        assert (answer.status, answer.problem) == (409, "installation-moved")
        assert answer.json["since"]
    assert own.status == 201
    assert peer.visible() == [{"upload": "u2"}]


async def test_an_installation_without_epochs_needs_none(peer: Peer) -> None:
    answer = await deliver(peer, "u1")

    assert answer.status == 201


async def test_a_higher_epoch_is_one_of_before_a_restore_and_is_kept(peer: Peer) -> None:
    await deliver(peer, "u1", installation_epoch=2**45)

    older = await start(peer, 2**45 - 1)
    own = await start(peer, 2**45)

    assert older.problem == "installation-moved"
    assert own.json["epoch"] > 2**45


async def test_an_array_of_an_older_folder_is_refused(peer: Peer) -> None:
    old = (await start(peer, name="site é")).json["epoch"]
    new = (await start(peer, name="site é")).json["epoch"]
    statuses = []
    for epoch in (old, new):
        headers = {"Catalogzero-Installation": "site%20%C3%A9", "Catalogzero-Epoch": str(epoch)}
        answer = await peer.ask("POST", "/v1", json=[{"a": epoch}], headers=headers)
        statuses.append(answer.status)
        assert answer.headers[HEADER]

    assert statuses == [409, 201]
    assert peer.visible() == [{"a": new}]


async def test_a_start_is_answered_with_what_is_known_of_each_source(peer: Peer) -> None:
    append = {"mode": "append", "source_key": "orders", "upload_key": "0-5"}
    await deliver(peer, "u1", source_seq=7)
    await deliver(peer, "u2", **append, source_seq=8, until=[5, 8], full=True)
    three = {**append, "upload_key": "5-6"}
    await deliver(peer, "u3", **three, source_seq=9, after=[5, 8], until=[6, 9])

    answer = (await start(peer)).json

    assert answer["states"] == {
        "source-1": {"source_seq": 7, "watermark": None, "full_seq": 0, "mode": "replace"},
        "orders": {"source_seq": 9, "watermark": [6, 9], "full_seq": 8, "mode": "append"},
    }
    assert answer["sources"]["source-1"] == 7
    assert "next" not in answer


async def test_many_sources_are_reported_in_pages_of_one_generation_and_epoch(peer: Peer) -> None:
    await peer.complete("u1", chunks=0, records=0, source_key="s1")
    peer.execute(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)"
        " INSERT INTO sources (tenant_id, installation_id, source_key, key_digest, highest_seq)"
        " SELECT t.tenant_id, 'site-1', 's' || i, 'digest-' || i, i FROM n, tenants t"
        " WHERE t.name = :tenant"
    )

    pages = [(await start(peer)).json]
    while "next" in pages[-1]:
        place = pages[-1]["next"]
        more = await peer.ask("GET", f"/v1/installations/site-1?next={place}")
        assert more.status == 200
        pages.append(more.json)

    told = {key: state["source_seq"] for page in pages for key, state in page["states"].items()}
    assert told == {f"s{number}": number for number in range(1, 2_501)}
    assert len(pages) == 3
    assert len({(page["generation"], page["epoch"]) for page in pages}) == 1
    bad = await peer.ask("GET", "/v1/installations/site-1?next=x")
    unknown = await peer.ask("GET", "/v1/installations/nobody")
    assert (bad.status, unknown.status) == (400, 404)


async def test_every_answer_names_the_generation_and_a_restore_makes_another(peer: Peer) -> None:
    report = {"client_id": "site-1", "metrics": {}, "timestamp": ""}

    async def named() -> set[str]:
        answers = [
            await start(peer),
            await peer.ask("PUT", "/v1/installations/other", json={"entry": "older"}),
            await peer.ask("POST", "/v1/health", json=report),
            await deliver(peer, "u1", installation_id="x"),
            await peer.complete("u1", installation_id="x"),
            await peer.complete("u9", installation_id="x", source_seq=9, upload_key="k9"),
            await peer.complete("u1"),
        ]
        assert [answer.status for answer in answers[-2:]] == [409, 409]
        return {answer.headers[HEADER] for answer in answers}

    before = await named()
    again = await named()
    database = BackendDatabase(peer.database)
    made = database.write_now(renew)
    database.close()
    after = await named()

    assert before == again
    assert len(before) == len(after) == 1
    assert after == {made}
    assert before != after


async def test_another_mode_than_that_of_what_is_visible_needs_full(peer: Peer) -> None:
    await deliver(peer, "u1")
    append = {"mode": "append", "upload_key": "0-5", "source_seq": 2, "until": [5, 2]}

    doubled = await deliver(peer, "u2", **append)
    whole = await deliver(peer, "u2", **append, full=True)
    back = await deliver(peer, "u3", upload_key="k3", source_seq=3)

    assert (doubled.status, doubled.problem) == (409, "mode-changed")
    assert whole.status == 201
    assert (back.status, back.problem) == (409, "mode-changed")
    assert peer.visible() == [{"upload": "u2"}]


async def test_another_column_of_the_watermark_needs_full(peer: Peer) -> None:
    append = {"mode": "append", "watermark_of": "id"}
    await deliver(peer, "u1", **append, upload_key="1", until=[5, 1])
    two = {"upload_key": "2", "source_seq": 2, "after": [5, 1], "until": [9, 2]}

    other = await deliver(peer, "u2", **{**append, "watermark_of": "at"}, **two)
    same = await deliver(peer, "u2", **append, **two)

    assert (other.status, other.problem) == (409, "mode-changed")
    assert same.status == 201


def test_the_command_begins_another_generation(tmp_path: Path) -> None:
    database = ("--database", str(tmp_path / "backend.db"))

    first, second = (run("restored", *database, "--json") for _ in "ab")
    said = run("restored", *database)

    assert first.returncode == second.returncode == said.returncode == 0
    assert json.loads(first.stdout)["generation"] != json.loads(second.stdout)["generation"]
    assert "sends what is missing" in said.stdout
