"""The template's answers: which are derived, how each is quoted, which are refused, and why.

cookiecutter loads `AnswersExtension` (named in `cookiecutter.json`), the template's hooks and
`catalogzero new` call `faults`. It imports nothing of catalogzero, so that a plain
`cookiecutter <repository> --directory template` works where catalogzero was never installed.
It never reads a file and never writes one.

Layer: edge.
"""

from __future__ import annotations

import json
import keyword
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from jinja2 import Environment
from jinja2.ext import Extension
from slugify import slugify

CHOICES: dict[str, tuple[str, ...]] = {
    "kind": ("processor", "handler"),
    "source": ("files", "sql", "singer", "custom"),
    "upload_form": ("auto", "chunked", "simple"),
    "index": ("catalog", "public"),
    "packaging": ("systemd", "docker", "both", "none"),
    "ci": ("github", "gitlab", "none"),
    "license": ("proprietary", "MIT"),
}
"""Every answer that is one of a few words, with these words; the first is the default."""

LONGEST: dict[str, int] = {
    "vendor_name": 100,
    "product_name": 100,
    "project_slug": 60,
    "description": 300,
    "author_name": 100,
    "author_email": 200,
    "endpoint": 400,
    "default_schedule": 100,
    "module_path": 120,
    "class_name": 60,
}
"""Every free answer, with the most characters it may have."""

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
CRON_FIELDS: dict[str, tuple[int, int]] = {
    "minute": (0, 59),
    "hour": (0, 23),
    "day": (1, 31),
    "month": (1, 12),
    "day_of_week": (0, 7),
}
"""The fields of a cron line in their order, with the least and greatest number of each."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_EMAIL = re.compile(r"[^@\s<>\"',;:()\[\]\\]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_SECRET_WORD = re.compile(r"(api_?key|token|secret|passw|signature|credential)", re.IGNORECASE)
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~])")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SDK_PACKAGES = (
    *("catalogzero", "conductorzero", "aiohttp", "httpx", "orjson", "psutil", "pydantic"),
    *("pydantic_settings", "pytest", "rich", "structlog", "tenacity", "typer", "yaml", "zmq"),
)
_OURS = ("catalogzero", "conductorzero")
_TAKEN_PACKAGES = {*sys.stdlib_module_names, *_SDK_PACKAGES, "conftest", "test", "tests"}
_TAKEN_MODULES = {"cli", "settings", "__init__", "__main__"}
_TAKEN_CLASSES = {
    *("Any", "Batch", "CloudProcessor", "CloudSettings", "Handler", "HandlerSettings"),
    *("Iterable", "Iterator", "Params", "Path", "SettingsConfigDict"),
}


def first_word(name: str) -> str:
    """The first word of a name of which a slug can be made, articles left out.

    The name itself where there is no such word.
    """
    words = [word for word in name.split() if slug(word)]
    named = [word for word in words if word.lower() not in ("the", "a", "an")]
    return (named or words or [name])[0]


def slug(text: str) -> str:
    """A text in lower-case ASCII words joined by `-`, at most 40 characters."""
    return str(slugify(text, max_length=40, word_boundary=True))


def derived_slug(answers: Mapping[str, str]) -> str:
    """The vendor's first word and the product: `Skylark` + `Processor` → `skylark-processor`.

    A product that begins with the vendor's first word stands for itself. A slug that would
    begin with a digit gets an `x` before it. Empty where no slug can be made of either.
    """
    vendor, product = slug(first_word(answers["vendor_name"])), slug(answers["product_name"])
    if not (vendor and product):
        return ""
    name = product if f"{product}-".startswith(f"{vendor}-") else slug(f"{vendor}-{product}")
    return f"x{name}" if name[:1].isdigit() else name


def derived_description(answers: Mapping[str, str]) -> str:
    """What the package as generated does, in a sentence."""
    if answers["kind"] == "handler":
        return "Says how much a folder holds."
    return f"Processes data where it lies and sends the results to {answers['vendor_name']}."


def derived_module_path(answers: Mapping[str, str]) -> str:
    """The slug as an importable package that shadows nothing, and its module `handler`."""
    name = answers["project_slug"].replace("-", "_")
    return f"{name}_entry.handler" if _is_taken(name) else f"{name}.handler"


def derived_class_name(answers: Mapping[str, str]) -> str:
    """The slug's words as a class name; one that is taken ends in `Handler`."""
    name = "".join(word[:1].upper() + word[1:] for word in answers["project_slug"].split("-"))
    return f"{name}Handler" if keyword.iskeyword(name) or name in _TAKEN_CLASSES else name


