"""The checks of identity: epochs, what a start is given, the generation, modes.

Owns the list `CHECKS`. A backend that has none of it passes with a warning: its clients work as
before. One that has a part of it must have it right, as clients then rely on it.
"""

from __future__ import annotations

import httpx

from catalogzero.backend.conformance.probe import (
    Probe,
    expect,
    expect_fields,
    expect_job,
    expect_problem,
    expect_refused,
    require,
)
from catalogzero.protocol.bodies import GENERATION
from catalogzero.protocol.problems import Kind
from catalogzero.wire.messages import JsonObject

A, B = {"row": "a"}, {"row": "b"}
NO_EPOCHS = "no epochs: a folder that was copied or put back says unchanged over newer content"
ANY_GENERATION = "a start of before a restore takes an epoch after it: a lone host may stop then"
NO_GENERATION = "no generation: after a restore each client must be called with full: true"


async def an_older_folder_is_refused(probe: Probe) -> None:
    """A host that was replaced, and comes back, would put its old content over the new."""
    site = f"verify-{probe.run}-epochs"
    first = (await start(probe, site)).get("epoch")
    if first is None:
        return
    expect_job(await probe.deliver("u1", [A], installation_id=site, installation_epoch=first))
    second = (await start(probe, site)).get("epoch", 0)
    rises = isinstance(second, int) and second > first
    require(rises, f"a second start got epoch {second!r} after {first!r}")
    newer: JsonObject = {"upload_key": "k2", "source_seq": 2_000, "installation_id": site}
    expect(await probe.put(probe.upload("u2"), 0, [B]), 201)
    for epoch in ({"installation_epoch": first}, {}):
        expect_moved(await probe.complete(probe.upload("u2"), **newer, **epoch))
    expect_moved(await ask_start(probe, site, epoch=first))
    again = await probe.complete(probe.upload("u2"), **newer, installation_epoch=second)
    expect_job(again)
    # the folder of a backend that was put back has an epoch above all that this one gave
    higher = {"upload_key": "k3", "source_seq": 3_000, "installation_id": site}
    restored = await probe.deliver("u3", [A], **higher, installation_epoch=second + 10**9)
    expect_job(restored)
    expect_moved(await ask_start(probe, site, epoch=second))
    unknown = {"installation_id": f"{site}-unknown", "source_seq": 4_000}
    expect_job(await probe.deliver("u4", [A], **unknown, installation_epoch=second))
    expect_moved(await probe.complete(probe.upload("u4"), **unknown))


async def a_start_whose_answer_was_lost_is_known_again(probe: Probe) -> None:
    """A host that was killed in its start would be refused its own installation."""
    site = f"verify-{probe.run}-nonces"
    first = (await start(probe, site)).get("epoch")
    if first is None:
        return
    lost = (await start(probe, site, epoch=first, nonce="n1")).get("epoch", 0)
    known = (await start(probe, site, epoch=first, nonce="n1")).get("epoch", 0)
    require(first < lost < known, f"three starts got epochs {first}, {lost}, {known}")
    expect_moved(await ask_start(probe, site, epoch=first, nonce="n2"))
    later = known + 10**9
    higher = (await start(probe, site, epoch=later)).get("epoch", 0)
    require(higher > later, f"epoch {later} of before a restore got {higher} next")


async def a_start_that_comes_again_takes_nobodys_place(probe: Probe) -> None:
    """A host that is alone would stop until an operator has looked."""
    site = f"verify-{probe.run}-again"
    own = (await start(probe, site, nonce="n1")).get("epoch")
    if own is None:
        return
    expect(await ask_start(probe, site, nonce="n1"), 200)
    expect(await ask_start(probe, site, epoch=own, nonce="n2", last_nonce="n1"), 200)
    expect_moved(await ask_start(probe, site, nonce="n1"))
    other = await ask_start(probe, site, nonce="n3", generation=f"not-{probe.run}")
    if other.is_success:
        _lacks(probe, other, ANY_GENERATION)
        return
    expect_problem(other, Kind.GENERATION_CHANGED, "generation", other.headers.get(GENERATION))


