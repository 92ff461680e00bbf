"""What a handler answers to a call: shapes, codes, binding, limits of size."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import zmq
from catalogzero import FailedError, Handler, HandlerSettings, RunError, internal, job
from catalogzero.testing import serving
from pydantic import BaseModel, SecretStr

from tests.core.support import Bench, RawPeer


class Flight(BaseModel):
    """A structured parameter."""

    number: str
    seats: int = 1


class LockedSettings(HandlerSettings):
    """Settings with a secret."""

    api_key: SecretStr = SecretStr("s3cret-value")


class Counter(Handler):
    """Methods with every kind of parameter and result."""

    settings_model = LockedSettings

    async def book(self, flight: Flight, at: datetime, tags: list[str] | None = None) -> Any:
        """Takes models and times."""
        return {"number": flight.number, "at": at, "tags": tags}

    async def open_ended(self, first: int, **others: int) -> Any:
        return {"first": first, "others": others}

    async def keyword_only(self, *, from_: int = 1, model_config: int = 2) -> list[int]:
        return [from_, model_config]

    def whole(self, params):  # type: ignore[no-untyped-def]  # as ScheduleZero's handlers are written
        return dict(params)

    async def numbers(self) -> list[Any]:
        return [float("nan"), float("inf"), Path("/data"), {1}]

    async def unsendable(self) -> object:
        return object()

    async def big(self, size: int) -> str:
        return "x" * size

    async def fails_at_length(self, size: int) -> None:
        raise FailedError("too much" * size, details={"much": "x" * size})

    async def refuses(self) -> dict[str, Any]:
        return {"success": False, "error": "no such account", "account": 7}

    async def leaks(self) -> None:
        raise ValueError("key is s3cret-value")

    async def gives_up(self) -> None:
        raise FailedError("upload refused", details={"status": 422})

    async def exits(self) -> None:
        raise SystemExit(3)

    async def flat_unicode(self) -> None:
        raise ValueError("Größe\n\tfehlt ☃")

    @internal
    async def kept(self) -> None:
        """Not for callers."""


class Extended(Counter):
    """Inherits and extends."""

    async def get_metrics(self) -> dict[str, Any]:
        return {**await super().get_metrics(), "shelf": 3}

    async def kept(self) -> None:  # callable again: the author said so by defining it
        return None


@pytest.mark.parametrize("request_id", ["r", 7, 0, -(2**63)])
async def test_a_call_with_request_id_gets_the_full_shape(request_id: str | int) -> None:
    async with serving(Bench()) as at, RawPeer(at.address) as peer:
        call = {"method": "echo", "params": {"value": [1]}, "request_id": request_id}
        reply, again = await peer.ask(call), await peer.ask(call)
        other = await peer.ask({**call, "request_id": str(request_id) + "0"})
        run = await peer.ask({"method": "get_run", "params": {"request_id": request_id}})

        assert reply == again
        assert run["run_id"] == reply["run_id"] != other["run_id"]
        assert reply.pop("duration_ms") >= 0
        assert reply.pop("run_id")
        assert reply == {"success": True, "request_id": request_id, "result": [1]}


@pytest.mark.parametrize(
    ("value", "flat"),
    [
        ({"a": 1}, {"success": True, "a": 1}),
        ([1], {"success": True, "result": [1]}),
        (None, {"success": True, "result": None}),
        ({"success": True, "b": 2}, {"success": True, "b": 2}),
    ],
)
async def test_a_call_without_request_id_gets_the_flat_shape(value: Any, flat: Any) -> None:
    async with serving(Bench()) as at, RawPeer(at.address) as peer:
        assert await peer.ask({"method": "echo", "params": {"value": value}}) == flat


async def test_req_and_dealer_peers_both_get_their_envelope_back() -> None:
    async with serving(Bench()) as at, RawPeer(at.address, zmq.REQ) as req:
        assert (await req.ask({"method": "echo"}))["success"] is True
        async with RawPeer(at.address) as dealer:
            await dealer.send(b"hop", b"", b'{"method":"echo"}')
            frames = await dealer.socket.recv_multipart()
            assert frames[:-1] == [b"hop", b""]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", "bad_request"),
        (b"nonsense", "bad_request"),
        (b"[]", "bad_request"),
        (b"null", "bad_request"),
        (b"{}", "bad_request"),
        (b'{"method": 5}', "bad_request"),
        (b'{"method": ""}', "bad_request"),
        (b'{"method": "echo", "params": []}', "bad_request"),
        (b'{"method": "echo", "request_id": 1.5}', "bad_request"),
        (b'{"method": "echo", "request_id": true}', "bad_request"),
        (b'{"method": "echo", "request_id": ""}', "bad_request"),
        (b'{"method": "echo", "request_id": "' + b"i" * 201 + b'"}', "bad_request"),
        (b'{"method": "echo", "timeout_s": "1"}', "bad_request"),
        (b'{"method": "echo", "timeout_s": -1}', "bad_request"),
        (b'{"method": "echo", "timeout_s": true}', "bad_request"),
        (b'{"method": "echo", "attempts_left": -1}', "bad_request"),
        (b'{"method": "echo", "attempts_left": true}', "bad_request"),
        (b'{"method": "echo", "start_by": 1}', "bad_request"),
        (b'{"method": "echo", "start_by": {"boot_id": "x"}}', "bad_request"),
        (b'{"method": "echo", "params": {"value": NaN}}', "bad_request"),
        (
            b'{"method": "echo", "params": {"value": ' + b"[" * 300 + b"]" * 300 + b"}}",
            "bad_request",
        ),
        (b"[" * 100_000, "bad_request"),
        (b'{"method": "nope"}', "unknown_method"),
        (b'{"method": "__init__"}', "unknown_method"),
        (b'{"method": "_warm_cache"}', "unknown_method"),
        (b'{"method": "echo", "params": {"nope": 1}}', "bad_params"),
        (b'{"method": "get_run", "params": {"run_id": "nope"}}', "unknown_run"),
        (b'{"method": "cancel", "params": {}}', "bad_params"),
        (b'{"method": "list_runs", "params": {"limit": "many"}}', "bad_params"),
    ],
)
async def test_a_wrong_call_is_reported_what_is_wrong(frame: bytes, code: str) -> None:
    async with serving(Bench()) as at, RawPeer(at.address) as peer:
        reply = await peer.ask(frame)

        assert (reply["success"], reply["code"], reply["retryable"]) == (False, code, False)
        assert reply["error"]


async def test_parameters_validate_against_their_hints() -> None:
    call = {
        "method": "book",
        "params": {"flight": {"number": "ZX 1"}, "at": "2026-02-03T04:05:06+01:00"},
        "request_id": "r",
    }
    async with serving(Counter()) as at, RawPeer(at.address) as peer:
        reply = await peer.ask(call)
        assert reply["result"]["at"] == "2026-02-03T04:05:06+01:00"


async def test_every_bad_field_is_named() -> None:
    params = {"flight": {"seats": "many"}, "at": "yesterday", "colour": 1}
    async with serving(Counter()) as at, RawPeer(at.address) as peer:
        reply = await peer.ask({"method": "book", "params": params, "request_id": "r"})
        assert {fault["field"] for fault in reply["details"]} == {
            "flight.number",
            "flight.seats",
            "at",
            "colour",
        }


async def test_a_call_with_thousands_of_bad_fields_gets_a_short_answer() -> None:
    params = {f"field{number}" + "x" * 50: 0 for number in range(10_000)}
    async with serving(Bench()) as at, RawPeer(at.address) as peer:
        reply = await peer.ask({"method": "echo", "params": params, "request_id": "r"})
        assert reply["code"] == "bad_params"
        assert len(json.dumps(reply)) < 50_000


async def test_keyword_parameters_of_any_name_bind() -> None:
    async with serving(Counter()) as at:
        call = at.client.call
        assert await call("keyword_only", {"from_": 5, "model_config": 6}) == [5, 6]
        assert await call("keyword_only") == [1, 2]
        assert await call("open_ended", {"first": 1, "x": 2}) == {"first": 1, "others": {"x": 2}}
        assert await call("whole", {"anything": [1]}) == {"anything": [1]}


async def test_results_become_json_or_an_error_that_says_why() -> None:
    async with serving(Counter()) as at:
        assert await at.client.call("numbers") == [None, None, "/data", [1]]
        with pytest.raises(FailedError, match="SystemExit: 3"):
            await at.client.call("exits")
        with pytest.raises(FailedError, match="returned no JSON"):
            await at.client.call("unsendable")


async def test_a_reply_over_the_limit_is_too_large() -> None:
    async with serving(Counter(), max_message_bytes=2_000) as at:
        assert len(await at.client.call("big", {"size": 1_500})) == 1_500
        reply = await at.client.request("big", {"size": 3_000})
        assert reply.code == "too_large"
        assert "2000" in reply.error


async def test_a_frame_over_the_limit_closes_that_connection_only() -> None:
    async with serving(Bench(), max_message_bytes=2_000) as at, RawPeer(at.address) as peer:
        await peer.send(b"x" * 3_000)
        assert await at.client.call("echo", {"value": 1}) == 1


async def test_a_dict_with_success_false_is_a_failure_in_both_shapes() -> None:
    async with serving(Counter()) as at, RawPeer(at.address) as peer:
        full = await at.client.request("refuses")
        assert (full.code, full.error) == ("failed", "no such account")
        assert full.details["account"] == 7
        flat = await peer.ask({"method": "refuses"})
        assert (flat["success"], flat["error"]) == (False, "no such account")


async def test_an_error_text_hides_secrets_and_is_one_line_of_ascii_when_flat() -> None:
    async with serving(Counter()) as at, RawPeer(at.address) as peer:
        assert (await at.client.request("leaks")).error == "ValueError: key is **********"
        flat = await peer.ask({"method": "flat_unicode"})
        assert flat["error"] == r"ValueError: Gr\xf6\xdfe fehlt \u2603"


async def test_an_error_raised_on_purpose_keeps_its_details() -> None:
    async with serving(Counter()) as at:
        with pytest.raises(RunError, match="upload refused") as caught:
            await at.client.call("gives_up")
        assert caught.value.details == {"status": 422}


async def test_an_author_can_extend_metrics_and_nothing_inherited_leaks() -> None:
    async with serving(Extended()) as at:
        metrics = await at.client.call("get_metrics")
        assert metrics["shelf"] == 3
        assert metrics["cpu_percent"] >= 0
        assert (await at.client.call("report_metrics"))["shelf"] == 3
        described = await at.client.call("describe")
        names = {method["name"] for method in described["methods"]}
        assert {"book", "kept", "whole"} <= names
        assert not names & {"report_progress", "report_status", "callable_methods", "state_dir"}
        assert described["settings"] == {"api_key": "**********"}


def test_a_control_method_cannot_be_hidden() -> None:
    with pytest.raises(TypeError, match="cancel"):

        class Bad(Handler):
            async def cancel(self) -> None:
                """Never called."""


def test_positional_only_parameters_are_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Slash\.half: .* first cannot be given so"):

        class Slash(Handler):
            async def half(self, first: int, /, second: int) -> int:
                return first + second


class Unread(Handler):
    """A hint that names nothing, and one that has no schema."""

    async def lost(self, value: NoSuchType) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Its hint cannot be read."""

    async def odd(self, value: set[Unread] | None = None) -> str:
        """Its hint has no JSON Schema."""
        return "odd"


