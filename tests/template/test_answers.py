"""The template's answers: what is derived from them, and which are refused."""

from __future__ import annotations

import json
import keyword
import sys
import tomllib
from types import ModuleType
from typing import Any

import pytest
import yaml
from apscheduler.triggers.cron import CronTrigger
from catalogzero.entry.scaffold import complete, template_folder, template_rules
from catalogzero.errors import ConfigError
from catalogzero.scheduler.triggers import parse_trigger
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)


def completed(**answers: str) -> dict[str, str]:
    return complete(answers, template_folder())


@pytest.mark.parametrize(
    ("vendor", "product", "slug"),
    [
        ("Skylark Analytics", "Processor", "skylark-processor"),
        ("Skylark Analytics", "Skylark Processor", "skylark-processor"),
        ("Acme", "Flight Delays", "acme-flight-delays"),
        ("The Weather Company", "Rain", "weather-rain"),
        ("Ümlaut GmbH", "Prüfer", "umlaut-prufer"),
        ("3M", "Tape", "x3m-tape"),
        ("株式会社", "処理", "zhu-shi-hui-she-chu-li"),
    ],
)
def test_the_slug_comes_from_vendor_and_product(vendor: str, product: str, slug: str) -> None:
    assert completed(vendor_name=vendor, product_name=product)["project_slug"] == slug


def test_every_derived_answer_can_be_overridden() -> None:
    given_answers = {
        "project_slug": "your-company-processor-handler",
        "module_path": "your_company.cloud_processor_handler",
        "class_name": "CloudProcessorHandler",
        "description": "Processes.",
        "endpoint": "https://api.yourcompany.example/v1/process",
    }

    assert given_answers.items() <= completed(**given_answers).items()


@pytest.mark.parametrize("slug", ["json", "class", "import", "async", "yaml", "true", "none"])
def test_a_slug_named_like_a_module_or_a_keyword_gets_a_package_that_shadows_nothing(
    slug: str,
) -> None:
    answers = completed(project_slug=slug)

    package = answers["module_path"].split(".")[0]
    assert package not in sys.stdlib_module_names
    assert not keyword.iskeyword(package)
    assert not keyword.iskeyword(answers["class_name"])


@settings(deadline=None, max_examples=50)
@given(vendor=NAMES, product=NAMES)
def test_names_give_names_that_python_takes_or_are_refused_with_a_sentence(
    vendor: str, product: str
) -> None:
    try:
        answers = completed(vendor_name=vendor, product_name=product)
    except ConfigError as error:
        refused = str(error)
    else:
        assert all(part.isidentifier() for part in answers["module_path"].split("."))
        assert answers["class_name"].isidentifier()
        return
    assert "no plain name can be made; give one: project_slug=" in refused


@pytest.mark.parametrize(
    ("answer", "value", "fix"),
    [
        ("packaging", "vagrant", "choose one of: systemd, docker, both, none"),
        ("source", "", "choose one of: files, sql, singer, custom"),
        ("kind", "conductor", "choose one of: processor, handler"),
        ("index", "", "choose one of: catalog, public"),
        ("vendor_name", "A\nB", "line break"),
        ("vendor_name", "…", "give one: project_slug=acme-processor"),
        ("product_name", "🙂", "give one: project_slug=acme-processor"),
        ("vendor_name", "catalogzero", "which is taken"),
        ("vendor_name", "CatalogZero", "which is taken"),
        ("vendor_name", " Acme", "begins or ends with a blank"),
        ("product_name", "x" * 101, "shorten it to 100"),
        ("description", "", "say in one sentence"),
        ("project_slug", "Acme_Processor", "such as 'acme-processor'"),
        ("project_slug", "../../etc", "such as 'acme-processor'"),
        ("project_slug", "catalogzero", "choose another"),
        ("project_slug", "catalogzero-orders", "choose another"),
        ("author_email", "somebody", "or leave it empty"),
        ("endpoint", "api.acme.example", "give a whole URL"),
        ("endpoint", "http://api.acme.example/v1", "use https"),
        ("endpoint", "https://user:secret@api.acme.example/v1", "a user or a password"),
        ("endpoint", "https://api.acme.example/v1?api_key=abc", "a key or a token"),
        ("endpoint", 'https://api.acme.example/"x"', "encode them"),
        ("endpoint", "https://api.acme.example:99999/", "give a whole URL"),
        ("module_path", "handler", "a dotted path"),
        ("module_path", "json.handler", "exists already"),
        ("module_path", "acme.class", "a word of Python"),
        ("module_path", "acme.settings", "uses already"),
        ("module_path", "acme processor.handler", "a dotted path"),
        ("class_name", "acmeProcessor", "such as 'AcmeProcessor'"),
        ("class_name", "CloudProcessor", "taken"),
        ("class_name", "True", "taken"),
        ("default_schedule", "daily", "five"),
        ("default_schedule", "61 * * * *", "minute"),
        ("default_schedule", "0 2 * * 9", "day_of_week"),
        ("default_schedule", "0 5-2 * * *", "hour"),
        ("default_schedule", "0 */30 * * *", "hour"),
    ],
)
def test_a_bad_answer_is_refused_with_a_sentence(answer: str, value: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=answer) as refused:
        completed(**{answer: value})

    assert fix in str(refused.value)


