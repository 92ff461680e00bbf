"""The registry file: what it says, and every way in which it can be wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from catalogzero.config.registry import load_registry
from catalogzero.config.settings import RuntimeSettings, merged_settings
from catalogzero.errors import ConfigError
from catalogzero.runtime.launch import Flags, make_handler

GOOD = """\
scheduler: none
handlers:
  - handler_id: a
    module_path: tests.core.crew
    class_name: Crew
    port: 5001
    sleep_after_s: 7
    config:
      desk: window
  - handler_id: b
    entry: acme-processor
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "handler_registry.yaml"
    path.write_text(text)
    return path


def test_a_good_file_says_what_it_says(tmp_path: Path) -> None:
    registry = load_registry(written(tmp_path, GOOD))
    first, second = registry.handlers
    assert registry.scheduler == "none"
    assert (first.runtime, first.config) == ({"port": 5001, "sleep_after_s": 7}, {"desk": "window"})
    assert (second.entry, second.module_path) == ("acme-processor", None)
    assert first.where("config.desk").endswith("handler_registry.yaml:9: config.desk")
    assert first.where("port").endswith("handler_registry.yaml:6: port")


def test_without_a_scheduler_key_it_is_the_usual_one(tmp_path: Path) -> None:
    text = GOOD.replace("scheduler: none\n", "")
    assert load_registry(written(tmp_path, text)).scheduler == "tcp://127.0.0.1:4242"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ":1: a mapping with `handlers:`"),
        ("- a\n", ":1: a mapping with `handlers:`"),
        ("a: [\n", ":2: not YAML"),
        ("scheduler: none\n", ":1: `handlers:` is missing"),
        ("handlers: 5\n", ":1: `handlers` is a list"),
        ("handlers: [5]\n", ":1: a handler is a mapping"),
        ("colour: red\nhandlers: []\n", ":1: unknown key `colour`"),
        ("handlers:\n  - entry: x\n", ":2: `handler_id` is missing"),
        ("handlers:\n  - handler_id: 7\n    entry: x\n", ":2: `handler_id` is a text"),
        ("handlers:\n  - handler_id: a\n", ":2: `entry`, or `module_path`"),
        ("scheduler: [1]\nhandlers: []\n", ":1: `scheduler`: write it as tcp://"),
        ("handlers: []\nscheduler: localhost:4242\n", ":2: `scheduler`: write it as tcp://"),
        (
            "handlers:\n  - handler_id: a\n    entry: x\n    port: 5\n    port: 6\n",
            ":5: `port` stands in line 4 already",
        ),
        (
            "handlers: [{handler_id: a, entry: x, port: 5},\n  {handler_id: b, entry: x, port: 5}]",
            ":2: port 5 stands in line 1 already",
        ),
        (
            "handlers:\n  - handler_id: a\n    entry: x\n    prot: 5\n",
            ":4: unknown key `prot`; did",
        ),
        (
            "handlers:\n  - handler_id: a\n    entry: x\n    config: 5\n",
            ":4: `config` is a mapping",
        ),
    ],
)
def test_each_fault_of_a_file_is_reported_with_its_line(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_registry(path)
    assert f"{path}{fault}" in str(caught.value)


SECTION = "handlers:\n  - handler_id: a\n    entry: x\n"
NINE = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
MERGES = "".join(f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("~\n", ":1: a mapping with `handlers:`"),
        ("true\n", ":1: a mapping with `handlers:`"),
        (SECTION + "    ~: 1\n", ":4: the key `~` is read as nothing: put it in quotes"),
        (SECTION + "    on: 1\n", ":4: the key `on` is read as true or false"),
        (SECTION + "    0x10: 1\n", ":4: the key `0x10` is read as a number"),
        (SECTION + "    2026-01-02: 1\n", ":4: the key `2026-01-02` is read as a date"),
        (SECTION + "    config: {null: 1}\n", ":4: the key `null` is read as nothing"),
        (
            SECTION + "    config:\n      ? [b, c]\n      : 1\n",
            ":5: not YAML: found unhashable key",
        ),
        ("true: 1\nhandlers: []\n", ":1: the key `true` is read as true or false"),
        (SECTION + "    idle_after_s: 2026-99-99\n", ":4: not YAML: `2026-99-99` is no timestamp"),
        (SECTION + f"    port: {'9' * 5_000}\n", f":4: not YAML: `{'9' * 40}` is no int"),
        ("handlers:\n  - handler_id: a\n    entry: true\n", ":3: `entry` is a text"),
        (
            "handlers:\n  - handler_id: a\n    module_path: 5\n    class_name: A\n",
            ":3: `module_path`",
        ),
        (SECTION + "    config: !!python/name:os.system\n", ":4: not YAML: could not determine"),
        ("handlers: []\nx: \x07\n", ":2: not YAML: "),
        ("a0: &a0 x\n" + NINE + "handlers: *a9\n", ": aliases stand for too many values"),
        ("m0: &m0 {b: 1}\n" + MERGES + "handlers: []\n", ": aliases stand for too many values"),
        ("handlers: &a [*a]\n", ":1: nested more than 100 deep"),
        (SECTION + "    <<: &m {<<: *m}\n", ":4: nested more than 100 deep"),
        (
            "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3_000)),
            ": nested more than 100 deep",
        ),
        (SECTION + '    port: !!int ""\n', ":4: not YAML: `` is no int"),
        (SECTION + "    port: !!bool x\n", ":4: not YAML: `x` is no bool"),
        (SECTION + "    port: !!timestamp x\n", ":4: not YAML: `x` is no timestamp"),
        ("".join(f"k{n}: 1\n" for n in range(300)) + "handlers: [x]\n", "and 201 more"),
        ("handlers: " + "[" * 200_000, ":1: nested more than 100 deep"),
        ("handlers:\n  " + "- " * 200_000, ":2: nested more than 100 deep"),
        ("# " + "x" * (30 << 20) + "\nhandlers: []\n", ": more than 16 MiB"),
    ],
    ids=lambda value: value[:40].encode("unicode_escape").decode(),
)
def test_a_file_that_no_honest_client_writes_is_a_fault_too(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ConfigError) as told:
        load_registry(path)

    lines = str(told.value).split("\n")
    assert len(lines) <= 101
    assert any(fault in line for line in lines if line.startswith((str(path), "and ")))


