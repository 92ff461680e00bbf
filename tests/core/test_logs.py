"""No secret in a log line or an error, in whatever form it comes there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from catalogzero.config.logs import make_logger
from catalogzero.config.settings import Mask
from pydantic import BaseModel, SecretStr


class Source(BaseModel):
    """A database, as a section names one."""

    url: SecretStr | None = None
    url_file: Path | None = None


class Settings(BaseModel):
    """Secrets, given and in files."""

    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    notes_file: Path | None = None
    sources: dict[str, Source] = {}


def knowing(**settings: Any) -> Mask:
    """A mask that has learned these settings."""
    mask = Mask()
    mask.learn(Settings(**settings))
    return mask


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("s3cret", "GET /?key=s3cret"),
        ("s3/cret?", "GET /?key=s3%2Fcret%3F"),
        ('quo"ted', 'a body {"key": "quo\\"ted"}'),
        ("gr\u00f6\u00dfer", '{"key": "gr\\u00f6\\u00dfer"}'),
        ("back\\slash", "ValueError('back\\\\slash')"),
        ("postgresql://me:hunt%40er@db/x", "password 'hunt@er' or hunt%40er is wrong"),
        ("postgresql://me:hunter@db/x", "postgresql://me:hunter@db/x, hunter"),
    ],
)
def test_a_secret_is_hidden_in_each_of_its_forms(secret: str, text: str) -> None:
    hidden = knowing(api_key=secret)(text)
    assert "*****" in hidden
    assert not any(part in hidden for part in ("cret", "ted", "u00f6", "slash", "hunt"))


def test_a_secret_that_holds_another_is_hidden_whole() -> None:
    mask = knowing(api_key="abcd", sources={"a": {"url": "abcdefgh"}, "b": {"url": "xxabcd"}})
    assert mask("abcdefgh xxabcd abcd") == "********** ********** **********"


def test_a_file_that_stands_for_a_secret_is_read_and_read_again(tmp_path: Path) -> None:
    key, url, notes = (tmp_path / name for name in ("key", "url", "notes"))
    notes.write_text("plain words")
    mask = knowing(api_key_file=key, notes_file=notes, sources={"a": {"url_file": url}})
    assert mask("first-key plain words") == "first-key plain words"
    key.write_text("first-key\n")
    url.write_text("sqlite:///hidden.db")
    assert mask("first-key sqlite:///hidden.db") == "********** **********"
    assert mask("plain words") == "plain words"
    key.write_text("the-second-key")
    assert mask("the-second-key") == "**********"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_hides_by_value_and_by_name_at_any_depth_and_in_tracebacks(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = make_logger(mask=knowing(api_key='va"lue'), log_format=log_format)
    try:
        raise ValueError('it was va"lue')
    except ValueError:
        headers = {"Authorization": "Bearer named", "more": [{"password": "named"}]}
        log.exception('sent va"lue', headers=headers, **{"api_token": "named"})
    told = capsys.readouterr().err
    assert "ValueError" in told
    assert not any(secret in told for secret in ("named", 'va"lue', 'va\\"lue'))


def test_a_value_without_json_form_is_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    make_logger(mask=Mask(), log_format="json").info("x", path=Path("/a"), sizes={1: {2, 3}})
    line = json.loads(capsys.readouterr().err)
    assert (line["path"], sorted(line["sizes"]["1"])) == ("/a", [2, 3])
