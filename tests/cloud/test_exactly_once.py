"""Outbox and protocol under arbitrary interleavings of runs, faults and late messages.

The outbox is the real one, on a file and in PostgreSQL; the backend is the tests' own rules; the
network loses, delays, repeats and reorders what hypothesis says. At rest, what is visible must be
the source.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import (
    Opening,
    Outbox,
    Sealing,
    UploadEndedError,
    WholeUpload,
)
from catalogzero.cloud.outbox.stored import Upload
from catalogzero.cloud.sending.noted_answers import note_answer
from catalogzero.cloud.sending.upload_requests import complete_body
from catalogzero.protocol.bodies import GENERATION, Known
from catalogzero.protocol.deciding import Outcome, RequestKind, Verdict, decide
from catalogzero.protocol.identities import Identity, upload_key
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from tests.cloud.reference import CHANGED, Rules
from tests.cloud.stores import Kind, stores

WHO = Identity(
    installation_id="site", handler_id="h", entry="e", version="1", stream="s", sdk_version="1"
)
KEY = "source"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOST = "answer lost"
DELAYED = "delayed"
FINE = "fine"
Message = tuple[str, RequestKind, Any, Any]


class SteppingClock:
    """A clock that hypothesis moves, also backward."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        self.at += timedelta(milliseconds=1)
        return self.at

    def monotonic(self) -> float:
        return 0.0


