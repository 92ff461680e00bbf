"""The rules of completion against a brute-force oracle, step by step, on each database.

The oracle keeps a plain history of what happened and reads every answer out of it; it shares
no code with the backend.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from catalogzero.backend import uploads
from catalogzero.backend.clearing import StepSize
from catalogzero.backend.decoding import ChunkLimits, seal
from catalogzero.backend.housekeeping import clear_hidden, collect_unfinished
from catalogzero.backend.schema import tenants
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import add_tenant
from catalogzero.protocol.bodies import Complete
from catalogzero.protocol.judging import Judgement
from catalogzero.protocol.problems import Kind, ProblemError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, text

from tests.backend.peer import AT, completion

UPLOADS = st.sampled_from(["u1", "u2", "u3", "u4", "u5"])
CONTENTS = st.sampled_from(["a", "b"])
MARKS = st.sampled_from([None, 1, 2])
SLOW = [pytest.mark.slow, pytest.mark.timeout(1_200)]
LATER = "2027-01-01T00:00:00.000+00:00"
LIMITS = ChunkLimits(1 << 20, 100)
CLAIMS = st.fixed_dictionaries(
    {
        "source_key": st.sampled_from(["s1", "s1", "s1", "s2"]),
        "upload_key": st.sampled_from(["k1", "k2", "k3"]),
        "source_seq": st.integers(1, 5),
        "mode": st.sampled_from(["replace", "append", "merge"]),
        "full": st.sampled_from([False, False, True]),
        "after": MARKS,
        "until": MARKS,
    }
)
ROWS = {"a": 1, "b": 2}


def record(content: str, index: int) -> str:
    """The text of a record."""
    return f'{{"of":"{content}","n":{index}}}'


@dataclass(frozen=True)
class Event:
    """A `complete` that changed something: accepted, superseded, or known by its key."""

    what: str
    upload: str
    claim: dict[str, Any]


class Oracle:
    """What the design says, worked out from the whole history each time."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[str, int], str] = {}
        self.history: list[Event] = []

    def put(self, upload: str, seq: int, content: str) -> str:
        """The answer to a chunk."""
        if self.end_of(upload):
            return "finished"
        stored = self.chunks.setdefault((upload, seq), content)
        return "stored" if stored == content else "different"

    def complete(self, upload: str, claim: dict[str, Any]) -> tuple[Any, ...]:
        """The answer to a complete, and what it changes."""
        source, end = claim["source_key"], self.end_of(upload)
        if end:
            home = end.claim["source_key"]
            return ("duplicate", upload) if end.what == "accepted" else self.superseded(home)
        twins = [e for e in self.visible(source) if e.claim["upload_key"] == claim["upload_key"]]
        if twins and not claim["full"]:
            self.history.append(Event("same key", "", claim))
            return ("duplicate", twins[0].upload)
        if self.is_late(claim):
            self.history.append(Event("superseded", upload, claim))
            return self.superseded(source)
        if self.visible(source) and not claim["full"] and claim["mode"] != self.mode(source):
            return ("mode changed",)
        stored = {seq: content for (u, seq), content in self.chunks.items() if u == upload}
        missing = [seq for seq in range(claim["chunks"]) if seq not in stored]
        if missing:
            return ("missing", tuple(missing))
        totals = (len(stored), sum(ROWS[content] for content in stored.values()))
        if totals != (claim["chunks"], claim["records"]):
            return ("totals",)
        self.history.append(Event("accepted", upload, claim))
        return ("created",)

    def is_late(self, claim: dict[str, Any]) -> bool:
        """Whether the source has gone on: by its number, or along the chain of watermarks."""
        source = claim["source_key"]
        if claim["mode"] != "replace" and not claim["full"]:
            return bool(claim["after"] != self.watermark(source))
        return bool(claim["source_seq"] <= self.highest(source))

    def open_chunks(self) -> set[tuple[str, int]]:
        """The chunks of uploads that have not ended."""
        return {chunk for chunk in self.chunks if not self.end_of(chunk[0])}

    def end_of(self, upload: str) -> Event | None:
        """How an upload ended, if it did."""
        return next((event for event in self.history if event.upload == upload), None)

    def superseded(self, source: str) -> tuple[Any, ...]:
        """The answer that has the source's highest number and its watermark."""
        return ("superseded", self.highest(source), self.watermark(source))

    def of(self, source: str, *kinds: str) -> list[Event]:
        """The events of a source."""
        return [e for e in self.history if e.claim["source_key"] == source and e.what in kinds]

    def highest(self, source: str) -> int:
        """The highest source_seq that a source is known by."""
        known = self.of(source, "accepted", "same key")
        return max((event.claim["source_seq"] for event in known), default=0)

    def watermark(self, source: str) -> Any:
        """Where the next append of a source begins."""
        for event in reversed(self.of(source, "accepted")):
            return None if event.claim["mode"] == "replace" else event.claim["until"]
        return None

    def mode(self, source: str) -> str:
        """How the newest visible upload of a source came."""
        return str(self.visible(source)[-1].claim["mode"])

    def visible(self, source: str) -> list[Event]:
        """The uploads of a source that can be seen."""
        seen: list[Event] = []
        for event in self.of(source, "accepted"):
            alone = event.claim["mode"] == "replace" or event.claim["full"]
            seen = [event] if alone else [*seen, event]
        return seen

    def rows(self) -> set[tuple[str, int, str]]:
        """Every visible row: upload, chunk, content and place."""
        return {
            (event.upload, seq, record(content, index))
            for source in ("s1", "s2")
            for event in self.visible(source)
            for (upload, seq), content in self.chunks.items()
            if upload == event.upload
            for index in range(ROWS[content])
        }