def env_prefix(answers: Mapping[str, str]) -> str:
    """The product's prefix of its environment variables: `SKYLARK_PROCESSOR_`.

    It is the product's, so that a vendor's two products on one machine do not share a key.
    """
    return answers["project_slug"].replace("-", "_").upper() + "_"


def package(module_path: str) -> str:
    """The package of a dotted module path: all but the last name."""
    return module_path.rpartition(".")[0]


def package_dir(module_path: str) -> str:
    """The folder of that package below `src`."""
    return package(module_path).replace(".", "/")


def module(module_path: str) -> str:
    """The last name of a dotted module path."""
    return module_path.rpartition(".")[2]


def host(url: str) -> str:
    """The host of a URL; empty where there is none."""
    parts = _split(url)
    return (parts.hostname or "") if parts else ""


def cron_trigger(line: str) -> str:
    """Five cron fields as a trigger, in the form of a TOML inline table (and its JSON words).

    Days of the week become names: cron counts them from Sunday, the scheduler from Monday.
    A line that is not a cron line gives the empty table.
    """
    return _inline(trigger_of(line))


def trigger_of(line: str) -> dict[str, str | bool]:
    """Five cron fields as a trigger of the scheduler's API; `*` is left out beyond the hour.

    Where day and weekday are both set, either makes it fire, as in crontab(5).
    """
    fields = line.split()
    if cron_faults(line):
        return {}
    named = dict(zip(CRON_FIELDS, fields, strict=True))
    named["day_of_week"] = _weekdays(named["day_of_week"])
    kept = {k: v for k, v in named.items() if v != "*" or k in ("minute", "hour")}
    either = not any(named[name].startswith("*") for name in ("day", "day_of_week"))
    return {"type": "cron", **kept, **({"day_or_weekday": True} if either else {})}


def cron_faults(line: str) -> list[str]:
    """The faults of a cron line, a sentence each; an empty list where there are none."""
    fields = line.split()
    if len(fields) != len(CRON_FIELDS):
        return [f"has {len(fields)} fields; a cron line has five, such as '0 2 * * *'"]
    return [
        f"has {text!r} as its {name}, which is invalid"
        for (name, bounds), text in zip(CRON_FIELDS.items(), fields, strict=True)
        if not all(_is_cron_part(name, part, *bounds) for part in text.lower().split(","))
    ]


def _is_cron_part(field: str, part: str, least: int, greatest: int) -> bool:
    """Whether one comma-separated part of a field is `*`, `n`, `n-m`, each with a step or not."""
    span, mark, step = part.partition("/")
    ends = [least, greatest] if span == "*" else [_number(field, end) for end in span.split("-")]
    numbers = [end for end in ends if end is not None and least <= end <= greatest]
    if len(numbers) != len(ends) or len(ends) > 2 or numbers != sorted(numbers):
        return False
    reach = numbers[-1] - numbers[0]
    return not mark or (step.isascii() and step.isdecimal() and 0 < int(step) <= reach)


def _number(field: str, text: str) -> int | None:
    """A number, or the number that the name of a month or weekday stands for."""
    if text.isascii() and text.isdecimal():
        return int(text)
    if field == "day_of_week" and text in WEEKDAYS:
        return WEEKDAYS.index(text)
    return _MONTHS.index(text) + 1 if field == "month" and text in _MONTHS else None