class Uploading(RuleBasedStateMachine):
    """What both modes share: the client's steps and the network's faults."""

    mode = "replace"
    kind: Kind = "file"
    late = Bundle("late")

    @initialize()
    def begin(self) -> None:
        stores.kind = self.kind
        self.folder = tempfile.TemporaryDirectory()
        self.clock, self.backend = SteppingClock(), Rules()
        self.folders = 0
        self.outbox = self._open()
        self.building: tuple[Opening, list[Chunk], Any] | None = None
        self.content: Any = self.first_content()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.settle()
            self.check_rest()
            self.outbox.close()
            self.folder.cleanup()
        stores.drop()

    def first_content(self) -> Any:
        raise NotImplementedError

    def _open(self) -> Outbox:
        folder = Path(self.folder.name) / f"state-{self.folders}"
        return Outbox(folder, self.clock, stores.shared(folder))  # type: ignore[arg-type]

    # The client

    @rule(full=st.booleans(), held=st.booleans())
    @precondition(lambda self: self.building is None)
    def run_begins(self, full: bool, held: bool) -> None:
        """What is held is begun as it is sealed; a range is not held."""
        work = self.due(full)
        if work is None:
            return
        mark = self.outbox.store.mark(KEY)
        base = mark.base if held and self.mode == "replace" else None
        full = full or mark.owed
        opening = Opening(uuid4().hex, KEY, "src", self.mode, full=full, params={}, base=base)
        chunks = []
        for seq, rows in enumerate(self.chunks_of(work)):
            body = b"".join(orjson.dumps(row) + b"\n" for row in rows)
            chunks.append(Chunk(seq, len(rows), body, "identity", "application/x-ndjson"))
        if base is None:
            self.outbox.begin(opening)
            for chunk in chunks:
                self.outbox.add(opening.upload_id, chunk)
        self.building = opening, chunks, work

    @rule()
    @precondition(lambda self: self.building is not None)
    def run_seals(self) -> None:
        assert self.building is not None
        (opening, chunks, work), self.building = self.building, None
        if opening.base is not None:
            sealing = self.sealing(opening.upload_id, work)
            upload = WholeUpload(opening=opening, chunks=chunks, sealing=sealing)
            [error] = self.outbox.seal_whole([[upload]])
            assert error is None or isinstance(error, UploadEndedError)
        elif self.outbox.store.upload(opening.upload_id).state == "building":
            self.seal(opening.upload_id, work, opening.full)

    @rule()
    def all_comes_to_rest(self) -> None:
        self.settle()
        self.check_rest()

    @rule()
    def worker_is_killed(self) -> None:
        self.outbox.close()
        self.outbox = self._open()
        self.outbox.abandon()
        self.building = None

    @rule(minutes=st.integers(-100, 0))
    def state_folder_is_lost(self, minutes: int) -> None:
        self.clock.at += timedelta(minutes=minutes)
        self.outbox.close()
        self.folders += 1
        self.outbox = self._open()
        self.building = None

    @rule(minutes=st.integers(-100, 100))
    def clock_jumps(self, minutes: int) -> None:
        self.clock.at += timedelta(minutes=minutes)

    @rule(number=st.integers(0, 5))
    def a_dead_letter_is_retried(self, number: int) -> None:
        for upload in self.outbox.store.uploads(["dead"])[number : number + 1]:
            self.outbox.retry(upload.upload_id)

    @rule(number=st.integers(0, 5))
    def an_upload_is_purged(self, number: int) -> None:
        for upload in self.outbox.store.uploads(["dead", "sealed", "completing"])[
            number : number + 1
        ]:
            self.outbox.purge(upload.upload_id)

    # The network

    @rule(target=late, what=st.sampled_from([FINE, LOST, DELAYED]), number=st.integers(0, 3))
    def something_is_sent(self, what: str, number: int) -> Message | None:
        uploads = self.outbox.store.open_uploads()
        if not uploads:
            return None
        message = self.next_message(uploads[number % len(uploads)])
        if message is None or what == DELAYED:
            return message
        outcome = self.deliver(message)
        if what == FINE:
            self.take(message, outcome)
        return message

    @rule(message=late, heard=st.booleans())
    def something_arrives_late_or_again(self, message: Message | None, heard: bool) -> None:
        if message is not None:
            outcome = self.deliver(message)
            if heard:
                self.take(message, outcome)

    @rule(status=st.sampled_from([400, 422]), number=st.integers(0, 3))
    def the_backend_refuses(self, status: int, number: int) -> None:
        uploads = self.outbox.store.open_uploads()
        message = self.next_message(uploads[number % len(uploads)]) if uploads else None
        if message is not None:
            self.take(message, Outcome(status=status))

    @rule(number=st.integers(0, 5))
    def the_backend_forgets_chunks_never_completed(self, number: int) -> None:
        for upload in list(self.backend.uploads.values())[number : number + 1]:
            if upload.status == "open":
                upload.chunks.clear()

    def next_message(self, upload: Upload) -> Message | None:
        unsent = self.outbox.store.unsent(upload.upload_id, 1)
        if unsent:
            chunk = self.outbox.store.chunk(upload.upload_id, unsent[0])
            assert chunk is not None
            rows = [orjson.loads(line) for line in chunk.body.splitlines()]
            return upload.upload_id, RequestKind.CHUNK, chunk.seq, rows
        if not self.outbox.store.may_complete(upload):
            return None
        if self.outbox.completing(upload.upload_id) is None:
            return None
        return upload.upload_id, RequestKind.COMPLETE, None, complete_body(upload, WHO)

    def deliver(self, message: Message) -> Outcome:
        upload_id, asked, seq, body = message
        if asked is RequestKind.CHUNK:
            return Outcome(status=self.backend.put(upload_id, seq, body), body={})
        status, answer = self.backend.complete(upload_id, body)
        return Outcome(status=status, body=answer)

    def take(self, message: Message, outcome: Outcome) -> None:
        upload_id, asked, seq, _ = message
        decision = decide(asked, outcome, NOW)
        if decision.verdict is Verdict.DEAD:
            self.outbox.die(upload_id, {"reason": decision.reason})
        else:
            note_answer(self.outbox, upload_id, decision.verdict, outcome.body or {}, seq)

    # Rest

    def settle(self) -> None:
        """No more faults: runs and sends until nothing is left to do."""
        for _ in range(100):
            for upload in self.outbox.store.uploads(["dead"]):
                self.outbox.retry(upload.upload_id)
            if self.building is not None:
                self.run_seals()
            open_uploads = self.outbox.store.open_uploads()
            for upload in open_uploads:
                message = self.next_message(upload)
                if message is not None:
                    self.take(message, self.deliver(message))
            if not open_uploads:
                if self.due(False) is None:
                    return
                self.run_begins(False, held=False)
        raise AssertionError("it does not come to rest")

    def due(self, full: bool) -> Any:
        raise NotImplementedError

    def chunks_of(self, work: Any) -> list[list[dict[str, Any]]]:
        raise NotImplementedError

    def sealing(self, upload_id: str, work: Any) -> Sealing:
        raise NotImplementedError

    def seal(self, upload_id: str, work: Any, full: bool) -> None:
        raise NotImplementedError

    def check_rest(self) -> None:
        raise NotImplementedError


