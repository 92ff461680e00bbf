"""What a method of a ScheduleZero handler gets when it is called, and which can be called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, TypedDict

import pytest
from catalogzero import BadParamsError, UnknownMethodError, internal, job, resource
from catalogzero.compat import ZMQHandlerBase
from catalogzero.testing import serving


class Order(TypedDict):
    """A hint that a dict satisfies."""

    number: int


class Shelf:
    """A mixin: its public methods count too."""

    def shelve(self, params):  # type: ignore[no-untyped-def]
        return {"shelved": params}


class Counter(Shelf, ZMQHandlerBase):
    """Methods of every shape that ScheduleZero can call."""

    def bare(self, params):  # type: ignore[no-untyped-def]
        return {"got": params}

    def hinted(self, params: dict[str, Any]) -> Any:
        return {"got": params}

    def misleading(self, params: str) -> Any:
        return {"got": params}

    def optional(self, params: Optional[dict[str, Any]] = None) -> Any:  # noqa: UP045 - as written there
        return {"got": params}

    def other_name(self, data):  # type: ignore[no-untyped-def]
        return {"got": data}

    def typed(self, order: Order) -> Any:
        return {"got": order}

    def mapping(self, given: Mapping[str, Any], verbose: bool = False) -> Any:
        return {"got": given}

    def anything(self, *args: Any) -> Any:
        return {"got": args[0]}

    def unknown_hint(self, params: NowhereDefined) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return {"got": params}

    @staticmethod
    def still(params):  # type: ignore[no-untyped-def]
        return {"got": params}

    @classmethod
    def classy(cls, params):  # type: ignore[no-untyped-def]
        return {"got": params}

    def nothing(self) -> str:
        return "nothing"

    def named(self, message: str = "none", times: int = 1) -> str:
        return f"{message} {times}"

    async def needed(self, handler_id: str) -> str:
        return handler_id

    def both(self, data_source: str, params: dict[str, Any]) -> Any:
        return [data_source, params]

    def spoils(self, params):  # type: ignore[no-untyped-def]
        params["inner"].clear()
        return {"popped": params.pop("x")}

    @internal
    def hidden(self, params):  # type: ignore[no-untyped-def]
        return params

    def _private(self, params):  # type: ignore[no-untyped-def]
        return params


WHOLE = [
    *("bare", "hinted", "misleading", "optional", "other_name", "typed", "mapping", "anything"),
    *("unknown_hint", "still", "classy"),
]


@pytest.mark.parametrize("method", WHOLE)
@pytest.mark.parametrize("params", [{}, {"a": 1, "number": [2]}], ids=["empty", "full"])
async def test_one_parameter_gets_the_whole_dict(method: str, params: dict[str, Any]) -> None:
    async with serving(Counter()) as at:
        assert await at.client.call(method, params) == {"got": params}


async def test_a_mixin_s_method_can_be_called() -> None:
    async with serving(Counter()) as at:
        assert await at.client.call("shelve", {"k": 1}) == {"shelved": {"k": 1}}


async def test_a_method_without_parameters_gets_none_whatever_is_sent() -> None:
    async with serving(Counter()) as at:
        assert await at.client.call("nothing", {"some": "thing"}) == "nothing"


async def test_hints_that_are_no_dict_take_their_parameters_by_name() -> None:
    async with serving(Counter()) as at:
        assert await at.client.call("named", {}) == "none 1"
        assert await at.client.call("named", {"message": "m", "times": "3"}) == "m 3"
        assert await at.client.call("needed", {"handler_id": "discord"}) == "discord"
        assert await at.client.call("both", {"data_source": "d", "params": {}}) == ["d", {}]


async def test_a_dict_of_other_names_goes_to_the_first_parameter_as_there() -> None:
    async with serving(Counter()) as at:
        assert await at.client.call("named", {"other": 1}) == "{'other': 1} 1"


@pytest.mark.parametrize(
    ("method", "params"),
    [("named", {"times": "x"}), ("needed", {}), ("both", {"data_source": "d"})],
)
async def test_named_parameters_are_validated(method: str, params: dict[str, Any]) -> None:
    async with serving(Counter()) as at:
        with pytest.raises(BadParamsError):
            await at.client.call(method, params)


async def test_a_method_may_change_its_params_and_a_repeated_call_is_still_known() -> None:
    params = {"x": 1, "inner": {"y": 2}}
    async with serving(Counter()) as at:
        first = await at.client.request("spoils", params, request_id="one")
        again = await at.client.request("spoils", params, request_id="one")

        assert (first.result, again.run_id) == ({"popped": 1}, first.run_id)


MACHINERY = [
    *("run", "start", "stop", "handler_id", "methods", "logger", "author", "configure"),
    *("own_metrics", "report_progress", "_private", "_note", "hidden", "__init__", "state_dir"),
]


@pytest.mark.parametrize("name", MACHINERY)
async def test_nothing_else_can_be_called(name: str) -> None:
    async with serving(Counter()) as at:
        with pytest.raises(UnknownMethodError):
            await at.client.call(name, {})


class Hostile(ZMQHandlerBase):
    """Uses for itself every name that the runtime has on its own handlers."""

    NAMES = (
        *("log", "clock", "worker", "runtime", "settings", "mask", "in_worker", "client"),
        *("_resources", "_handler", "_vitals", "_report", "_progress", "_meter", "_service"),
    )

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            setattr(self, name, f"my {name}")

    def mine(self, params):  # type: ignore[no-untyped-def]
        return {name: getattr(self, name) for name in self.NAMES}

    def attach(self, params):  # type: ignore[no-untyped-def]
        return "attached"

    def report_status(self, params):  # type: ignore[no-untyped-def]
        return "reported"

    def cancel(self, params=None):  # type: ignore[no-untyped-def]
        return "cancelled"

    def sleep(self, params):  # type: ignore[no-untyped-def]
        return "slept"

    def status(self) -> str:
        return "fine"


async def test_an_author_s_names_are_their_own() -> None:
    async with serving(Hostile()) as at:
        assert set((await at.client.call("mine")).values()) == {f"my {n}" for n in Hostile.NAMES}
        for method, result in [("attach", "attached"), ("report_status", "reported")]:
            assert await at.client.call(method) == result


async def test_an_author_s_method_wins_over_a_control_method() -> None:
    async with serving(Hostile()) as at:
        assert await at.client.call("cancel") == "cancelled"
        assert await at.client.call("sleep") == "slept"
        assert (await at.client.call("get_metrics"))["status"] == "active"


class Modern(ZMQHandlerBase):
    """An old handler that takes up the new words."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.base = base
        self.opened = 0

    @job(isolate=True)
    def add_elsewhere(self, params):  # type: ignore[no-untyped-def]
        import os

        return {"sum": self.base + params["n"], "pid": os.getpid()}

    @resource
    async def pool(self):  # type: ignore[no-untyped-def]
        self.opened += 1
        yield self.opened

    async def use_pool(self) -> int:
        value: int = await self.pool()
        return value


async def test_a_job_may_run_in_the_worker_process() -> None:
    import os

    async with serving(Modern(40)) as at:
        answer = await at.client.call("add_elsewhere", {"n": 2})

        assert answer["sum"] == 42
        assert answer["pid"] != os.getpid()


async def test_a_resource_is_closed_by_sleep_and_opened_again() -> None:
    async with serving(Modern(0)) as at:
        assert await at.client.call("use_pool") == 1
        assert await at.client.call("use_pool") == 1
        await at.client.call("sleep")
        assert await at.client.call("use_pool") == 2


async def test_describe_reports_the_author_s_class_and_methods() -> None:
    async with serving(Counter(handler_id="desk-1")) as at:
        told = await at.client.call("describe")

        methods = {method["name"]: method for method in told["methods"]}
        assert told["class"].endswith(":Counter")
        assert methods["bare"]["params_schema"] == {"type": "object"}
        assert set(methods["named"]["params_schema"]["properties"]) == {"message", "times"}
