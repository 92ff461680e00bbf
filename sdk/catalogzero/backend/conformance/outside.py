"""The checks that need more than an endpoint: another tenant's key, and the operator's commands.

Owns `checks`, which gives those that can be made, and names the others.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson

from catalogzero.backend.conformance.identity_checks import ask_start, expect_moved, start
from catalogzero.backend.conformance.probe import (
    ConformanceCheck,
    Means,
    NotConformingError,
    Probe,
    expect,
    expect_fields,
    expect_job,
    expect_refused,
    output_of,
    require,
    title_of,
)
from catalogzero.wire.messages import JsonObject

A, B = {"row": "a"}, {"row": "b"}
# a number as its text, and apart from a string of the same digits
EXACT = json.JSONDecoder(
    parse_int=lambda text: {"number": text}, parse_float=lambda t: {"number": t}
)


async def tenants_are_apart(probe: Probe) -> None:
    """One customer would see, replace or keep out the rows of another."""
    other = probe.means.other_key
    job = expect_job(await probe.deliver("u1", [A], source_seq=2_000))
    expect_refused(await probe.ask("GET", "uploads", probe.upload("u1"), key=other), 404)
    beside = expect_job(await probe.deliver("u1", [A], bearer=other))
    require(beside != job, f"two tenants got one job_id {job!r}")
    own = await probe.deliver("u2", [A], source_seq=2_500)
    expect_fields(own, duplicate=True, job_id=job)
    expect(await probe.put(probe.upload("u3"), 0, [B]), 201)
    expect_refused(await probe.ask("GET", "uploads", probe.upload("u3"), key=other), 404)


async def what_was_acknowledged_outlives_a_kill(probe: Probe) -> None:
    """Rows would be gone that nobody sends again."""
    site = f"verify-{probe.run}-killed"
    epoch = (await start(probe, site)).get("epoch")
    if epoch is not None:
        await start(probe, site, epoch=epoch)
    job = expect_job(await probe.deliver("u1", [A]))
    expect(await probe.put(probe.upload("u2"), 0, [B]), 201)
    await probe.restart()
    expect_fields(await probe.ask("GET", "uploads", probe.upload("u2")), chunks=[0])
    expect_fields(await probe.complete(probe.upload("u1")), duplicate=True, job_id=job)
    expect_fields(await probe.deliver("u3", [A], source_seq=1_500), duplicate=True, job_id=job)
    newer = {"upload_key": probe.upload("k2"), "source_seq": 2_000}
    expect_job(await probe.complete(probe.upload("u2"), **newer))
    if epoch is not None:
        expect_moved(await ask_start(probe, site, epoch=epoch))


async def the_rows_that_are_seen_are_those_that_were_sent(probe: Probe) -> None:
    """Everything above may be answered rightly, and the rows be others."""
    await _compare(probe, "--rows", probe.means.rows, probe.means.ledger.visible())


async def the_newest_rows_of_a_merge_are_seen(probe: Probe) -> None:
    """An update would stand beside the row before it, and a deleted row stay."""
    ledger, wanted = probe.means.ledger, dict[str, list[str]]()
    for source, (key, tombstone) in ledger.merged.items():
        table: dict[str, str] = {}
        # the checks number what they send in the order in which it was accepted
        for upload in ledger.shown[source]:
            for (one, _), records in sorted(ledger.chunks.items()):
                for text in records if one == upload else ():
                    record = EXACT.decode(text)
                    place = canonical([record[column] for column in key])
                    table.pop(place, None)
                    if tombstone is None or record.get(tombstone) in (None, False):
                        table[place] = text
        wanted.setdefault(source[2], []).extend(table.values())
    await _compare(probe, "--latest", probe.means.latest, wanted)


async def _compare(probe: Probe, option: str, command: str, wanted: dict[str, list[str]]) -> None:
    """Compare what a command prints with the records that each source should show."""
    seen: dict[str, list[str]] = {}
    prefix = f"verify-{probe.run}-"
    for line in (await output_of(command, probe.run)).splitlines():
        source, record = _row(line, option)
        if source.startswith(prefix):
            seen.setdefault(source, []).append(record)
    for source in sorted({*seen, *wanted}):
        there, sent = (
            Counter(seen.get(source)),
            Counter(canonical(EXACT.decode(text)) for text in wanted.get(source, ())),
        )
        lost, more = sent - there, there - sent
        require(
            not (lost or more),
            f"{source}: {lost.total()} of {sent.total()} records are not there as sent "
            f"{first_of(lost)}, and {more.total()} others are {first_of(more)}",
        )


def _row(line: str, option: str) -> tuple[str, str]:
    """Source and canonical record of a line that the command printed."""
    try:
        value: JsonObject = EXACT.decode(line)
        record = value["record"]
        record = EXACT.decode(record) if isinstance(record, str) else record
        return str(value["source"]), canonical(record)
    except (ValueError, KeyError, TypeError):
        raise NotConformingError(
            f'{option} printed {line[:100]!r}, expected lines of {{"source": …, "record": {{…}}}}'
        ) from None


def canonical(value: Any) -> str:
    """A JSON value as the one text that all who hold it make of it."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def first_of(records: Counter[str]) -> str:
    """The first of some records, to look for."""
    return next((f"(such as {record[:100]})" for record in records), "")


def checks(form: str, means: Means) -> tuple[list[ConformanceCheck], list[str]]:
    """The checks of a form that there are means for, and what it takes for the others."""
    known = [(the_rows_that_are_seen_are_those_that_were_sent, "--rows", means.rows)]
    if form == "chunked":
        known = [
            (tenants_are_apart, "--other-key-file", means.other_key),
            (what_was_acknowledged_outlives_a_kill, "--restart", means.restart),
            *known,
            (the_newest_rows_of_a_merge_are_seen, "--latest", means.latest),
        ]
    absent = [f"{title_of(check)} ({option})" for check, option, given in known if not given]
    return [check for check, _, given in known if given], absent