class Replacing(Uploading):
    """A file whose content changes, also back."""

    def first_content(self) -> str:
        return "A"

    @rule(content=st.sampled_from("ABC"))
    @precondition(lambda self: self.building is None)
    def source_changes(self, content: str) -> None:
        self.content = content

    def due(self, full: bool) -> str | None:
        same = self.outbox.store.mark(KEY).upload_key == upload_key(KEY, self.content, 1)
        return None if same and not full else str(self.content)

    def chunks_of(self, work: str) -> list[list[dict[str, Any]]]:
        return [[{"row": f"{work}-{n}"}] for n in range(2)]

    def sealing(self, upload_id: str, work: str) -> Sealing:
        return Sealing(upload_id=upload_id, upload_key=upload_key(KEY, work, 1), stamp=[work])

    def seal(self, upload_id: str, work: str, full: bool) -> None:
        self.outbox.seal(self.sealing(upload_id, work))

    def check_rest(self) -> None:
        expected = [row for rows in self.chunks_of(self.content) for row in rows]
        seen = self.backend.rows()
        assert seen == expected, (seen, expected)


class Appending(Uploading):
    """A table that grows, read above a watermark."""

    mode = "append"

    def first_content(self) -> int:
        return 1

    @rule(rows=st.integers(1, 3))
    def source_grows(self, rows: int) -> None:
        self.content += rows

    def due(self, full: bool) -> tuple[int | None, int] | None:
        mark = self.outbox.store.mark(KEY)
        full = full or mark.owed
        after = None if full else mark.value
        if mark.dead and not full:
            return None
        return None if (after or 0) >= self.content and not full else (after, self.content)

    def chunks_of(self, work: tuple[int | None, int]) -> list[list[dict[str, Any]]]:
        return [[{"row": n}] for n in range((work[0] or 0) + 1, work[1] + 1)]

    def seal(self, upload_id: str, work: tuple[int | None, int], full: bool) -> None:
        after, until = (None if full else self.outbox.store.mark(KEY).watermark), work[1]
        if not full and self.outbox.store.mark(KEY).value != work[0]:  # a compare came between
            self.outbox.abandon(upload_id)
            return
        key = upload_key(KEY, [after, until], 1)
        self.outbox.seal(Sealing(upload_id=upload_id, upload_key=key, after=after, until=until))

    def check_rest(self) -> None:
        seen = [row["row"] for row in self.backend.rows()]
        assert seen == list(range(1, self.content + 1)), (seen, self.content)


