"""ping, get_metrics, logs and names of a ScheduleZero handler while it is served."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogzero import ConfigError
from catalogzero.compat import ZMQHandlerBase, setup_handler_logging
from catalogzero.testing import serving

from examples.quickstart.processes import free_ports
from tests.compat.cloud_handlers import AcmeHandler


class Bell(ZMQHandlerBase):
    """Answers ping and metrics in its own words, and blocks on demand."""

    def __init__(self) -> None:
        super().__init__(handler_id="bell")
        self.gate = threading.Event()

    def ping(self, params: dict[str, Any] | None = None) -> Any:
        return {**super().ping(params), "message": "dong", "mood": "good"}

    def get_metrics(self, params: dict[str, Any] | None = None) -> Any:
        return {"rung": 3, "status": "mine"}

    def ring(self, params: dict[str, Any]) -> Any:
        self.gate.wait(30)
        return {"rung": True}


class Plain(ZMQHandlerBase):
    """Writes no ping of its own."""

    def work(self, params: dict[str, Any]) -> Any:
        return params

    async def figures(self) -> Any:
        return await self.get_metrics()


async def test_ping_has_schedulezero_s_words_and_ours() -> None:
    async with serving(Plain(handler_id="plain")) as at:
        pong = (await at.client.request_plain("ping")).result

        assert pong["success"] is True
        assert {"handler_id", "handler", "message", "boot_id", "uptime_s"} <= set(pong)
        assert (pong["handler_id"], pong["message"]) == ("plain", "pong")


async def test_an_author_s_ping_and_metrics_win_and_are_answered_during_a_job() -> None:
    bell = Bell()
    async with serving(bell, max_concurrent_jobs=1) as at:
        ringing = [asyncio.create_task(at.client.call("ring", {})) for _ in range(2)]
        pong = await at.client.ping()
        metrics = await at.client.call("get_metrics")
        bell.gate.set()

        assert (pong["message"], pong["mood"]) == ("dong", "good")
        assert "boot_id" in pong
        assert (metrics["rung"], metrics["status"]) == (3, "mine")
        assert metrics["memory_mb"] > 0
        assert [answer["rung"] for answer in await asyncio.gather(*ringing)] == [True, True]


async def test_an_author_s_ping_never_wakes() -> None:
    bell = Bell()
    async with serving(bell) as at:
        await at.client.call("sleep")
        await at.client.ping()

        assert bell.sleep_mode


async def test_an_author_may_await_the_runtime_s_metrics() -> None:
    async with serving(Plain(handler_id="plain")) as at:
        figures = await at.client.call("figures")

        assert (figures["handler_id"], figures["in_flight"]) == ("plain", 1)


async def test_the_registered_names_are_the_author_s_and_ping() -> None:
    assert sorted(Plain().methods) == ["figures", "get_metrics", "ping", "work"]


def test_the_logger_takes_schedulezero_s_call(capsys: pytest.CaptureFixture[str]) -> None:
    handler = Plain(handler_id="plain")
    handler.logger.info("100% done", method="work", event="x", size=3)
    handler.logger.warning("second", "work")
    try:
        raise ValueError("deep")
    except ValueError:
        handler.logger.error("third", method="work", exc_info=True)  # noqa: G201 - as written there

    lines = capsys.readouterr().err
    assert '"event": "100% done"' in lines
    assert '"method": "work"' in lines
    assert '"size": 3' in lines
    assert '"event_": "x"' in lines
    assert "ValueError: deep" in lines


def test_frequent_events_are_counted() -> None:
    handler = Plain()
    for _ in range(250):
        handler.logger.trace_event("poll", method="work")

    assert handler.logger.get_event_counts() == {"poll": 250}
    handler.logger.reset_counters()
    assert handler.logger.get_event_counts() == {}


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("catalogzero.compat")
    before = root.handlers[:], root.level, ours.handlers[:], ours.level
    yield
    for handler in {*root.handlers, *ours.handlers} - {*before[0], *before[2]}:
        handler.close()
    root.handlers[:], ours.handlers[:] = before[0], before[2]
    root.setLevel(before[1])
    ours.setLevel(before[3])


@pytest.mark.usefixtures("_logging_restored")
def test_the_log_file_takes_the_handler_s_lines_and_those_of_python_s_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = setup_handler_logging("my/clock", log_level="INFO")
    handler = AcmeHandler("s3cr3t-key", "https://api.acme.example")
    handler.handler_id = "my/clock"
    handler.logger.info("struck", method="work", key="s3cr3t-key")
    handler.logger.debug("too low")
    logging.getLogger("author").info("from the author")

    text = (tmp_path / path).read_text()
    assert path.parts[:2] == ("logs", "handlers")
    assert ".." not in path.parts
    assert "[INFO] catalogzero.compat - [my/clock] struck" in text
    assert "from the author" in text
    assert "s3cr3t-key" not in text
    assert "too low" not in text


@pytest.mark.parametrize(
    "name",
    [
        *("_receive_loop", "_run_handler_server", "_handle_request", "_manage_registration"),
        "_discover_methods",
    ],
)
def test_what_the_runtime_replaces_cannot_be_overridden(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Old\.{name} cannot be overridden"):
        type("Old", (ZMQHandlerBase,), {name: lambda self: None})


@pytest.mark.parametrize("address", ["127.0.0.1:5000", "tcp://", "http://h:1", "tcp://h:99999"])
def test_an_address_of_another_form_is_refused_by_name(address: str) -> None:
    with pytest.raises(ConfigError, match=r"handler_address: .* write tcp://host:port"):
        Plain("plain", address)


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_concurent_jobs"):
        Plain(max_concurent_jobs=1)


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0"])
async def test_an_open_address_without_keys_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        async with serving(Plain("plain", address)):
            pass


async def test_an_id_of_any_letters_has_a_folder_of_its_own(tmp_path: Path) -> None:
    async with serving(Plain("../up & away/ü"), state_dir=tmp_path) as at:
        assert (await at.client.ping())["handler_id"] == "../up & away/ü"

    assert len(os.listdir(tmp_path)) == 1


def test_a_constructor_without_arguments_names_the_handler_after_its_class() -> None:
    handler = Plain()

    assert (handler.handler_id, handler.server_address) == ("plain", "tcp://127.0.0.1:4242")
    assert handler.handler_address is None


def test_names_may_be_set_after_the_constructor() -> None:
    (port,) = free_ports(1)
    handler = Plain("first", f"tcp://127.0.0.1:{port}", "tcp://127.0.0.1:4242")
    handler.handler_id = "second"
    handler.server_address = "tcp://127.0.0.1:4999"
    handler.handler_address = None

    assert (handler.handler_id, handler.server_address) == ("second", "tcp://127.0.0.1:4999")
    handler.start()
    assert handler.handler_address == f"tcp://127.0.0.1:{port}"
    handler.stop()


def test_the_environment_beats_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    code, environment = free_ports(2)
    monkeypatch.setenv("CATALOGZERO_PORT", str(environment))
    monkeypatch.setenv("CATALOGZERO_HANDLER_ID", "renamed")
    handler = Plain("plain", f"tcp://127.0.0.1:{code}", "none")

    handler.start()
    assert handler.handler_id == "renamed"
    assert handler.handler_address == f"tcp://127.0.0.1:{environment}"
    handler.stop()
