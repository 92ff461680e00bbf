"""The child's end of the worker: `python -m catalogzero.runtime.worker_child`.

It reads its spec and then calls from standard input, one JSON object a line, runs them on an
instance of the handler's class, and writes what it has to say to what was standard output
(prints of an author's code go to standard error). It ends when its input ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import threading
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from pydantic import SecretStr

from catalogzero.config.logs import forward_logging, run_ids
from catalogzero.config.settings import RuntimeSettings
from catalogzero.config.state_folder import keep_private
from catalogzero.errors import (
    BadCallError,
    CatalogZeroError,
    RunError,
    TooLargeError,
    failure_of,
    text_of,
    type_of,
)
from catalogzero.runtime.handler import Handler, handler_class
from catalogzero.runtime.methods import call_plain
from catalogzero.runtime.worker import MAX_LINE_BYTES
from catalogzero.wire.messages import encode_json, utf8

END_GRACE_S = 2.0
PR_SET_PDEATHSIG = 1

current_call: ContextVar[int] = ContextVar("current_call")


def spec_of(handler: Handler) -> dict[str, Any]:
    """What a child needs to build the same handler: the first line of its input."""
    cls = type(handler)
    module = sys.modules[cls.__module__]
    args, kwargs = handler._made_with
    return {
        "module": cls.__module__,
        "file": getattr(module, "__file__", None),
        "qualname": cls.__qualname__,
        "args": _revealed(list(args)),
        "kwargs": _revealed(kwargs),
        "runtime": handler.runtime.model_dump(mode="json"),
        "handler_id": handler.handler_id,
        "sys_path": sys.path,
        "parent_pid": os.getpid(),
    }


def _revealed(value: Any) -> Any:
    """The same arguments with secrets in clear: they go over a pipe to our own child only."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _revealed(item) for key, item in value.items()}
    return [_revealed(item) for item in value] if isinstance(value, list | tuple) else value


class Channel:
    """Writes lines to the parent, from any thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._turn = threading.Lock()

    def send(self, line: dict[str, Any]) -> None:
        """One line; a parent that is gone ends this process soon anyway.

        Raises:
            TypeError: It has no JSON form.
            TooLargeError: It is longer than the parent reads.
        """
        data = encode_json(line) + b"\n"
        if len(data) > MAX_LINE_BYTES:
            raise TooLargeError(f"{len(data)} bytes, the limit is {MAX_LINE_BYTES}: return less")
        with self._turn, suppress(BrokenPipeError, ValueError):
            self._out.write(data)
            self._out.flush()

    def progress(self, fields: dict[str, Any]) -> None:
        """Progress of the call that this thread or task runs."""
        self.send({"id": current_call.get(), "progress": fields})


class Child:
    """Runs calls on one instance until the input ends.

    Args:
        handler: The instance.
        channel: The way to the parent.
        dedicated: For one quiet run only; the class's own work is the other child's.
    """

    def __init__(self, handler: Handler, channel: Channel, *, dedicated: bool) -> None:
        self._handler = handler
        self._channel = channel
        self._dedicated = dedicated

    async def serve(self, lines: asyncio.StreamReader) -> None:
        """Take calls until end of input; then end, whatever still runs."""
        background = asyncio.create_task(self._background())
        tasks = {background}
        while line := await lines.readline():
            task = asyncio.create_task(self._answer(orjson.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        background.cancel()
        await asyncio.wait(tasks, timeout=END_GRACE_S)

    async def _background(self) -> None:
        """The class's own work; its end by a fault ends the child, and the parent hears why."""
        if self._dedicated:
            return
        try:
            await self._handler._worker_main()
        except Exception:
            self._handler.log.exception("worker_main_failed")
            os._exit(70)

    async def _answer(self, call: dict[str, Any]) -> None:
        current_call.set(call["id"])
        run_ids.set(call["run"])
        try:
            result = await self._run(call["method"], call["params"])
            self._channel.send({"id": call["id"], "result": result})
        except BaseException as error:  # noqa: BLE001 - an author's: told to the parent
            self._channel.send({"id": call["id"], **_shown(self._handler, error)})

    async def _run(self, name: str, params: dict[str, Any]) -> Any:
        handler = self._handler
        method = handler.callable_methods().get(name)
        kwargs = method.bind(params) if method else params
        function = partial(method.function, handler) if method else getattr(handler, name)
        if method.is_async if method else inspect.iscoroutinefunction(function):
            return await function(**kwargs)
        result = await asyncio.to_thread(call_plain, function, **kwargs)
        return await result if inspect.isawaitable(result) else result


def main() -> None:
    """Be the worker of the handler that started this process."""
    keep_private()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    asyncio.run(_serve(Channel(out)))
    os._exit(0)  # a job's thread cannot be stopped, and would hold up a plain exit


async def _serve(channel: Channel) -> None:
    lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    spec = orjson.loads(await lines.readline())
    _die_with(spec["parent_pid"])
    sys.path[:] = spec["sys_path"]
    handler = _build(spec, channel)
    await Child(handler, channel, dedicated=spec.get("dedicated", False)).serve(lines)


def _build(spec: dict[str, Any], channel: Channel) -> Handler:
    """The same class, from the same arguments, with the same runtime settings."""
    found: Any = _module(spec["module"], spec["file"])
    for part in spec["qualname"].split("."):
        found = getattr(found, part)
    cls = handler_class(found)
    assert cls is not None  # noqa: S101 - the parent is an instance of it
    handler = cls(*spec["args"], **spec["kwargs"])
    runtime = RuntimeSettings(**spec["runtime"])
    handler._attach(runtime=runtime, handler_id=spec["handler_id"])
    handler.in_worker, handler._progress = True, channel.progress
    handler._report = lambda status: channel.send({"status": status})
    forward_logging(handler.log)
    return handler


def _module(name: str, file: str | None) -> Any:
    """The module by name, else by its file: a test's module or a script has no other way."""
    if name != "__main__":
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            if file is None:
                raise
    name = "__worker_main__" if name == "__main__" else name
    spec = importlib.util.spec_from_file_location(name, Path(file or ""))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} cannot be imported by the worker")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _shown(handler: Handler, error: BaseException) -> dict[str, Any]:
    """An error as a line: those raised on purpose keep their code; details that are no JSON go."""
    details = error.details if isinstance(error, CatalogZeroError) else None
    try:
        encode_json(details)
    except TypeError:
        details = None
    text, code = text_of(error), failure_of(error).code
    if isinstance(error, RunError | BadCallError):
        text, code = error.message, error.code
    fields = {"error": utf8(handler.mask(text)), "code": code}
    return {**fields, "details": details, "type": type_of(error)}


def _die_with(parent_pid: int) -> None:
    """On Linux the kernel kills this process when its parent dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(0)


if __name__ == "__main__":
    main()