async def test_hints_that_cannot_be_read_are_named_and_spoil_no_description() -> None:
    async with serving(Unread()) as at:
        with pytest.raises(FailedError, match=r"lost: its type hints .*'NoSuchType'"):
            await at.client.call("lost", {"value": 1})
        assert await at.client.call("odd") == "odd"
        methods = {m["name"]: m for m in (await at.client.call("describe"))["methods"]}
        assert methods["lost"]["params_schema"] == {"type": "object", "title": "lost"}


async def test_an_error_text_is_bounded_and_its_details_too() -> None:
    async with serving(Counter(), max_message_bytes=4_096) as at:
        long = await at.client.request("fails_at_length", {"size": 100_000})
        assert (long.code, long.details) == ("failed", None)
        assert long.error.startswith("too much")
        assert len(long.error) <= 10_000


async def test_a_run_is_asked_for_by_an_id() -> None:
    async with serving(Counter()) as at:
        for method in ("get_run", "cancel"):
            reply = await at.client.request(method)
            assert (reply.code, "run_id" in reply.error) == ("bad_params", True)
        unknown = await at.client.request("get_run", {"run_id": "x" * 100_000})
        assert len(unknown.error) < 300


async def test_ping_and_describe_carry_boot_id_uptime_and_window() -> None:
    async with serving(Bench(), dedupe_window_s=30) as at:
        ping = await at.client.ping()
        assert (ping["status"], ping["handler"], ping["message"]) == ("ok", "bench", "pong")
        describe = await at.client.call("describe")
        runs = await at.client.call("list_runs")
        assert ping["boot_id"] == describe["boot_id"] == runs["boot_id"]
        assert describe["uptime_s"] >= ping["uptime_s"] > 0
        assert ping["dedupe_window_s"] == 30


class Odd(Handler):
    """Metrics that cannot be sent."""

    async def get_metrics(self) -> dict[str, Any]:
        return {"odd": object()}

    @job(concurrency=1)
    async def one(self) -> None:
        """One at a time."""


async def test_a_control_method_that_returns_no_json_is_an_error_reply() -> None:
    async with serving(Odd()) as at:
        with pytest.raises(FailedError, match="JSON"):
            await at.client.call("get_metrics", timeout_s=5)
