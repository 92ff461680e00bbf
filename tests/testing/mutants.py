"""Faults seeded into a good processor: each mutant is its source with something added or changed.

A mutant is written as a package of its own, with a manifest made from its code, so that the
contract suite meets it as it meets a vendor's. The check that names its fault catches it; where
`alone` is set, no other check does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catalogzero.entry import drift

SAMPLE = "id,name,note\n1, Ada,first\n2,Bo ,second\n3,Cy,third\n4,Di,fourth\n5,Ed,fifth\n"
PROCESS = """\
for batch in batches:
            yield [{k: v.strip() for k, v in row.items()} for row in batch]
"""
SOURCE = '''\
"""A processor for the contract suite."""

import os
import socket
import sys
import threading
import time
import uuid
from typing import ClassVar

from catalogzero import CloudProcessor, CloudSettings, internal
from pydantic_settings import SettingsConfigDict

{top}


class GoodSettings(CloudSettings):
    """Its settings."""

    model_config = SettingsConfigDict(env_prefix={prefix!r}{config})
{settings}


class Good(CloudProcessor):
    """Strips texts."""

    settings_model = GoodSettings

    def process(self, batches, params):
        """Strip every text."""
        {process}
{body}
'''
HEAD = """\
manifest_version = 1
id = "good"
name = "Good"
version = "1.0.0"
kind = "processor"
description = "Strips texts."
vendor = { name = "Acme" }
requires = { python = ">=3.11", catalogzero = ">=0.1" }
"""


@dataclass(frozen=True)
class Mutant:
    """The parts of a processor's source; the default of each is the good one."""

    top: str = ""
    prefix: str = "GOOD_"
    config: str = ""
    settings: str = ""
    process: str = PROCESS
    body: str = ""
    stale: tuple[str, str] = ("", "")
    alone: bool = True

    def write(self, folder: Path, package: str) -> Path:
        """Write the mutant as a package below a folder; the package's folder."""
        there = folder / package
        there.mkdir()
        parts = {"settings": _indented(self.settings), "body": _indented(self.body)}
        source = SOURCE.format(
            top=self.top, prefix=self.prefix, config=self.config, process=self.process, **parts
        )
        (there / "__init__.py").write_text("")
        (there / "handler.py").write_text(source)
        return there

    def manifest(self, cls: type) -> str:
        """The manifest that belongs to the mutant's class, or one that is out of date."""
        text, (said, before) = drift.with_generated(HEAD, cls), self.stale
        assert said in text
        return text.replace(said, before) if said else text


def _indented(text: str) -> str:
    """A part of a class's body."""
    return "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())


def process(text: str, **more: Any) -> Mutant:
    """A mutant whose `process` is otherwise."""
    return Mutant(process=text.replace("\n", "\n        "), **more)


OVERRIDE = """
def process_and_upload(self, data_source: str, params: dict | None = None,
                       format: str | None = None, full: bool | None = None) -> dict:
    "Upload in another way."
    result = super().process_and_upload(data_source, params, format, {full})
    {then}
    return result
"""


REVERSE_BY_TURN = """
for batch in batches:
    yield batch[::-1] if {turn} else batch"""


def upload(then: str = "", full: str = "full") -> Mutant:
    """A mutant that does something with the result of an upload."""
    return Mutant(body=OVERRIDE.format(then=then or "pass", full=full))


ANNOUNCE = """
def announce(settings):
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    try:
        urlopen(Request(settings.endpoint, b"[]", headers), timeout=5).close()
    except HTTPError as error:
        error.close()
"""

