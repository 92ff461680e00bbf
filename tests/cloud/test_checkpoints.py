"""Checkpoints of an own read: each ends a part, which is sealed, and from which a run goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from catalogzero import (
    Checkpoint,
    CloudProcessor,
    FailedError,
    Params,
    Rows,
    Stream,
)

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site

BOTH_STORES = True

Step = Rows | Checkpoint | Exception


class Pages(CloudProcessor):
    """An own source of pages: a script's steps behind `after`, and what it returns."""

    stream: ClassVar[Any] = "pages"
    mode: ClassVar[Any] = "append"
    script: ClassVar[list[Step]] = []
    last: ClassVar[Any] = None
    began: ClassVar[list[Any]] = []
    called: ClassVar[list[Rows]] = []

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Any]:
        """Yields a part's rows as one, at its end: what is held back belongs to the part."""
        held = [row for batch in batches for row in batch]
        self.called.append(held)
        if held:
            yield held

    def read(
        self, data_source: str, params: Params, after: Any = None
    ) -> Generator[Rows | Checkpoint, None, Any]:
        """The steps of the script."""
        self.began.append(after)
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            yield step
        return self.last


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("script", []), ("last", None), ("began", []), ("called", [])):
        monkeypatch.setattr(Pages, name, value)


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


def rows(*numbers: int) -> Rows:
    """A batch."""
    return [{"n": number} for number in numbers]


def ranges(backend: ReferenceBackend) -> list[tuple[Any, Any]]:
    """Where each visible upload begins and ends, in the order of sealing."""
    bodies = [one.body for one in backend.uploads.values() if one.status == "done"]
    bodies.sort(key=lambda body: body["source_seq"])
    return [(body["after"] and body["after"][0], body["until"][0]) for body in bodies]


