"""What every handler must do: the checks of `HandlerContract`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from catalogzero.entry.class_rules import CLASS_RULES, ClassRule
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler
from catalogzero.testing.checks import HANDLER_CHECKS, ContractCheck, check
from catalogzero.testing.handlers import serving
from catalogzero.testing.lab import (
    BLOCKED_S,
    Footprint,
    Heartbeat,
    Lab,
    UnfinishedError,
    demand,
    demand_keys,
)
from catalogzero.wire.messages import Reply

HEAVY_MODULES = (
    *("pandas", "numpy", "pyarrow", "polars", "sqlalchemy", "httpx", "aiohttp", "requests"),
    *("scipy", "sklearn", "torch", "matplotlib", "duckdb"),
)
PING_KEYS = ("status", "handler", "message", "boot_id", "uptime_s")
METRIC_KEYS = ("handler_id", "cpu_percent", "memory_mb", "uptime_seconds", "status", "timestamp")
DESCRIBE_KEYS = ("handler_id", "methods", "settings_schema", "sdk_version")
CYCLES = 6
LEAK_MB = 24.0
CANARY_FIELD = "no_such_parameter_of_any_method"

_on_handler = partial(check, HANDLER_CHECKS)


@dataclass
class Served:
    """What a handler answered while it was served for a moment."""

    answers: dict[str, Reply] = field(default_factory=dict)
    refusals: dict[str, Reply] = field(default_factory=dict)
    children_left: int = 0
    threads_left: list[str] = field(default_factory=list)
    longest_block_s: float = 0.0
    draining: list[Reply] = field(default_factory=list)


async def _serve_once(lab: Lab) -> Served:
    """Serve, ask everything that runs no job, and stop."""
    # Once beforehand with a plain handler, so that what the SDK itself keeps is there already.
    async with serving(Handler(), state_dir=lab.new_folder("warm")) as warm:
        await warm.client.request("get_metrics")
    seen, before, threads = Served(), Footprint.now(), set(threading.enumerate())
    async with serving(lab.make(), state_dir=lab.new_folder("served")) as served:
        with Heartbeat() as heartbeat:
            request = served.client.request
            for method in ("ping", "get_metrics", "describe"):
                seen.answers[method] = await request(method)
            for method in lab.handler_class.callable_methods():
                seen.refusals[method] = await request(method, {CANARY_FIELD: 1}, timeout_s=10.0)
            for method in ("drain", "get_metrics", "resume", "get_metrics"):
                seen.draining.append(await request(method, timeout_s=15.0))
    seen.longest_block_s = heartbeat.longest_s
    seen.children_left = Footprint.now().children - before.children
    left = set(threading.enumerate()) - threads
    seen.threads_left = [
        thread.name
        for thread in left
        # `asyncio_N` are the loop's own pool: it keeps them for its next use, and ends them.
        if thread.is_alive() and not thread.daemon and not thread.name.startswith("asyncio_")
    ]
    return seen


def what_it_answered(lab: Lab, *, mine: bool = False) -> Served:
    """What `_serve_once` saw, made once."""
    return lab.recording("serves_and_stops", _serve_once, mine=mine)


def demand_answer(lab: Lab, method: str, keys: tuple[str, ...]) -> None:
    """Fail the check unless a control method answered with these keys."""
    reply = what_it_answered(lab).answers[method]
    demand(reply.success, f"{method} failed: {reply.error}")
    demand_keys(reply.result, keys, f"the answer to {method}")


@_on_handler
def serves_and_stops(lab: Lab) -> None:
    """It starts, answers, stops, and leaves no thread and no child behind.

    A client starts and stops it through systemd: what is left behind piles up.

    Open what you need in @resource methods; end threads and children in _release_resources.
    """
    seen = what_it_answered(lab, mine=True)
    demand(not seen.threads_left, f"threads are left behind: {', '.join(seen.threads_left)}")
    left = seen.children_left
    demand(left <= 0, f"{left} child processes are left behind")


@_on_handler
def unknown_settings_are_refused(lab: Lab) -> None:
    """A setting that the class does not have is an error when it is made.

    A wrong key in the client's file must be reported, not ignored.

    Leave `extra` alone in model_config: HandlerSettings forbids unknown keys.
    """
    try:
        lab.make(**{CANARY_FIELD: 1})
    except ConfigError as error:
        demand(CANARY_FIELD in str(error), f"the error names no key: {error}")
    else:
        demand(False, f"the class can be made with {CANARY_FIELD}=1")


def _examine_class(rule: ClassRule, lab: Lab) -> None:
    """One of the demands that `catalog lint` makes, too."""
    found = list(rule.find(lab.handler_class))
    demand(not found, "; ".join(found[:5]))


for _rule in CLASS_RULES:
    HANDLER_CHECKS.append(
        ContractCheck(_rule.name, _rule.reason, _rule.fix, partial(_examine_class, _rule))
    )


@_on_handler
def ping_has_its_keys(lab: Lab) -> None:
    """`ping` answers with the agreed keys.

    Schedulers and conductors read these keys of a ping.

    Extend ping through super(): `return {**await super().ping(), …}`.
    """
    demand_answer(lab, "ping", PING_KEYS)


@_on_handler
def metrics_have_their_keys(lab: Lab) -> None:
    """`get_metrics` answers with the agreed keys.

    Dashboards and health reports read these keys of the metrics.

    Extend get_metrics through super(): `return {**await super().get_metrics(), …}`.
    """
    demand_answer(lab, "get_metrics", METRIC_KEYS)


@_on_handler
def describe_has_its_keys(lab: Lab) -> None:
    """`describe` answers with the agreed keys.

    Tools read methods and settings from describe.

    Extend describe through super(): `return {**await super().describe(), …}`.
    """
    demand_answer(lab, "describe", DESCRIBE_KEYS)


@_on_handler
def control_calls_block_nothing(lab: Lab) -> None:
    """No control method keeps the event loop from answering.

    A handler that blocks its loop looks dead to its scheduler.

    Do slow work in plain methods (they run in threads) or in @job(isolate=True) ones.
    """
    blocked_s = what_it_answered(lab).longest_block_s
    demand(blocked_s < BLOCKED_S, f"the event loop did not answer for {blocked_s:.1f} s")


@_on_handler
def drains_and_resumes(lab: Lab) -> None:
    """After `drain` it says so, and after `resume` it takes work again.

    A client drains a handler before it upgrades it, and looks whether it is drained.

    Leave `status` in get_metrics as super() gives it.
    """
    drain, during, resume, after = what_it_answered(lab).draining
    for name, reply in (("drain", drain), ("resume", resume)):
        demand(reply.success, f"{name} failed: {reply.error}")
    states = [status_in(reply) for reply in (during, after)]
    demand(states[0] == "draining", f"after drain its status is {states[0]!r}")
    demand(states[1] != "draining", "after resume its status is still 'draining'")


def status_in(metrics: Reply) -> str:
    """The status in an answer to `get_metrics`.

    Raises:
        UnfinishedError: It has no status; another check reports that.
    """
    if isinstance(metrics.result, Mapping) and "status" in metrics.result:
        return str(metrics.result["status"])
    raise UnfinishedError("metrics_have_their_keys")


@_on_handler
def unknown_params_are_refused(lab: Lab) -> None:
    """Every method refuses a parameter that it does not have.

    A misspelt parameter must be reported to the caller, not ignored.

    Name the parameters in the signature, with types; take no **kwargs and no bare `params`.
    """
    for method, reply in what_it_answered(lab).refusals.items():
        answer = reply.code or "with success"
        demand(answer == "bad_params", f"{method}({CANARY_FIELD}=1) was answered {answer}")


@_on_handler
def importing_it_is_light(lab: Lab) -> None:
    """Importing its module loads no HTTP, SQL or data library.

    A sleeping handler costs its client next to nothing: imports stay for ever.

    Import heavy libraries inside the methods that need them, such as process.
    """
    module = lab.handler_class.__module__
    # In an interpreter of its own: this one has loaded pytest and whatever tests import.
    code = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(  # noqa: S603 - this interpreter, with fixed code
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    fault = done.stderr[-300:]
    demand(not done.returncode, f"a fresh interpreter cannot import {module}: {fault}")
    loaded = set(json.loads(done.stdout)) & set(HEAVY_MODULES)
    demand(not loaded, f"importing {module} loads {', '.join(sorted(loaded))}")


@dataclass(frozen=True)
class Slept:
    """What a handler held after each of several sleeps."""

    figures: list[Footprint] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def _sleep_often(lab: Lab) -> Slept:
    """Wake and sleep, again and again."""
    seen = Slept()
    async with serving(lab.make(), state_dir=lab.new_folder("slept")) as served:
        for _ in range(CYCLES):
            for method in ("wake", "sleep"):
                reply = await served.client.request(method, timeout_s=15.0)
                if not reply.success:
                    seen.errors.append(f"{method}: {reply.error}")
            metrics = await served.client.request("get_metrics")
            figures = metrics.result if isinstance(metrics.result, Mapping) else {}
            seen.states.append(str(figures.get("status")))
            if figures.get("last_error"):
                seen.errors.append(str(figures["last_error"]))
            seen.figures.append(Footprint.now())
    return seen


def what_it_held(lab: Lab, *, mine: bool = False) -> Slept:
    """What `_sleep_often` saw, made once."""
    return lab.recording("sleeps_and_wakes", _sleep_often, mine=mine)


@_on_handler
def sleeps_and_wakes(lab: Lab) -> None:
    """It falls asleep and wakes on request, again and again, without an error.

    Sleep is how a handler gives its client the machine back.

    Let _release_resources, _ensure_resources and _warm_cache raise nothing.
    """
    seen = what_it_held(lab, mine=True)
    demand(not seen.errors, "; ".join(seen.errors[:3]))
    awake = [state for state in seen.states if state not in ("sleeping", "None")]
    demand(not awake, f"after sleep it is {', '.join(awake)}")


@_on_handler
def sleep_leaks_no_descriptors(lab: Lab) -> None:
    """Files and sockets do not grow from sleep to sleep.

    A handler runs for years: an open file a day ends it.

    Close in _release_resources what _ensure_resources opens; better, use @resource.
    """
    # The first round may load what stays; what grows from the second on is a leak.
    counts = [figures.descriptors for figures in what_it_held(lab).figures[1:]]
    demand(counts[-1] - counts[0] < CYCLES - 2, f"open descriptors after each sleep: {counts}")


@_on_handler
def sleep_leaks_no_threads(lab: Lab) -> None:
    """Threads do not grow from sleep to sleep.

    A handler runs for years: a thread a day ends it.

    End in _release_resources the threads that _ensure_resources starts.
    """
    counts = [figures.threads for figures in what_it_held(lab).figures[1:]]
    demand(counts[-1] - counts[0] < CYCLES - 2, f"threads after each sleep: {counts}")


@_on_handler
def sleep_leaks_no_memory(lab: Lab) -> None:
    """Memory does not grow from sleep to sleep.

    A sleeping handler must give its memory back.

    Drop in _release_resources what _ensure_resources and _warm_cache load.
    """
    sizes = [figures.memory_mb for figures in what_it_held(lab).figures[1:]]
    grown = sizes[-1] - sizes[0]
    demand(grown < LEAK_MB, f"MB after each sleep: {[round(size) for size in sizes]}")