ONE_CHUNK = StepSize(chunks=1)
"""Housekeeping deletes one chunk at a time."""


class Completion(RuleBasedStateMachine):
    """Random chunks and completes, duplicated, reordered and contradictory."""

    database: ClassVar[BackendDatabase]
    names = (f"tenant-{number}" for number in itertools.count())

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle()
        self.jobs: dict[str, str] = {}
        self.tenant = next(self.names)
        self.database.write_now(lambda connection: add_tenant(connection, self.tenant, AT))
        one = select(tenants.c.tenant_id).where(tenants.c.name == self.tenant)
        self.tenant_id = int(self.database.read_now(lambda c: c.execute(one).scalar_one()))

    @rule(upload=UPLOADS, seq=st.integers(0, 2), content=CONTENTS)
    def put(self, upload: str, seq: int, content: str) -> None:
        """A chunk comes, perhaps again, perhaps with others' records."""
        body = seal([record(content, n).encode() for n in range(ROWS[content])], LIMITS)

        stored = self.database.write_now(
            lambda c: uploads.put_chunk(c, self.tenant_id, upload, seq, body, AT)
        )

        word = {"new": "stored", "same": "stored"}.get(stored.value, stored.value)
        assert word == self.oracle.put(upload, seq, content)

    @rule(upload=UPLOADS, content=CONTENTS, claim=CLAIMS)
    def deliver(self, upload: str, content: str, claim: dict[str, Any]) -> None:
        """A chunk comes, and the complete of what is stored then."""
        self.put(upload, 0, content)
        self.complete(upload, None, 0, claim)

    @rule(
        upload=UPLOADS,
        chunks=st.none() | st.integers(0, 3),
        off_by=st.sampled_from([0, 0, 0, 1]),
        claim=CLAIMS,
    )
    def complete(self, upload: str, chunks: int | None, off_by: int, claim: dict[str, Any]) -> None:
        """A complete comes: of what is stored, or of what is not."""
        stored = [content for (u, _), content in self.oracle.chunks.items() if u == upload]
        claim = dict(claim)
        claim["chunks"] = len(stored) if chunks is None else chunks
        claim["records"] = sum(ROWS[content] for content in stored) + off_by
        claim["key"] = ["of"] if claim["mode"] == "merge" else []
        body = Complete.model_validate(completion(**claim))
        expected = self.oracle.complete(upload, body.model_dump())

        assert self.answer(upload, body) == expected

    def answer(self, upload: str, body: Complete) -> tuple[Any, ...]:
        """The backend's answer to a complete, in the oracle's words."""
        try:
            outcome = self.database.write_now(
                lambda c: uploads.complete(c, self.tenant_id, upload, body, AT)
            )
        except ProblemError as error:
            return ("totals",) if error.kind is Kind.TOTALS_DIFFER else (error.kind,)
        match outcome.verdict:
            case Judgement.ACCEPTED:
                self.jobs[str(outcome.job_id)] = upload
                return ("created",)
            case Judgement.DUPLICATE | Judgement.SAME_KEY:
                return ("duplicate", self.jobs[str(outcome.job_id)])
            case Judgement.MISSING:
                return ("missing", outcome.missing)
            case Judgement.MODE_CHANGED:
                return ("mode changed",)
            case _:
                return ("superseded", outcome.source_seq, outcome.watermark)

    @rule()
    def collect(self) -> None:
        """Seven days pass for one chunk of some upload that is still open."""
        self.database.write_now(lambda c: collect_unfinished(c, LATER, ONE_CHUNK))

        gone = self.oracle.open_chunks() - self.stored(state="open")
        assert len(gone) <= 1
        for chunk in gone:
            del self.oracle.chunks[chunk]

    @rule()
    def clear(self) -> None:
        """The rows that nobody sees any more are deleted, in part."""
        self.database.write_now(lambda c: clear_hidden(c, ONE_CHUNK))

    def stored(self, state: str) -> set[tuple[str, int]]:
        """The chunks of the tenant's uploads in a state."""
        of_tenant = text(
            "SELECT upload_id, seq FROM chunks JOIN uploads USING (upload_no)"
            " WHERE tenant_id = :tenant AND state = :state"
        )
        known = {"tenant": self.tenant_id, "state": state}
        return self.database.read_now(
            lambda c: {(row[0], int(row[1])) for row in c.execute(of_tenant, known)}
        )

    def teardown(self) -> None:
        """Leave nothing to collect to the next example."""
        for step in (clear_hidden, lambda c: collect_unfinished(c, LATER)):
            while self.database.write_now(step):
                pass

    @invariant()
    def what_is_seen_is_what_the_design_says(self) -> None:
        """All chunks of the visible uploads, once, and no others."""
        view = text("SELECT upload_id, seq, payload FROM visible_records WHERE tenant = :tenant")
        found = self.database.read_now(
            lambda c: [tuple(row) for row in c.execute(view, {"tenant": self.tenant})]
        )

        assert len(found) == len(set(found))
        assert set(found) == self.oracle.rows()


@pytest.mark.parametrize("examples", [50, pytest.param(1_000, marks=SLOW)])
def test_every_complete_is_answered_as_the_design_says(database_url: str, examples: int) -> None:
    database = BackendDatabase(database_url)

    class OnThisDatabase(Completion):
        pass

    OnThisDatabase.database = database
    try:
        run_state_machine_as_test(
            OnThisDatabase,
            settings=settings(max_examples=examples, stateful_step_count=20, deadline=None),
        )
    finally:
        database.close()
