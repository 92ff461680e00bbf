"""Params of `process` that a pydantic model names: checked first, described, and an identity."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
from catalogzero import BadParamsError, Batch, CloudProcessor, Rows
from catalogzero.testing import serving
from pydantic import BaseModel, Field

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site


class Prices(BaseModel):
    """What a call asks for."""

    region: str
    least: float = Field(default=0.0, ge=0, description="Cheaper rows are left out.")
    as_of: date | None = Field(default=None, json_schema_extra={"identity": False})


class Priced(CloudProcessor):
    """Keeps the rows above a price."""

    def process(self, batches: Iterable[Rows], params: Prices) -> Iterator[Batch]:
        for batch in batches:
            rows = [row for row in batch if float(row["price"]) >= params.least]
            yield [{**row, "as_of": params.as_of} for row in rows]


class Own(CloudProcessor):
    """Reads a source of its own, and says that it did."""

    reads: ClassVar[list[Prices]] = []

    def read(self, data_source: str, params: Prices, after: Any = None) -> Iterator[Batch]:
        self.reads.append(params)
        yield [{"region": params.region, "as_of": params.as_of}]

    def process(self, batches: Iterable[Rows], params: Prices) -> Iterator[Batch]:
        yield from batches


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


async def test_process_gets_the_model(backend: ReferenceBackend, tmp_path: Path) -> None:
    async with Site(backend.url, tmp_path, author=Priced) as site:
        site.write("a.csv", "id,price\n1,9\n2,10\n")
        params = {"region": "eu", "least": 10, "as_of": "2026-01-31", "format": "ndjson"}
        await site.run(params=params)

    assert backend.rows() == [{"id": "2", "price": "10", "as_of": "2026-01-31"}]


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({"region": "eu", "leest": 3}, "params.leest: there is no such key"),
        ({"region": "eu", "least": -1}, "params.least: Input should be greater than or equal to 0"),
        ({}, "params.region: Field required"),
        (None, "params.region: Field required"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name_before_anything_is_read(
    backend: ReferenceBackend, tmp_path: Path, params: Any, fault: str
) -> None:
    Own.reads.clear()
    made = Own(endpoint=backend.url, api_key="test-key")
    call = {"data_source": "mine", "params": params}
    async with serving(made, state_dir=tmp_path / "state") as at:
        for method, given in (
            ("process_and_upload", call),
            ("check_params", {"method": "process_and_upload", "params": call}),
        ):
            with pytest.raises(BadParamsError, match=fault) as caught:
                await at.client.call(method, given)
            assert caught.value.details[0]["field"] == fault.partition(":")[0]
        assert at.handler.worker.pid is None
    async with Site(backend.url, tmp_path, author=Own) as site:
        with pytest.raises(BadParamsError, match=fault):
            await site.run("mine", params)
    assert Own.reads == []


async def test_a_misspelled_param_is_answered_with_the_right_one(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Own) as site:
        with pytest.raises(BadParamsError, match=r"params\.regio: .* did you mean `region`"):
            await site.run("mine", {"region": "eu", "regio": "eu"})


async def test_params_that_are_no_part_of_the_identity_are_the_same_source(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Own) as site:
        await site.run("mine", {"region": "eu", "as_of": "2026-01-01"})
        second = await site.run("mine", {"region": "eu", "as_of": "2026-01-02"})
        rows = backend.rows()
        await site.run("mine", {"region": "us", "as_of": "2026-01-02"})

    assert "other_params" not in second
    assert rows == [{"region": "eu", "as_of": "2026-01-02"}]
    assert sorted(row["region"] for row in backend.rows()) == ["eu", "us"]


async def test_describe_shows_the_params(backend: ReferenceBackend, tmp_path: Path) -> None:
    made = Priced(endpoint=backend.url, api_key="k", data_roots=[tmp_path])
    async with serving(made, state_dir=tmp_path / "state") as at:
        methods = (await at.client.call("describe"))["methods"]

    (schema,) = [m["params_schema"] for m in methods if m["name"] == "process_and_upload"]
    params = schema["$defs"]["Prices"]
    assert schema["required"] == ["data_source", "params"]
    assert schema["properties"]["params"]["$ref"] == "#/$defs/Prices"
    assert params["required"] == ["region"]
    assert params["additionalProperties"] is False
    assert params["properties"]["least"]["description"] == "Cheaper rows are left out."
    assert params["properties"]["as_of"]["identity"] is False


class Formats(BaseModel):
    """Takes a name that each call has."""

    format: str


class Odd(BaseModel):
    """Says of a field neither that it is part of the identity nor that it is not."""

    n: int = Field(default=0, json_schema_extra={"identity": "no"})


def test_params_that_cannot_be_are_refused_when_the_class_is_made() -> None:
    def make(annotation: Any) -> None:
        def process(self: Any, batches: Any, params: Any) -> Iterator[Batch]:
            yield from batches

        process.__annotations__["params"] = annotation
        type("Made", (CloudProcessor,), {"process": process, "__module__": __name__})

    for annotation, why in (
        (Prices | None, "a pydantic model alone, such as Prices"),
        (Formats, "'format' is an option of every call"),
        (Odd, "identity of 'n' is true or false"),
        ("Nowhere", "'Nowhere', which cannot be read .* not under TYPE_CHECKING"),
    ):
        with pytest.raises(TypeError, match=why):
            make(annotation)
    make(dict[str, Any])
    make("Prices")


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"unit": "runs"}, r"Made.unit is 'runs', not item or run; did you mean 'run'\?"),
        ({"mode": "apend"}, r"Made.mode is 'apend', .* did you mean 'append'\?"),
        ({"batch_type": "pandas"}, "Made.batch_type is 'pandas', not dict or arrow"),
        ({"batch_rows": 0}, "Made.batch_rows is 0, not a whole number above 0"),
        ({"output_version": "2"}, "Made.output_version is '2', not a whole number above 0"),
        ({"batch_typ": "arrow"}, "Made.batch_typ: did you mean `batch_type`"),
        ({"streem": "orders"}, "Made.streem: did you mean `stream`"),
        ({"run": lambda self: None}, "Made.run: `self.run` is the run's; rename it"),
    ],
)
def test_attributes_that_are_misspelled_or_unknown_are_refused_when_the_class_is_made(
    attributes: dict[str, Any], why: str
) -> None:
    with pytest.raises(TypeError, match=why):
        type("Made", (Priced,), {**attributes, "__module__": __name__})
    type("Made", (Priced,), {"_batch_typ": 1, "regions": ("eu",), "__module__": __name__})