def _weekdays(text: str) -> str:
    """A day-of-week field with every day by its name."""
    if text == "*":
        return text
    days: list[int] = []
    for part in text.lower().split(","):
        span, _, step = part.partition("/")
        ends = ["0", "6"] if span == "*" else span.split("-")
        first, last = (_number("day_of_week", end) or 0 for end in (ends[0], ends[-1]))
        days += range(first, last + 1, int(step or 1))
    return ",".join(dict.fromkeys(WEEKDAYS[day % 7] for day in days))


def quoted(value: object) -> str:
    """A value as a double-quoted string that TOML, YAML, JSON and Python read alike."""
    return json.dumps(str(value), ensure_ascii=False)


def _inline(value: Mapping[str, str | bool]) -> str:
    """A flat mapping as an inline TOML table."""
    named = (f"{key} = {json.dumps(one, ensure_ascii=False)}" for key, one in value.items())
    return "{ " + ", ".join(named) + " }"


def cron_json(line: str) -> str:
    """Five cron fields as a trigger, in JSON."""
    return json.dumps(trigger_of(line))


def ci_setup(answers: Mapping[str, str]) -> str:
    """The command by which CI makes the environment, the SDK from where clients get it.

    A catalog has the SDK but none of the vendor's tools, which come from pip's own index: the SDK
    is fetched first and named by its file, so that no other index is asked for it.
    """
    if answers["index"] == "public":
        return "make setup"
    fetch = 'python -m pip download -q --no-deps --index-url "$CATALOG/simple" -d sdk catalogzero'
    return f'{fetch} && make setup CATALOGZERO="$(ls sdk/*.whl)"'


def import_line(module_path: str, class_name: str) -> str:
    """The import of a class, on as many lines as ruff's formatter would give it."""
    line = f"from {module_path} import {class_name}"
    return line if len(line) <= 100 else f"from {module_path} import (\n    {class_name},\n)"


def docstring(text: str, indent: int = 0) -> str:
    """A text for the inside of a docstring: escaped, wrapped within 100 columns."""
    safe = text.replace("\\", "\\\\")
    if '"""' in safe or safe.endswith('"'):
        safe = safe.replace('"', '\\"')
    lines = textwrap.wrap(safe, 94 - indent, break_on_hyphens=False) or [""]
    return ("\n" + " " * indent).join(lines)


def markdown(text: str) -> str:
    """A text for a Markdown page, its marks escaped."""
    return _MARKDOWN.sub(r"\\\1", text).replace("&", "&amp;")


def docker(text: str) -> str:
    """A text as a double-quoted Dockerfile word, its `$` kept."""
    return quoted(text).replace("$", "\\$")


def faults(answers: Mapping[str, Any]) -> list[str]:
    """Everything wrong with a full set of answers: a sentence each, with the fix."""
    found = [*_shape_faults(answers)]
    if not found:
        found = [*_name_faults(answers), *_endpoint_faults(answers), *_code_faults(answers)]
    return found


def choice_faults(answers: Mapping[str, str]) -> Iterator[str]:
    """Answers that are not among the words allowed, or that mean nothing beside another."""
    for name, words in CHOICES.items():
        if answers.get(name, words[0]) not in words:
            yield f"{name} is {answers[name]!r}; choose one of: {', '.join(words)}."
    if answers.get("kind") == "handler":
        for name in ("source", "upload_form"):
            if answers.get(name, CHOICES[name][0]) != CHOICES[name][0]:
                yield f"{name} is of a processor; leave it out with kind=handler."


def _shape_faults(answers: Mapping[str, Any]) -> Iterator[str]:
    """Answers that are not one line of text, are too long, or are not among the words allowed."""
    yield from choice_faults(answers)
    for name, longest in LONGEST.items():
        text = answers.get(name)
        if not isinstance(text, str):
            yield f"{name} must be a line of text, not {text!r}."
        elif not text.isprintable():
            yield f"{name} has a line break, a tab or another character that cannot be shown."
        elif len(text) > longest:
            yield f"{name} has {len(text)} characters; shorten it to {longest} at most."
        elif text != text.strip():
            yield f"{name} begins or ends with a blank; leave it out."


