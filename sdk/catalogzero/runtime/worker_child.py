"""The child's end of the worker: `python -m catalogzero.runtime.worker_child`.

It reads its spec and then calls from standard input, one JSON object a line, runs them on an
instance of the handler's class, and writes what it has to say to what was standard output
(prints of an author's code go to standard error). It ends when its input ends. A debugger finds
the terminal, where there is one, as its standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import importlib.metadata
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

from catalogzero.config.logs import run_ids, take_logs
from catalogzero.config.settings import RuntimeSettings
from catalogzero.config.state_folder import keep_private
from catalogzero.errors import (
    BadCallError,
    CatalogZeroError,
    RunError,
    TooLargeError,
    failure_of,
    text_of,
    traceback_of,
    type_of,
)
from catalogzero.runtime.handler import Handler, entry_of, handler_class
from catalogzero.runtime.methods import awaited, call_plain
from catalogzero.runtime.worker import MAX_LINE_BYTES
from catalogzero.version import __version__
from catalogzero.wire.messages import JsonObject, encode_json, utf8

END_GRACE_S = 2.0
PR_SET_PDEATHSIG = 1

current_call: ContextVar[int] = ContextVar("current_call")
to_stop = set[int]()
"""The calls that were cancelled."""


def spec_of(handler: Handler) -> JsonObject:
    """What a child needs to build the same handler: the first line of its input."""
    cls = type(handler)
    module = sys.modules[cls.__module__]
    args, kwargs = handler._made_with
    return {
        "module": cls.__module__,
        "file": getattr(module, "__file__", None),
        "qualname": cls.__qualname__,
        "args": revealed(list(args)),
        "kwargs": revealed(kwargs),
        "runtime": runtime_of(handler),
        "handler_id": handler.handler_id,
        "sys_path": sys.path,
        "parent_pid": os.getpid(),
        "versions": versions_of(handler),
    }


def runtime_of(handler: Handler) -> JsonObject:
    """The runtime's settings; what nobody set is not set in the child either."""
    runtime = handler.runtime
    given = runtime.model_dump(mode="json", exclude_unset=True)
    secrets = {name: revealed(one) for name, one in runtime if isinstance(one, SecretStr)}
    return {**given, **secrets, "state_dir": str(runtime.state_dir)}


def versions_of(handler: Handler) -> dict[str, str]:
    """The releases that this process runs: catalogzero's, and that of the handler's entry."""
    name, version = entry_of(type(handler))
    entry = {name: version} if name and version else {}
    return {**entry, "catalogzero": __version__}


def replaced_by(versions: dict[str, str]) -> str:
    """What of the parent's releases is another one here; empty where all are the same."""
    changes = []
    for name, version in versions.items():
        try:
            here = __version__ if name == "catalogzero" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            here = "(removed)"
        if here != version:
            changes.append(f"{name} {version} was replaced by {here}")
    return ", ".join(changes)


def revealed(value: Any) -> Any:
    """The same arguments with secrets in clear: they go over a pipe to our own child only."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: revealed(item) for key, item in value.items()}
    return [revealed(item) for item in value] if isinstance(value, list | tuple) else value


class Channel:
    """Writes lines to the parent, from any thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._turn = threading.Lock()

    def send(self, line: JsonObject) -> None:
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

    def progress(self, fields: JsonObject) -> None:
        """Progress of the call that this thread or task runs."""
        self.send({"id": current_call.get(), "progress": fields})

    def stop_here(self, *, header: str | None = None) -> None:
        """A `breakpoint()` of a call: who shows its progress on the terminal makes room."""
        import pdb

        if current_call.get(None) is not None:
            self.progress({"at_breakpoint": True})
        if header:
            sys.stdout.write(f"{header}\n")
        pdb.Pdb().set_trace(sys._getframe(1))


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
            call = orjson.loads(line)
            if call.get("cancel"):
                to_stop.add(call["id"])
                continue
            task = asyncio.create_task(self._answer(call))
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

    async def _answer(self, call: JsonObject) -> None:
        current_call.set(call["id"])
        run_ids.set(call["run"])
        try:
            result = await self._run(call["method"], call["params"])
            self._channel.send({"id": call["id"], "result": result})
        except BaseException as error:  # noqa: BLE001 - an author's: sent to the parent
            self._channel.send({"id": call["id"], **error_line(self._handler, error)})

    async def _run(self, name: str, params: JsonObject) -> Any:
        handler = self._handler
        method = handler.callable_methods().get(name)
        kwargs = method.bind(params) if method else params
        function = partial(method.function, handler) if method else getattr(handler, name)
        if method.is_async if method else inspect.iscoroutinefunction(function):
            return await function(**kwargs)
        return await awaited(await asyncio.to_thread(call_plain, function, **kwargs))


def main() -> None:
    """Be the worker of the handler that started this process."""
    keep_private()
    # An author's `print`, or a library's, must not come between the lines of the protocol.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Nor may a `breakpoint()` read them: it has the terminal that the handler was started at.
    lines = os.fdopen(os.dup(0), "rb")
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        terminal = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(terminal, 0)
    os.close(terminal)
    # Ctrl-C reaches the whole process group, and is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve_calls(Channel(out), lines))
    # A job's thread cannot be stopped, and would hold up a plain exit.
    os._exit(0)


async def serve_calls(channel: Channel, pipe: BinaryIO) -> None:
    lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), pipe)
    spec = orjson.loads(await lines.readline())
    end_with(spec["parent_pid"], signal.SIGKILL)
    sys.path[:] = spec["sys_path"]
    if replaced := replaced_by(spec.get("versions", {})):
        channel.send({"replaced": replaced})
        return
    handler = build_handler(spec, channel)
    if "PYTHONBREAKPOINT" not in os.environ:
        sys.breakpointhook = channel.stop_here
    await Child(handler, channel, dedicated=spec.get("dedicated", False)).serve(lines)


def build_handler(spec: JsonObject, channel: Channel) -> Handler:
    """The same class, from the same arguments, with the same runtime settings."""
    found: Any = load_module(spec["module"], spec["file"])
    for part in spec["qualname"].split("."):
        found = getattr(found, part)
    cls = handler_class(found)
    assert cls is not None  # noqa: S101 - the parent is an instance of it
    handler = cls(*spec["args"], **spec["kwargs"])
    runtime = RuntimeSettings(**spec["runtime"])
    handler._attach(runtime=runtime, handler_id=spec["handler_id"])
    handler.in_worker, handler._progress = True, channel.progress
    handler._is_cancelled = lambda: current_call.get(None) in to_stop
    handler._report = lambda status: channel.send({"status": status})
    take_logs(handler.log, type(handler).__module__)
    return handler


def load_module(name: str, file: str | None) -> Any:
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


def error_line(handler: Handler, error: BaseException) -> JsonObject:
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
    fields["traceback"] = utf8(handler.mask(traceback_of(error)))
    return {**fields, "details": details, "type": type_of(error)}


def end_with(parent_pid: int, by: signal.Signals) -> None:
    """On Linux the kernel sends this process a signal when its parent dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
        # It may have died before this was set up: then no signal comes.
        if os.getppid() != parent_pid:
            signal.raise_signal(by)


if __name__ == "__main__":
    main()
