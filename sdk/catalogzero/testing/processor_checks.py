"""What every processor must do: the checks of `ProcessorContract`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from catalogzero.cloud.rows.batches import rows_of
from catalogzero.cloud.rows.streams import with_stream
from catalogzero.cloud.rows.values import Row
from catalogzero.cloud.settings import Batch
from catalogzero.testing.backend import API_KEY, FaultyBackend
from catalogzero.testing.checks import PROCESSOR_CHECKS, check
from catalogzero.testing.lab import BLOCKED_S, Heartbeat, Lab, demand, demand_keys, shown
from catalogzero.testing.processor_lab import (
    Uploaded,
    batches,
    connections_watched,
    params_of_process,
    processed,
    processor,
    sample_rows,
    sorted_rows,
    source_of,
    uploaded_once,
    uploading,
)

RESULT_KEYS = (
    *("status", "records", "skipped", "bad_records", "bytes_sent", "cloud_job_id"),
    *("upload_ids", "timestamp"),
)
HEALTH_KEYS = ("client_id", "metrics", "timestamp", "schema", "status", "state", "outbox")
STREAMED_BATCHES = 40
CANARY = "canary-4d1c9e77"

_on_processor = partial(check, PROCESSOR_CHECKS)


@_on_processor
def process_yields_batches_of_rows(lab: Lab) -> None:
    """`process` is a generator of batches, and each is rows that JSON can hold.

    What process yields is sent as it is: it must be rows in batches.

    Yield lists of dicts (Arrow tables with batch_type = 'arrow') from a plain generator.
    """
    made = processor(lab)
    yielded = made.process(batches(made, sample_rows(lab), 10_000), params_of_process(lab))
    demand(hasattr(yielded, "__next__"), f"process returned {shown(yielded)}, not an iterator")
    for _, batch in map(with_stream, yielded):
        whole = isinstance(batch, list) or hasattr(batch, "num_rows")
        demand(whole, f"process yielded {shown(batch)}, not a batch")
        for row in rows_of(batch):
            demand(isinstance(row, dict), f"a batch holds {shown(row)}, not a row")
    processed(lab, made, sample_rows(lab))


@_on_processor
def process_takes_an_empty_source(lab: Lab) -> None:
    """`process` of no batches, and of an empty batch, ends without an error.

    A source may be empty: a nightly run must not fail for that.

    Let process yield nothing (or an aggregate of nothing) where there are no batches.
    """
    made = processor(lab)
    processed(lab, made, [])
    if made.batch_type == "dict":
        list(made.process(iter([[]]), params_of_process(lab)))


@_on_processor
def process_gives_the_same_again(lab: Lab) -> None:
    """The same rows give the same rows, in the same and in another handler.

    A run is repeated after a crash: other rows would be another upload.

    Take ids and times from the rows, not from uuid, random or the clock.
    """
    rows = sample_rows(lab)
    first, other = processor(lab), processor(lab)
    demand(
        processed(lab, first, rows) == processed(lab, other, rows), "a second run gave other rows"
    )


@_on_processor
def process_keeps_nothing_between_sources(lab: Lab) -> None:
    """A source gives the same rows whatever the handler processed before.

    Each item is an upload of its own: what was read before must not show in it.

    Keep what process collects in its own variables, not on self or in the module.
    """
    rows, made = sample_rows(lab), processor(lab)
    before = processed(lab, made, rows)
    demand(processed(lab, made, rows) == before, "the same source gave other rows the second time")


@_on_processor
def process_ignores_batch_borders(lab: Lab) -> None:
    """Small and large batches give the same rows, in whatever order.

    Batches are as large as memory allows: their borders mean nothing.

    Carry what spans rows over from batch to batch.
    """
    rows = sample_rows(lab)
    small, large = (
        processed(lab, processor(lab), rows, 2),
        processed(lab, processor(lab), rows, 10_000),
    )
    gave = f"batches of 2 gave {len(small)} rows, one batch {len(large)}, and not the same"
    demand_same(small, large, gave)


@_on_processor
def process_streams(lab: Lab) -> None:
    """`process` yields before it has read everything.

    Sources are larger than memory: a processor that collects all rows is killed.

    Yield as you go. An aggregate of few rows may exclude this check.
    """
    rows, made = sample_rows(lab), processor(lab)
    taken = 0

    def counted() -> Iterator[Batch]:
        nonlocal taken
        for _ in range(STREAMED_BATCHES):
            taken += 1
            yield from batches(made, rows, len(rows))

    for _, batch in map(with_stream, made.process(counted(), params_of_process(lab))):
        if next(rows_of(batch), None) is not None:
            break
    demand(taken < STREAMED_BATCHES, f"it read all {taken} batches before its first row")


@_on_processor
def process_connects_to_nothing(lab: Lab) -> None:
    """`process` opens no connection.

    Data leaves through the outbox alone: elsewhere no policy and no audit log sees it.

    Take out of process what connects to other machines.
    """
    rows, made = sample_rows(lab), processor(lab)
    with connections_watched() as seen:
        processed(lab, made, rows)
    demand(not seen, f"process connects to {', '.join(seen)}")


async def _deliver(lab: Lab) -> Uploaded:
    """Upload, upload again, upload in full, report; the backend takes everything."""
    source = source_of(lab)
    async with uploading(lab, FaultyBackend()) as (seen, client):
        with Heartbeat() as heartbeat:
            await seen.upload(client, "first", source)
            await seen.upload(client, "again", source)
            await seen.upload(client, "full", source, full=True)
            seen.replies["health_report"] = await client.request("health_report", timeout_s=20.0)
        for method in ("get_metrics", "describe"):
            seen.replies[method] = await client.request(method, timeout_s=20.0)
        seen.reports = list(seen.backend.reports)
    seen.longest_block_s = heartbeat.longest_s
    return seen


def delivered(lab: Lab, *, mine: bool = False) -> Uploaded:
    """What `_deliver` saw, made once."""
    return lab.recording("uploads_its_sample", _deliver, mine=mine)


def demand_same(found: list[Row], expected: list[Row], what: str) -> None:
    """Fail the check unless two lists hold the same rows, in whatever order."""
    demand(sorted_rows(found) == sorted_rows(expected), what)


@_on_processor
def uploads_its_sample(lab: Lab) -> None:
    """What `data_source` names is uploaded, and the backend acknowledges it.

    It is what the handler is for.

    Read the error; `catalogzero preview` shows what process makes of a source.
    """
    result = delivered(lab, mine=True).result("first")
    demand(result.get("status") == "uploaded", f"the status is {result.get('status')!r}")


@_on_processor
def answers_while_it_works(lab: Lab) -> None:
    """The event loop answers while jobs run.

    A job may take hours: a handler that answers nobody meanwhile looks dead.

    Do slow work in process or in plain methods; in an `async def` await what takes long.
    """
    blocked_s = delivered(lab).longest_block_s
    demand(blocked_s < BLOCKED_S, f"while a job ran, nobody was answered for {blocked_s:.1f} s")


@_on_processor
def result_has_its_keys(lab: Lab) -> None:
    """The result of `process_and_upload` has the agreed keys.

    Execution logs and dashboards read these keys of the result.

    Leave process_and_upload as it is; do your work in process.
    """
    demand_keys(delivered(lab).replies["first"].result, RESULT_KEYS, "the result")


@_on_processor
def every_row_arrives_once(lab: Lab) -> None:
    """The backend has exactly the rows that `process` yields.

    What arrives must be what process yields, row for row.

    Let process depend on its rows and settings alone, not on the process that it runs in.
    """
    arrived = delivered(lab).rows["first"]
    expected = processed(lab, processor(lab), sample_rows(lab))
    came = f"{len(arrived)} rows arrived, process yields {len(expected)}, and not the same"
    demand_same(arrived, expected, came)


@_on_processor
def unchanged_is_skipped(lab: Lab) -> None:
    """A second run of the same source doubles nothing, and says so.

    Schedules run every night: what did not change must not be sent again.

    Leave process_and_upload, output_version and stream as they are within one release.
    """
    seen = delivered(lab)
    status = seen.result("again").get("status")
    demand(status == "unchanged", f"the second run's status is {status!r}")


@_on_processor
def full_sends_again_and_doubles_nothing(lab: Lab) -> None:
    """`full: true` sends everything again, and the backend still shows each row once.

    `full: true` repairs a backend that was restored from a backup.

    Leave process_and_upload as it is, `full` among its parameters.
    """
    seen = delivered(lab)
    result = seen.result("full")
    demand(result.get("status") == "uploaded", f"the status is {result.get('status')!r}")
    full, first = seen.rows["full"], seen.rows["first"]
    demand_same(full, first, f"{len(full)} rows are visible instead of {len(first)}")


@_on_processor
def health_report_reaches_the_backend(lab: Lab) -> None:
    """`health_report` pushes a report with the agreed keys.

    The vendor watches its clients by these reports.

    Leave health_report as it is; add figures in get_metrics through super().
    """
    seen = delivered(lab)
    reply = seen.replies["health_report"]
    demand(reply.success, f"health_report failed: {reply.error}")
    demand(seen.reports, "no report arrived")
    demand_keys(seen.reports[0], HEALTH_KEYS, "the report")


@_on_processor
def the_key_shows_nowhere(lab: Lab) -> None:
    """The API key is in no answer, no log, no body and no file.

    A key in a log or a report is a key that is lost.

    Never print, log or return settings; a secret stays a SecretStr to the end.
    """
    seen = delivered(lab)
    key, files = API_KEY.encode(), seen.state.rglob("*")
    answers = [repr(reply).encode() for reply in seen.replies.values()]
    places = {
        "an answer": any(key in answer for answer in answers),
        "the log": key in seen.log.read_bytes(),
        "a body that was sent": any(key in body for body in seen.backend.bodies),
        "the state folder": any(key in file.read_bytes() for file in files if file.is_file()),
    }
    found = [place for place, shows in places.items() if shows]
    demand(not found, f"the key shows in {', '.join(found)}")


@_on_processor
def survives_a_faulty_network(lab: Lab) -> None:
    """With refusals, cut connections and lost replies the same rows arrive, each once.

    Networks fail: a row must arrive once, whatever happens on the way.

    Leave sending to the SDK: yield from process, send nothing yourself.
    """
    expected = delivered(lab).rows["first"]
    backend = FaultyBackend(["cut", "503", "429", "ok", "lost_reply", "500", "lost_reply"])
    seen = uploaded_once(lab, backend, upload_wait_s=40)
    seen.result("upload")
    arrived = seen.rows["upload"]
    demand_same(arrived, expected, f"{len(arrived)} rows arrived instead of {len(expected)}")


@_on_processor
def a_backend_that_is_away_gives_queued(lab: Lab) -> None:
    """Without a backend the run succeeds, and says `queued`.

    A backend that is away is not a failure: the outbox keeps everything.

    Leave process_and_upload as it is: `queued` is a success.
    """
    seen = uploaded_once(lab, FaultyBackend(always="503"), upload_wait_s=0)
    status = seen.result("upload").get("status")
    demand(status == "queued", f"the status is {status!r}")


@_on_processor
def a_refusal_is_a_failure(lab: Lab) -> None:
    """Rows that the backend refuses for good fail the run.

    A refused upload that looks like a success is found months later.

    Leave process_and_upload as it is: catch no error around it.
    """
    seen = uploaded_once(lab, FaultyBackend(always="422"), upload_wait_s=20)
    demand(not seen.replies["upload"].success, "a refused upload was answered with success")


def source_with_canary(lab: Lab, column: str) -> str:
    """The source again, its first value of a column marked; as it is where it is no CSV file."""
    named = source_of(lab)
    source = Path(named)
    if not (column and source.suffix == ".csv" and source.is_absolute()):
        return named
    lines = source.read_text("utf-8").splitlines()
    names, first = lines[0].split(","), lines[1].split(",")
    first[names.index(column)] = CANARY
    folder = source.parent / "marked"
    folder.mkdir(exist_ok=True)
    marked = folder / source.name
    marked.write_text("\n".join([lines[0], ",".join(first), *lines[2:], ""]), "utf-8")
    return str(marked)


@_on_processor
def a_dropped_column_does_not_leave(lab: Lab) -> None:
    """With a column dropped by the client, its values are in no body.

    The client decides what leaves: a dropped column must not leave by another name.

    Copy no column into another; a column that is needed elsewhere may exclude this check.
    """
    rows = sample_rows(lab)
    kept = {name for row in processed(lab, processor(lab), rows)[:1] for name in row}
    # A column of text that the source has, and the result keeps by the same name.
    named = [name for name, value in rows[0].items() if name in kept and isinstance(value, str)]
    column = named[-1] if named else ""
    # What may be parsed, a number or a date, is left as it is.
    in_words = [name for name in named if rows[0][name].strip()[:1].isalpha()]
    if in_words:
        column = in_words[-1]
    source = source_with_canary(lab, column) if in_words else source_of(lab)
    seen = uploaded_once(lab, FaultyBackend(), source, egress={"drop": [column]})
    seen.result("upload")
    arrived = [row for row in seen.backend.rows if column and column in row]
    demand(not arrived, f"the dropped column {column!r} arrived")
    leaked = any(CANARY.encode() in body for body in seen.backend.bodies)
    demand(not leaked, f"a value of the dropped column {column!r} left by another name")


@_on_processor
def reads_nothing_outside_its_roots(lab: Lab) -> None:
    """A data_source that the client's configuration does not name is refused.

    A call may name anything: only what the client's configuration names may be read.

    Let an own `read` raise for names that it does not know, and look for files in one folder of
    the settings.
    """
    reads_itself = processor(lab).reads_itself
    outside, sample = lab.new_folder("outside") / "secret.csv", Path(source_of(lab))
    if sample.is_absolute() and sample.is_file() and not reads_itself:
        shutil.copyfile(sample, outside)
    else:
        outside.write_text(f"name,note\n{CANARY},x\n", "utf-8")
    seen = uploaded_once(lab, FaultyBackend(), str(outside), upload_wait_s=20)
    is_file_s = not reads_itself or any(CANARY.encode() in body for body in seen.backend.bodies)
    what = (
        f"the file {outside}, outside of what it may read, was read"
        if is_file_s
        else f"`read` took {str(outside)!r}, which is no name of its source: the rows that it "
        "sends under each such name stand at the backend again"
    )
    demand(not seen.replies["upload"].success and not seen.backend.rows, what)
