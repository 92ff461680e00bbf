"""The feed of events, and the view that shows the rows to others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from catalogzero.backend import feed
from catalogzero.backend.schema import uploads
from catalogzero.backend.store import BackendDatabase
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from tests.backend.peer import AT, Peer, serve_peer


async def events(peer: Peer, after: str = "0", wait_s: int = 0) -> tuple[list[Any], str]:
    """The peer's events after a cursor, and the next cursor."""
    path = f"/v1/events?after={after}&wait_s={wait_s}"
    told = (await peer.ask("GET", path, headers={"Authorization": ""})).json
    return [event for event in told["events"] if event["tenant"] == peer.name], told["next"]


async def deliver(peer: Peer, upload: str, **fields: Any) -> None:
    """One upload of one record, accepted."""
    await peer.put(upload, 0, {"upload": upload})
    assert (await peer.complete(upload, **fields)).status == 201


async def test_events_report_what_became_of_each_upload_in_order(peer: Peer) -> None:
    _, before = await events(peer)
    await deliver(peer, "u1")
    await deliver(peer, "u2", upload_key="k2", source_seq=2)
    append = {"mode": "append", "source_key": "orders"}
    await deliver(peer, "u3", **append, until=5)
    await peer.ask("POST", "/v1", json=[{"a": 1}], headers={"Idempotency-Key": "k"})
    await peer.complete("u2", upload_key="k2", source_seq=2)
    await peer.complete("late", upload_key="k9", source_seq=1)

    told, after = await events(peer, before)

    assert [(event["kind"], event["upload_id"]) for event in told[:4]] == [
        ("visible", "u1"),
        ("hidden", "u1"),
        ("visible", "u2"),
        ("visible", "u3"),
    ]
    assert told[0]["job_id"] == told[1]["job_id"] != told[2]["job_id"]
    assert (told[3]["stream"], told[3]["source_key"], told[3]["mode"]) == (
        "flights",
        "orders",
        "append",
    )
    assert (told[4]["records"], told[4]["source_key"], len(told)) == (1, None, 5)
    assert await events(peer, after) == ([], after)


async def test_a_question_waits_for_the_next_event(peer: Peer) -> None:
    _, before = await events(peer)
    asked = asyncio.create_task(events(peer, before, wait_s=30))
    await deliver(peer, "u1")

    async with asyncio.timeout(20):
        told, _ = await asked
    assert [event["upload_id"] for event in told] == ["u1"]


async def test_an_event_that_commits_late_is_not_passed_over(peer: Peer) -> None:
    if not peer.database.startswith("postgresql"):
        pytest.skip("SQLite has one writer: nothing commits out of order")
    await deliver(peer, "u1")
    _, before = await events(peer)
    late = BackendDatabase(peer.database)
    with late.writing() as connection:
        feed.note(connection, feed.What.REMOVED, uploads.c.upload_id == "u1", AT)
        await deliver(peer, "u2", upload_key="k2", source_key="another")
        early, cursor = await events(peer, before)
    told, _ = await events(peer, cursor)
    late.close()

    assert [event["kind"] for event in early] == ["visible"]
    assert [(event["kind"], event["upload_id"]) for event in told] == [("removed", "u1")]


async def test_the_feed_is_the_operator_s(database_url: str) -> None:
    async with serve_peer(database_url, operator_token="secret") as peer:  # noqa: S106
        shown = [f"Bearer {peer.key}", "", "Bearer secret"]
        answers = [
            await peer.ask("GET", "/v1/events", headers={"Authorization": token}) for token in shown
        ]
        wrong = await peer.ask(
            "GET", "/v1/events?after=-1", headers={"Authorization": "Bearer secret"}
        )

    assert [answer.status for answer in answers] == [401, 401, 200]
    assert (wrong.status, wrong.problem) == (400, "invalid-request")


async def test_no_record_breaks_a_query_of_the_view(peer: Peer) -> None:
    records = [
        '{"n":1,"t":"a\\u0000\\u0000b"}',
        '{"n":2,"t":"\\\\u0000"}',
        '{"n":3,"t":"\\\\\\u0000"}',
        '{"n":100000000000000000901}',
        f'{{"n":5,"deep":{"[" * 1_000}{"]" * 1_000}}}',
    ]
    await peer.put("u1", 0, data="\n".join(records))
    assert (await peer.complete("u1", records=len(records))).status == 201

    columns = "payload, job_id, completed_at, params, entry, version"
    rows = peer.sql(
        f"SELECT {columns} FROM visible_records WHERE tenant = :tenant ORDER BY row_index"  # noqa: S608
    )
    assert [row[0] for row in rows] == records
    assert all(rows[0][1:3])
    assert rows[0][3:] == ("{}", "skylark", "1.0")
    if peer.database.startswith("postgresql"):
        seen = peer.sql(
            "SELECT data ->> 'n', data ->> 't' FROM visible_records"
            " WHERE tenant = :tenant ORDER BY row_index"
        )
        assert seen[:3] == [("1", "a\ufffd\ufffdb"), ("2", "\\u0000"), ("3", "\\\ufffd")]
        assert seen[3][0] == "100000000000000000901"


async def test_a_role_that_reads_sees_the_view_alone(peer: Peer) -> None:
    if not peer.database.startswith("postgresql"):
        pytest.skip("SQLite has no roles")
    await deliver(peer, "u1")
    plain, _, options = peer.database.partition("?")
    engine = create_engine(f"{plain.replace('postgresql:', 'postgresql+psycopg:')}?{options}")
    role = f"reader_{peer.name[-8:]}"
    with engine.begin() as connection:
        schema = connection.execute(text("SELECT current_schema()")).scalar_one()
        for statement in (
            f"CREATE ROLE {role}",
            f"GRANT USAGE ON SCHEMA {schema} TO {role}",
            f"GRANT SELECT ON visible_records TO {role}",
        ):
            connection.execute(text(statement))
    try:
        with engine.connect() as connection:
            connection.execute(text(f"SET ROLE {role}"))
            view = text("SELECT data ->> 'upload' FROM visible_records WHERE tenant = :tenant")
            assert connection.execute(view, {"tenant": peer.name}).scalars().all() == ["u1"]
            with pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text("SELECT * FROM tenant_keys"))
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
        engine.dispose()