class Moving(Uploading):
    """What copies of the folder and restores of the backend add, for both modes."""

    snapshot: Path | None = None
    backup: dict[str, Any] | None = None
    epoch: int | None = None
    older = False

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.starts: list[dict[str, Any]] = []
        self.start()

    def start(self) -> None:
        """A start is answered; a folder that was refused is adopted at once."""
        status, answer = self.ask()
        if status == 409:
            assert self.older, "the only folder was refused"
            self.outbox.remember("moved", answer)
            self.outbox.adopt()
            status, answer = self.ask()
        known = Known.model_validate(answer)
        self.outbox.started(known, "site", self.starts[-1]["nonce"])
        self.epoch = known.epoch
        if self.building and self.building[0].base is None:
            upload = self.outbox.store.upload(self.building[0].upload_id)
            self.building = self.building if upload.state == "building" else None

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A start reaches the backend; one for another generation is sent again."""
        said = self.outbox.start()
        self.starts.append(said)
        status, answer = self.backend.start(said)
        if answer.get("type") == CHANGED["type"]:
            self.starts.append({**said, "generation": answer["generation"]})
            status, answer = self.backend.start(self.starts[-1])
        return status, answer

    @rule(number=st.integers(0, 5))
    def a_start_arrives_late(self, number: int) -> None:
        for said in self.starts[::-1][number : number + 1]:
            self.backend.start(said)

    @rule()
    def start_whose_answer_is_lost(self) -> None:
        self.ask()
        self.worker_is_killed()

    @rule()
    def worker_is_killed(self) -> None:
        super().worker_is_killed()
        self.start()

    @rule(minutes=st.integers(-100, 0))
    def state_folder_is_lost(self, minutes: int) -> None:
        super().state_folder_is_lost(minutes)
        self.start()

    @rule()
    def folder_is_copied(self) -> None:
        self.outbox.close()
        self.snapshot = Path(tempfile.mkdtemp(prefix="copy-", dir=self.folder.name))
        state = Path(self.folder.name) / f"state-{self.folders}"
        stores.copy(state, self.snapshot)
        self.outbox = self._open()
        self.outbox.abandon()
        self.building = None
        self.start()

    @rule()
    @precondition(lambda self: self.snapshot is not None)
    def an_older_folder_goes_on(self) -> None:
        assert self.snapshot is not None
        self.outbox.close()
        self.folders += 1
        self.older = True
        stores.copy(self.snapshot, Path(self.folder.name) / f"state-{self.folders}")
        self.snapshot, self.building = None, None
        self.outbox = self._open()
        self.outbox.abandon()
        self.start()

    @rule()
    def backend_is_backed_up(self) -> None:
        self.backup = self.backend.snapshot()

    @rule()
    @precondition(lambda self: self.backup is not None)
    def backend_is_restored(self) -> None:
        assert self.backup is not None
        self.backend.restore(self.backup)

    def next_message(self, upload: Upload) -> Message | None:
        found = super().next_message(upload)
        if found is None or found[1] is not RequestKind.COMPLETE:
            return found
        return (*found[:3], {**found[3], "installation_epoch": self.epoch})

    def deliver(self, message: Message) -> Outcome:
        outcome = super().deliver(message)
        headers = {GENERATION: self.backend.generation}
        return Outcome(status=outcome.status, body=outcome.body, headers=headers)

    def take(self, message: Message, outcome: Outcome) -> None:
        upload_id, asked, seq, body = message
        verdict = decide(asked, outcome, NOW).verdict
        if asked is RequestKind.CHUNK or verdict is Verdict.DEAD:
            super().take(message, outcome)
        elif verdict is Verdict.MOVED:
            if body["installation_epoch"] == self.epoch:
                self.start()
        elif not note_answer(
            self.outbox, upload_id, verdict, outcome.body, seq, generation=outcome.generation
        ):
            self.start()

    def settle(self) -> None:
        self.start()
        super().settle()


class MovingReplacing(Moving, Replacing):
    """A file, its folder copied, its backend restored."""


class MovingAppending(Moving, Appending):
    """A table, its folder copied, its backend restored."""


class SharedReplacing(MovingReplacing):
    """The same in a database, whose copies are put back."""

    kind = "postgresql"


class SharedAppending(MovingAppending):
    """The same of a table."""

    kind = "postgresql"


RUNS = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestReplacing = Replacing.TestCase
TestReplacing.settings = RUNS
TestAppending = Appending.TestCase
TestAppending.settings = RUNS
TestMovingReplacing = MovingReplacing.TestCase
TestMovingReplacing.settings = RUNS
TestMovingAppending = MovingAppending.TestCase
TestMovingAppending.settings = RUNS
FEWER = settings(max_examples=10, stateful_step_count=30, deadline=None)


@pytest.mark.postgresql
@pytest.mark.usefixtures("postgresql")
class TestSharedReplacing(SharedReplacing.TestCase):  # type: ignore[misc,valid-type]
    settings = FEWER


@pytest.mark.postgresql
@pytest.mark.usefixtures("postgresql")
class TestSharedAppending(SharedAppending.TestCase):  # type: ignore[misc,valid-type]
    settings = FEWER