GOOD = Mutant()
MUTANTS: dict[str, list[Mutant]] = {
    "serves_and_stops": [
        Mutant(
            body="""
            async def _on_start(self):
                await super()._on_start()
                self.gone = threading.Event()
                threading.Thread(target=self.gone.wait, args=(6,), name="stray").start()
            """.replace("\n            ", "\n")
        ),
    ],
    "unknown_settings_are_refused": [Mutant(config=', extra="ignore"')],
    "secrets_are_secret_settings": [Mutant(settings='db_password: str = ""')],
    "settings_have_a_prefix": [Mutant(prefix=""), Mutant(prefix="CATALOGZERO_")],
    "ping_has_its_keys": [Mutant(body='async def ping(self):\n    return {"ok": True}')],
    "metrics_have_their_keys": [
        Mutant(body='async def get_metrics(self):\n    return {"rows": 1}'),
        Mutant(body="async def get_metrics(self):\n    raise ValueError('no figures')"),
    ],
    "describe_has_its_keys": [Mutant(body='async def describe(self):\n    return {"me": 1}')],
    "control_calls_block_nothing": [
        Mutant(
            body="async def describe(self):\n    time.sleep(3)\n    return await super().describe()"
        ),
        Mutant(
            body="async def get_metrics(self):\n    time.sleep(3)\n"
            "    return await super().get_metrics()",
            alone=False,
        ),
    ],
    "drains_and_resumes": [
        Mutant(
            body="async def get_metrics(self):\n    report = await super().get_metrics()\n"
            "    return {**report, 'status': report['status'].replace('draining', 'idle')}"
        )
    ],
    "unknown_params_are_refused": [
        Mutant(body='def count(self, **options: int) -> int:\n    "Count."\n    return 1'),
        Mutant(body='def count(self, params) -> int:\n    "Count."\n    return 1'),
    ],
    "methods_are_documented": [
        Mutant(body="def count(self, first: int) -> int:\n    return first"),
        Mutant(body='def count(self, first) -> int:\n    "Count."\n    return first'),
    ],
    "manifest_matches_the_code": [
        Mutant(stale=('name = "process_and_upload"', 'name = "upload"')),
        Mutant(stale=("output_version = 1", "output_version = 2")),
    ],
    "identity_stays": [
        Mutant(
            top="from pydantic import BaseModel, Field\n\n\nclass Asked(BaseModel):\n"
            "    day: str = Field('', json_schema_extra={'identity': False})",
            body="process.__annotations__['params'] = Asked",
            stale=("identity = false, ", ""),
        )
    ],
    "importing_it_is_light": [Mutant(top="import pyarrow"), Mutant(top="import httpx")],
    "sleeps_and_wakes": [
        Mutant(body="def _release_resources(self):\n    raise OSError('stuck')"),
        Mutant(body="def _ensure_resources(self):\n    raise OSError('no database')"),
    ],
    "sleep_leaks_no_descriptors": [
        Mutant(
            body="held = []\ndef _ensure_resources(self):\n"
            "    self.held.append(os.open(os.devnull, os.O_RDONLY))"
        )
    ],
    "sleep_leaks_no_threads": [
        Mutant(
            body="gone = threading.Event()\ndef _ensure_resources(self):\n"
            "    threading.Thread(target=self.gone.wait, daemon=True).start()"
        )
    ],
    "sleep_leaks_no_memory": [
        Mutant(body="held = []\ndef _warm_cache(self):\n    self.held.append(b'x' * 16_000_000)")
    ],
    "process_yields_batches_of_rows": [
        process("for batch in batches:\n    yield tuple(batch)"),
        process("for batch in batches:\n    yield from batch", alone=False),
        process("return [batch for batch in batches]", alone=False),
        process("for batch in batches:\n    yield [{'x': object()} for row in batch]", alone=False),
        process(
            "for batch in batches:\n    yield [list(row.values()) for row in batch]", alone=False
        ),
    ],
    "process_takes_an_empty_source": [
        process("first = next(batches)\nyield first\nyield from batches"),
        process("for batch in batches:\n    assert batch[0]['id']\n    yield batch"),
    ],
    "process_gives_the_same_again": [
        process(
            REVERSE_BY_TURN.format(turn="self.turn"),
            top="import itertools\n\nturns = itertools.cycle([False, True])",
            body="def __init__(self, **config):\n"
            "    super().__init__(**config)\n    self.turn = next(turns)",
        ),
        process(
            "for batch in batches:\n    yield [{**row, 'key': uuid.uuid4().hex} for row in batch]",
            alone=False,
        ),
        process(
            "for batch in batches:\n    yield [{**row, 'at': time.time_ns()} for row in batch]",
            alone=False,
        ),
    ],
    "process_keeps_nothing_between_sources": [
        process(
            "self.sources += 1" + REVERSE_BY_TURN.format(turn="self.sources % 2 == 0"),
            body="sources = 0",
        ),
        process(
            "for batch in batches:\n"
            "    new = [row for row in batch if row['id'] not in self.seen]\n"
            "    self.seen.update(row['id'] for row in new)\n    yield new",
            body="def __init__(self, **config):\n"
            "    super().__init__(**config)\n    self.seen = set()",
            alone=False,
        ),
    ],
    "process_ignores_batch_borders": [
        process(
            "for batch in batches:\n    yield [{**row, 'n': n} for n, row in enumerate(batch)]"
        ),
        process("for batch in batches:\n    yield batch[:3]"),
    ],
    "process_streams": [process("rows = [row for batch in batches for row in batch]\nyield rows")],
    "process_connects_to_nothing": [
        process(
            "for batch in batches:\n"
            "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:\n"
            "        probe.connect(('127.0.0.1', 9))\n    yield batch"
        )
    ],
    "uploads_its_sample": [
        upload(
            "if result['status'] == 'uploaded' and not params:\n        result['status'] = 'sent'"
        ),
        process(
            "if self.in_worker:\n    raise ValueError('not here')\nyield from batches", alone=False
        ),
    ],
    "answers_while_it_works": [
        Mutant(
            body='async def health_report(self) -> dict:\n    "Report after a while."\n'
            "    time.sleep(3)\n    return await super().health_report()"
        )
    ],
    "result_has_its_keys": [
        upload("del result['bad_records']"),
        replace(
            upload("result = {k: v for k, v in result.items() if k in ('status', 'records')}"),
            alone=False,
        ),
    ],
    "every_row_arrives_once": [
        process("for batch in batches:\n    yield batch[1:] if self.in_worker else batch"),
        process("for batch in batches:\n    yield batch + batch[:1] if self.in_worker else batch"),
    ],
    "unchanged_is_skipped": [upload(full="True")],
    "full_sends_again_and_doubles_nothing": [upload(full="False")],
    "health_report_reaches_the_backend": [
        Mutant(
            body='async def health_report(self) -> dict:\n    "Say that all is well."\n'
            '    return {"status": "reported", "metrics": {}}'
        )
    ],
    "the_key_shows_nowhere": [
        upload("sys.stderr.write(self.settings.api_key.get_secret_value())"),
        upload("result['reported'] = self.settings.api_key.get_secret_value()"),
    ],
    "survives_a_faulty_network": [
        process(
            "if self.in_worker:\n    announce(self.settings)\nyield from batches",
            top=ANNOUNCE,
        )
    ],
    "a_backend_that_is_away_gives_queued": [
        upload("assert result['status'] != 'queued', 'not uploaded'")
    ],
    "a_refusal_is_a_failure": [upload("result.pop('success', None)")],
    "a_dropped_column_does_not_leave": [
        process("for batch in batches:\n    yield [{**row, 'raw': str(row)} for row in batch]")
    ],
    "reads_nothing_outside_its_roots": [
        Mutant(
            top="import csv",
            body="def read(self, data_source, params, after=None):\n"
            "    with open(data_source) as file:\n        yield list(csv.DictReader(file))",
        ),
        Mutant(
            body="def read(self, data_source, params, after=None):\n"
            "    yield [{'id': '1', 'name': 'Ada', 'note': 'first'}]",
        ),
    ],
}