async def a_start_is_given_what_is_known(probe: Probe) -> None:
    """A client could not see that its backend was restored, or that another host sent."""
    site = f"verify-{probe.run}-states"
    epoch = (await start(probe, site)).get("epoch")
    if epoch is None:
        return
    append = {"mode": "append", "installation_id": site, "installation_epoch": epoch}
    one = {"upload_key": "0-5", "until": ["5", 2_000], "source_seq": 2_000, "full": True}
    two = {"upload_key": "5-9", "after": ["5", 2_000], "until": ["9", 3_000], "source_seq": 3_000}
    expect_job(await probe.deliver("u1", [A], **append, **one))
    expect_job(await probe.deliver("u2", [B], **append, **two))
    page = await start(probe, site, epoch=epoch)
    states = dict(page.get("states") or {})
    while page.get("next") is not None:
        answer = await probe.ask("GET", "installations", site, query={"next": str(page["next"])})
        page = expect(answer, 200)
        states.update(page.get("states") or {})
    wanted = {"source_seq": 3_000, "watermark": ["9", 3_000], "full_seq": 2_000, "mode": "append"}
    given = states.get(probe.source)
    require(given == wanted, f"a start is given {given}, not {wanted}")


async def every_answer_names_the_generation(probe: Probe) -> None:
    """A client would take an answer of before a restore for one of after it."""
    site = f"verify-{probe.run}"
    report = {"client_id": site, "metrics": {}, "timestamp": "2026-01-01T00:00:00+00:00"}
    answers = [
        await probe.deliver("u1", [A]),
        await probe.complete(probe.upload("u1")),
        await probe.complete(probe.upload("u2"), upload_key="k2", source_seq=2_000),
        await probe.ask("POST", "health", json=report),
        await ask_start(probe, f"{site}-generation"),
    ]
    named = [answer.headers.get(GENERATION) for answer in answers]
    if not any(named):
        probe.doubt(NO_GENERATION)
    require(len(set(named)) == 1, f"the header {GENERATION} of five answers was {named}")


async def another_mode_needs_full(probe: Probe) -> None:
    """Adding a watermark to a query that was sent without one would double every row."""
    append = {"mode": "append", "upload_key": "0-5", "source_seq": 2_000, "until": ["5", 2_000]}
    expect_job(await probe.deliver("u1", [A]))
    answer = await probe.deliver("u2", [B], **append)
    if answer.is_success:
        _lacks(probe, answer, "another mode is accepted without full: rows may be there twice")
        return
    expect_refused(answer, Kind.MODE_CHANGED.status)
    by_id = {**append, "watermark_of": "id"}
    expect_job(await probe.complete(probe.upload("u2"), **by_id, full=True))
    back = await probe.deliver("u3", [A], upload_key="k3", source_seq=3_000)
    expect_refused(back, Kind.MODE_CHANGED.status)
    next_range = {"upload_key": "5-9", "source_seq": 3_000, "after": ["5", 2_000]}
    other = {**append, **next_range, "watermark_of": "at"}
    expect_refused(await probe.deliver("u4", [A], **other), Kind.MODE_CHANGED.status)
    expect_job(await probe.complete(probe.upload("u4"), **{**by_id, **next_range}))


async def a_duplicate_says_how(probe: Probe) -> None:
    """A client could not distinguish another host's content from an answer that was lost."""
    expect_job(await probe.deliver("u1", [A]))
    answer = await probe.complete(probe.upload("u1"))
    if "by" not in expect(answer, 200):
        _lacks(probe, answer, "duplicate does not say by what: upload_id or upload_key")
        return
    expect_fields(await probe.complete(probe.upload("u1")), by="upload_id", source_seq=1_000)
    same = await probe.deliver("u2", [A], source_seq=1_500)
    expect_fields(same, by="upload_key", source_seq=1_500)


def _lacks(probe: Probe, answer: httpx.Response, sentence: str) -> None:
    """A doubt about a backend that knows no generation; one that does must have the rest too."""
    require(not answer.headers.get(GENERATION), sentence)
    probe.doubt(sentence)


async def ask_start(
    probe: Probe, site: str, epoch: int = 0, nonce: str = "", **more: str
) -> httpx.Response:
    about = {"entry": "verify", "version": "1", "handler": "verify", "epoch": epoch, "nonce": nonce}
    return await probe.ask("PUT", "installations", site, json={**about, **more})


async def start(probe: Probe, site: str, epoch: int = 0, nonce: str = "") -> JsonObject:
    """What a folder's start is answered; nothing where the backend knows no installations."""
    answer = await ask_start(probe, site, epoch, nonce)
    if answer.status_code in (404, 405):
        probe.doubt(NO_EPOCHS)
        return {}
    shown = expect(answer, 200, 201)
    if "epoch" not in shown:
        _lacks(probe, answer, NO_EPOCHS)
    return shown


def expect_moved(answer: httpx.Response) -> None:
    """The refusal that makes a client stop until an operator has looked."""
    expect_problem(answer, Kind.INSTALLATION_MOVED, "since")