def _name_faults(answers: Mapping[str, str]) -> Iterator[str]:
    """Names that cannot stand where they land."""
    for name in ("vendor_name", "product_name"):
        if slug(answers[name]) in _OURS:
            yield f"{name} is {answers[name]!r}, which is taken; give your own."
    if not answers["description"]:
        yield "description is empty; say in one sentence what the product does."
    if not answers["project_slug"]:
        names = [name for name in ("vendor_name", "product_name") if not slug(answers[name])]
        shown = " and ".join(f"{name} {answers[name]!r}" for name in names) or "the names"
        yield f"of {shown} no plain name can be made; give one: project_slug=acme-processor."
    elif not _SLUG.fullmatch(answers["project_slug"]):
        yield (
            f"project_slug is {answers['project_slug']!r}; use lower-case letters, digits and "
            "single hyphens, beginning with a letter, such as 'acme-processor'."
        )
    elif answers["project_slug"].partition("-")[0] in _OURS:
        yield f"project_slug is {answers['project_slug']!r}, which is taken; choose another."
    if answers["author_email"] and not _EMAIL.fullmatch(answers["author_email"]):
        yield f"author_email is {answers['author_email']!r}, no address; or leave it empty."
    if wrong := list(cron_faults(answers["default_schedule"])):
        yield f"default_schedule {answers['default_schedule']!r} {'; it '.join(wrong)}."


def _endpoint_faults(answers: Mapping[str, str]) -> Iterator[str]:
    """Endpoints that cannot be reached, or that would carry a secret or plain text."""
    url = answers["endpoint"]
    parts = _split(url)
    if parts is None or parts.scheme not in ("https", "http") or not parts.hostname:
        yield f"endpoint is {url!r}; give a whole URL, such as 'https://api.acme.example/v1/process'."
        return
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        yield f"endpoint is {url!r}; use https: plain http is for this machine only."
    if parts.username or parts.password:
        yield "endpoint has a user or a password in it; leave it out."
    if any(_SECRET_WORD.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True)):
        yield "endpoint has a key or a token in its query; leave it out: the client configures it."
    if parts.fragment or any(mark in url for mark in " \"'<>\\^`{|}"):
        yield f"endpoint is {url!r}; leave out blanks, quotes, braces and '#': encode them."


def _code_faults(answers: Mapping[str, str]) -> Iterator[str]:
    """Module paths and class names that Python would refuse, or that would shadow another."""
    path, class_name = answers["module_path"], answers["class_name"]
    names = path.split(".")
    if len(names) < 2 or not all(name.isascii() and name.isidentifier() for name in names):
        yield f"module_path is {path!r}; give a dotted path, such as 'acme_processor.handler'."
    elif taken := [n for n in names if keyword.iskeyword(n)]:
        yield f"module_path is {path!r}, and {taken[0]!r} is a word of Python; choose another name."
    elif _is_taken(names[0]):
        yield f"module_path is {path!r}, and a package {names[0]!r} exists already; choose another."
    elif names[-1] in _TAKEN_MODULES:
        yield f"module_path is {path!r}, whose last name the package uses already; choose another."
    if not (class_name.isascii() and class_name.isidentifier() and class_name[0].isupper()):
        yield f"class_name is {class_name!r}; give a class name, such as 'AcmeProcessor'."
    elif keyword.iskeyword(class_name) or class_name in _TAKEN_CLASSES:
        yield f"class_name is {class_name!r}, which is taken; choose another."


def _is_taken(name: str) -> bool:
    """Whether a top-level package of that name is Python's own, or one that the entry needs."""
    return keyword.iskeyword(name) or name in sys.stdlib_module_names or name in _TAKEN_PACKAGES


def _split(url: str) -> SplitResult | None:
    """A URL's parts; None where it cannot be read as one."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        first_word,
        slug,
        derived_slug,
        derived_description,
        ci_setup,
        derived_module_path,
        derived_class_name,
        env_prefix,
        package,
        package_dir,
        module,
        host,
        cron_trigger,
        cron_json,
        import_line,
        quoted,
        docstring,
        markdown,
        docker,
    )
}
"""The filters that the template's files use, by name."""


class AnswersExtension(Extension):
    """Gives the template's files the filters above."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters.update(FILTERS)