def test_aliases_and_merged_keys_are_read_as_yaml_says(tmp_path: Path) -> None:
    text = """\
handlers:
  - &first {handler_id: a, entry: x, idle_after_s: 7, config: {desks: {7: window}}}
  - <<: *first
    handler_id: b
"""
    first, second = load_registry(written(tmp_path, text)).handlers

    assert (second.handler_id, second.runtime, second.config) == ("b", first.runtime, first.config)
    assert first.config == {"desks": {7: "window"}}
    assert second.where("idle_after_s").endswith(":3: idle_after_s")


def test_the_work_of_reading_a_file_grows_with_it(tmp_path: Path) -> None:
    section = GOOD.partition("handlers:\n")[2].partition("  - handler_id: b")[0]
    section = section.replace("    port: 5001\n", "")
    texts = [
        "handlers:\n" + "".join(section.replace(": a\n", f": a{n}\n") for n in range(count))
        for count in (40, 80)
    ]

    load_registry(written(tmp_path, texts[0]))  # whatever is done once is done

    small, large = (steps(partial(load_registry, written(tmp_path, text))) for text in texts)

    assert 0 < small < large < 2.1 * small


def steps(act: Callable[[], object]) -> int:
    """How many lines of Python it takes, in whatever module; a loop's each time."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("handler_id: b", "handler_id: a\n    prot: 1") + "colour: red\n"
    with pytest.raises(ConfigError) as caught:
        load_registry(written(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert [line.split(".yaml:")[1].split(":")[0] for line in lines] == ["13", "10", "11"]


ENTRY = "handlers:\n  - handler_id: a\n    module_path: tests.core.crew\n    class_name: Crew\n"


@pytest.mark.parametrize(
    ("text", "place", "fix"),
    [
        (None, " is not there", "name the file with --registry"),
        ("", ":1: a mapping", "`handlers:` is expected"),
        (b"\xff\xfe", ":1: not UTF-8", "save the file as UTF-8"),
        ("handlers:\n\t- handler_id: a\n", ":2: not YAML", "indent by spaces"),
        ("handlers: [\n", ":2: not YAML", "see this line and the one above"),
        ("a:\n  address: tcp://x:1\n", ":1: `handlers:`", "name your own with --registry"),
        ("handlers: 5\n", ":1: `handlers` is a list", "begin each handler with `- handler_id:`"),
        ("handlers: [5]\n", ":1: a handler is a mapping", "begin it with `- handler_id:`"),
        ("handlers:\n  - entry: x\n", ":2: `handler_id` is missing", "a name of your own"),
        (ENTRY + ENTRY[10:], ":5: handler_id 'a'", "in line 2 already: rename one"),
        (ENTRY + "    port: 1\n    port: 2\n", ":6: `port`", "in line 5 already: take one out"),
        (ENTRY + "    prot: 1\n", ":5: unknown key `prot`", "did you mean `port`?"),
        (ENTRY + "    config: 5\n", ":5: `config` is a mapping", "below it, as `name: value`"),
        ("scheduler: here\n" + ENTRY, ":1: `scheduler`", "write it as tcp://host:port"),
        (ENTRY + "    port: 99999\n", ":5: port: ", "less than or equal to 65535 (it is '99999')"),
        (ENTRY + "    config: {dask: 1}\n", ":5: config.dask", "did you mean `desk`?"),
        (ENTRY.replace("Crew", "Crow"), ":4: class_name", "Crow is no handler class; there"),
    ],
    ids=lambda value: None if value is None else repr(value)[:40],
)
def test_a_broken_file_is_reported_with_file_line_and_fix(
    tmp_path: Path, text: str | bytes | None, place: str, fix: str
) -> None:
    path = tmp_path / "handler_registry.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ConfigError) as told:
        make_handler("a", registry=path)

    first = str(told.value).splitlines()[0]
    assert first.startswith(f"{path}{place}")
    assert fix in first


def test_a_schedulezero_servers_own_file_is_recognised(tmp_path: Path) -> None:
    text = "discord:\n  address: tcp://127.0.0.1:5001\n  methods: [post]\n"
    with pytest.raises(ConfigError, match=r"ScheduleZero server writes.*--registry"):
        load_registry(written(tmp_path, text))


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml is not there: .*--registry"):
        load_registry(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_registry(tmp_path / "binary.yaml")


def test_settings_at_fault_are_reported_with_file_line_and_key_all_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("port: 5001", "port: high").replace("desk: window", "dask: window")
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        make_handler("a", registry=path)
    told = str(caught.value)
    assert f"{path}:6: port" in told
    assert f"{path}:9: config.dask: there is no such key; did you mean `desk`?" in told


def test_a_fault_is_placed_where_the_setting_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "{desk: window, port: 7, wanted: perhaps}"
    text = GOOD.replace("config:\n      desk: window", f"config: {config}")
    path = written(tmp_path, text.replace("port: 5001", "port: high"))
    monkeypatch.setenv("CATALOGZERO_IDLE_AFTER_S", "soon")
    with pytest.raises(ConfigError) as caught:
        make_handler("a", registry=path, flags=Flags(runtime={"max_queued_jobs": "many"}))
    assert [line.partition(": Input")[0] for line in str(caught.value).splitlines()] == [
        f"{path}:6: port",
        "environment: CATALOGZERO_IDLE_AFTER_S",
        "command line: max_queued_jobs",
        f"{path}:8: config.wanted",
        f"{path}:8: config.port: there is no such key",
    ]


def test_a_missing_setting_of_an_absent_config_is_placed_at_its_handler(tmp_path: Path) -> None:
    (tmp_path / "keyed.py").write_text(
        "from catalogzero import Handler, HandlerSettings\n"
        "class KeyedSettings(HandlerSettings):\n    api_key: str\n"
        "class Keyed(Handler):\n    settings_model = KeyedSettings\n"
    )
    text = "handlers:\n  - handler_id: a\n    module_path: keyed\n    class_name: Keyed\n"
    path = written(tmp_path, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(ConfigError, match=f"{path}:2: config.api_key: Field required"):
            make_handler("a", registry=path)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def (\n", r"SyntaxError: .*odd_module.py, line 1"),
        ("\nraise RuntimeError('no disk')\n", r"RuntimeError: no disk, at .*odd_module.py:2"),
        ("import nowhere_at_all\n", "No module named 'nowhere_at_all'"),
        (
            "from catalogzero import Handler\nclass Odd(Handler):\n"
            "    def __init__(self):\n        raise OSError('no pool')\n",
            r"Odd cannot be made: OSError: no pool, at .*odd_module.py:4",
        ),
    ],
)
def test_a_module_or_constructor_that_raises_is_reported_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    (tmp_path / "odd_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_module", raising=False)
    section = "handlers:\n- {handler_id: a, module_path: odd_module, class_name: Odd}\n"
    path = written(tmp_path, section)
    with pytest.raises(ConfigError, match=f"{path}:2: .*{text}"):
        make_handler("a", registry=path)


def test_flags_beat_environment_beat_credentials_beat_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = {"idle_after_s": 1, "sleep_after_s": 1, "port": 1, "max_queued_jobs": 1}
    (tmp_path / "catalogzero_sleep_after_s").write_text("2")
    (tmp_path / "catalogzero_port").write_text("2")
    (tmp_path / "catalogzero_max_queued_jobs").write_text("2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("CATALOGZERO_PORT", "3")
    monkeypatch.setenv("CATALOGZERO_MAX_QUEUED_JOBS", "3")
    merged = merged_settings(RuntimeSettings, file=file, flags={"max_queued_jobs": 4})
    found = RuntimeSettings(**merged)
    assert (found.idle_after_s, found.sleep_after_s) == (1, 2)
    assert (found.port, found.max_queued_jobs) == (3, 4)


def test_a_handler_of_the_file_gets_its_name_and_settings(tmp_path: Path) -> None:
    flags = Flags(config={"desk": "door"}, runtime={"port": 0})
    handler = make_handler("a", registry=written(tmp_path, GOOD), flags=flags)
    assert (handler.handler_id, handler.runtime.port) == ("a", 0)
    assert handler.runtime.sleep_after_s == 7
    assert handler.settings.model_dump()["desk"] == "door"
    assert not handler.runtime.registers


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 101, "ä"])
def test_a_handler_id_that_is_no_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, GOOD.replace("handler_id: a", f"handler_id: '{name}'"))
    with pytest.raises(ConfigError):
        make_handler(name or "a", registry=path)