async def test_each_part_is_an_upload_and_process_is_called_for_each(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Pages.script = [rows(1), rows(2), Checkpoint("p2"), rows(3), Checkpoint("p3"), rows(4)]
    Pages.last = "p4"
    async with Site(backend.url, tmp_path, author=Pages) as site:
        result = await site.run("api")
        again = await site.run("api")

    assert Pages.called[:3] == [rows(1, 2), rows(3), rows(4)]
    assert ranges(backend)[:3] == [(None, "p2"), ("p2", "p3"), ("p3", "p4")]
    assert (result["status"], result["uploads"], result["records"]) == ("uploaded", 3, 4)
    assert Pages.began == [None, "p4"]
    assert again["records"] == 4  # the script gives them again: an own read decides what is new


async def test_a_run_that_fails_goes_on_behind_the_last_checkpoint(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Pages.script = [rows(1), Checkpoint(1), rows(2), Checkpoint(2), rows(3), OSError("429")]
    async with Site(backend.url, tmp_path, author=Pages) as site:
        with pytest.raises(FailedError, match="429") as failed:
            await site.run("api")
        Pages.script, Pages.last = [rows(3), Checkpoint(3)], None
        result = await site.run("api")

    assert failed.value.details["uploads"] == 2
    assert Pages.began == [None, 2]
    assert (result["status"], ranges(backend)) == ("uploaded", [(None, 1), (1, 2), (2, 3)])
    assert sorted(row["n"] for row in backend.rows()) == [1, 2, 3]


async def test_a_full_run_seals_one_upload_and_no_parts(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Pages.script = [rows(1), Checkpoint(1), rows(2), Checkpoint(2)]
    async with Site(backend.url, tmp_path, author=Pages) as site:
        await site.run("api")
        Pages.script = [rows(1), Checkpoint(1), OSError("cut")]
        with pytest.raises(FailedError, match="cut"):
            await site.run("api", full=True)
        seen = sorted(row["n"] for row in backend.rows())
        Pages.script = [rows(5), Checkpoint(1), rows(6), Checkpoint(2)]
        result = await site.run("api", full=True)

    assert seen == [1, 2]  # nothing of the run that failed took their place
    assert Pages.began == [None, None, None]
    assert (result["uploads"], sorted(row["n"] for row in backend.rows())) == (1, [5, 6])


async def test_under_strict_rules_nothing_is_sealed_before_the_end(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Pages.script = [rows(1), Checkpoint(1), rows(2), Checkpoint(2)]
    strict = {"egress": {"strict": True, "drop": ["absent"]}}
    async with Site(backend.url, tmp_path, author=Pages, runtime=strict) as site:
        with pytest.raises(FailedError, match="drop: absent"):
            await site.run("api")
    assert not backend.rows()


@pytest.mark.parametrize("value", [1, "a"])
async def test_rows_behind_the_last_new_value_fail_the_run_by_name(
    backend: ReferenceBackend, tmp_path: Path, value: Any
) -> None:
    """A checkpoint at the same value ends no part, and its rows are not lost."""
    Pages.script = [rows(1), Checkpoint(value), rows(2), Checkpoint(value)]
    async with Site(backend.url, tmp_path, author=Pages) as site:
        with pytest.raises(FailedError, match=f"the watermark is still {value!r}"):
            await site.run("api")
    assert ranges(backend) == [(None, value)]


async def test_rows_at_the_same_value_belong_to_the_next_part(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    Pages.script = [rows(1), Checkpoint(1), rows(2), Checkpoint(1), rows(3), Checkpoint(0)]
    Pages.script += [rows(4), Checkpoint(2)]
    async with Site(backend.url, tmp_path, author=Pages) as site:
        await site.run("api")
    assert Pages.called == [rows(1), rows(2), rows(3), rows(4)]
    assert ranges(backend) == [(None, 1), (1, 2)]
    assert sorted(row["n"] for row in backend.rows()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "a Checkpoint's value is None"),
        ("x" * 5_000, "at most 4096 are kept"),
        (object(), "cannot be kept"),
    ],
)
async def test_a_value_that_cannot_be_kept_is_refused(
    backend: ReferenceBackend, tmp_path: Path, value: Any, words: str
) -> None:
    Pages.script = [rows(1), Checkpoint(value)]
    async with Site(backend.url, tmp_path, author=Pages) as site:
        with pytest.raises(FailedError, match=words):
            await site.run("api")
    assert not backend.rows()


async def test_a_checkpoint_of_a_source_that_is_replaced_is_refused(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    class Whole(Pages):
        mode = "replace"

    Pages.script = [rows(1), Checkpoint(1)]
    async with Site(backend.url, tmp_path, author=Whole) as site:
        with pytest.raises(FailedError, match='write `mode = "append"`'):
            await site.run("api")
    with pytest.raises(TypeError, match="take one of them out"):
        type("Group", (Pages,), {"unit": "run"})


async def test_a_position_that_moved_under_a_run_ends_it(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    """Two runs over one source: what the other sealed is not sealed again."""
    inside, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(Pages):
        def read(
            self, data_source: str, params: Params, after: Any = None
        ) -> Generator[Rows | Checkpoint, None, Any]:
            self.began.append(after)
            yield rows((after or 0) + 1)
            if len(self.began) == 1:
                loop.call_soon_threadsafe(inside.set)
                asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
            yield Checkpoint((after or 0) + 1)

    async with Site(backend.url, tmp_path, author=Slow) as site:
        slow = asyncio.create_task(site.run("api"))
        await inside.wait()
        await site.run("api")
        go_on.set()
        result = await slow

    assert Slow.began == [None, None, 1]  # the first one began again behind what was sealed
    assert result["status"] == "uploaded"
    assert ranges(backend) == [(None, 1), (1, 2)]
    assert sorted(row["n"] for row in backend.rows()) == [1, 2]


async def test_all_streams_of_a_part_are_sealed_together(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    class Both(Pages):
        stream = None
        streams = (Stream("even"), Stream("odd"))

        def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Any]:
            for batch in batches:
                for row in batch:
                    yield ("odd" if row["n"] % 2 else "even"), [row]

    Pages.script = [rows(1, 2), Checkpoint(1), rows(3), Checkpoint(2), rows(4), OSError("cut")]
    async with Site(backend.url, tmp_path, author=Both) as site:
        with pytest.raises(FailedError, match="cut"):
            await site.run("api")
        sealed = [
            (one.body["stream"], one.body["until"][0], one.body["records"])
            for one in backend.uploads.values()
            if one.status == "done"
        ]
    assert sorted(sealed) == [("even", 1, 1), ("even", 2, 0), ("odd", 1, 1), ("odd", 2, 1)]