@pytest.mark.parametrize("name", ["…", "🙂", "ꙮ"])
def test_a_name_without_a_plain_slug_is_taken_with_a_slug_beside_it(name: str) -> None:
    answers = completed(vendor_name=name, product_name=name, project_slug="acme-orders")

    assert answers["module_path"] == "acme_orders.handler"
    assert answers["endpoint"] == "https://api.acme.example/v1/process"


@pytest.mark.parametrize("answer", [{"source": "sql"}, {"upload_form": "simple"}])
def test_what_a_plain_handler_does_not_have_is_refused(answer: dict[str, str]) -> None:
    (name,) = answer
    with pytest.raises(ConfigError, match=f"{name} is of a processor; leave it out"):
        completed(kind="handler", **answer)


def test_two_products_of_a_vendor_have_a_prefix_each(rules: ModuleType) -> None:
    products = [completed(vendor_name="Acme", product_name=name) for name in ("Orders", "Stock")]

    assert [rules.env_prefix(answers) for answers in products] == ["ACME_ORDERS_", "ACME_STOCK_"]


def test_an_unknown_answer_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ConfigError, match="no such answer: vendor; there are: vendor_name"):
        completed(vendor="Acme")


def test_every_bad_answer_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        completed(project_slug="A", class_name="b", endpoint="c")

    assert len(str(refused.value).splitlines()) >= 3


@pytest.mark.parametrize(
    ("line", "trigger"),
    [
        ("0 2 * * *", {"minute": "0", "hour": "2"}),
        ("*/5 * * * *", {"minute": "*/5", "hour": "*"}),
        ("0 6 * * 1-5", {"minute": "0", "hour": "6", "day_of_week": "mon,tue,wed,thu,fri"}),
        ("0 6 * * 0", {"minute": "0", "hour": "6", "day_of_week": "sun"}),
        ("0 6 * * 5-7", {"minute": "0", "hour": "6", "day_of_week": "fri,sat,sun"}),
        (
            "0 6 13 * 5",
            {"minute": "0", "hour": "6", "day": "13", "day_of_week": "fri", "day_or_weekday": True},
        ),
        ("0 6 */2 * 5", {"minute": "0", "hour": "6", "day": "*/2", "day_of_week": "fri"}),
        ("30 1 1 jan,jul *", {"minute": "30", "hour": "1", "day": "1", "month": "jan,jul"}),
    ],
)
def test_a_cron_line_becomes_a_trigger_with_days_by_name(
    rules: ModuleType, line: str, trigger: dict[str, Any]
) -> None:
    assert rules.trigger_of(line) == {"type": "cron", **trigger}


def part(least: int, greatest: int) -> st.SearchStrategy[str]:
    numbers = st.integers(least, greatest)
    spans = st.tuples(numbers, numbers).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.integers(1, greatest - least).map(lambda step: f"{least}-{greatest}/{step}")
    return st.one_of(st.just("*"), numbers.map(str), spans, steps)


@settings(deadline=None, max_examples=50)
@given(st.tuples(part(0, 59), part(0, 23), part(1, 31), part(1, 12), part(0, 7)))
def test_every_cron_line_that_is_taken_is_a_trigger_that_the_scheduler_takes(
    fields: tuple[str, ...],
) -> None:
    with template_rules(template_folder()) as rules:
        trigger = rules.trigger_of(" ".join(fields))

    assert parse_trigger(trigger)
    trigger.pop("day_or_weekday", None)
    assert trigger.pop("type") == "cron"
    assert CronTrigger(**trigger, timezone="UTC")


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_a_quoted_string_is_read_alike_by_toml_yaml_json_and_python(text: str) -> None:
    with template_rules(template_folder()) as rules:
        quoted = rules.quoted(text)

    assert tomllib.loads(f"x = {quoted}")["x"] == text
    assert json.loads(quoted) == text
    assert eval(quoted) == text  # noqa: S307 - that Python reads it is what is tested
    if text.isprintable():
        assert yaml.safe_load(quoted) == text
