"""`CloudProcessor`: what a vendor subclasses to process a client's data and send the results.

The handler's own process holds only what is here: the work, with HTTP and data libraries, is the
worker's (see `engine`), and is imported there alone.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from catalogzero.cloud.outbox.schema import MIGRATIONS
from catalogzero.cloud.outbox.stored import SharedStore
from catalogzero.cloud.params import params_of
from catalogzero.cloud.rows.streams import Stream, streams_of
from catalogzero.cloud.run_context import Checkpoint, RunContext, active_run
from catalogzero.cloud.settings import Batch, CloudSettings, ProcessOutput, root_fault
from catalogzero.config.preflight import Check, Finding
from catalogzero.config.seldom import Seldom
from catalogzero.config.settings import HandlerSettings, faults_error, merged_settings
from catalogzero.config.state_folder import create_private
from catalogzero.errors import (
    BadParamsError,
    CatalogZeroError,
    ConfigError,
    UnreachableError,
    text_of,
)
from catalogzero.protocol.identities import Identity, Mode
from catalogzero.runtime.control_answers import SendingNow, UploadRecord
from catalogzero.runtime.handler import Handler, entry_of
from catalogzero.runtime.methods import Method, internal, job
from catalogzero.runtime.runs import current_run
from catalogzero.sql import refuse_newer, version_in
from catalogzero.version import __version__
from catalogzero.wire.messages import JsonObject

if TYPE_CHECKING:
    from catalogzero.cloud.engine import Engine

LAST_REPORT_S = 5.0
STORE_LOOK_S = 5.0
"""How long after a look at a shared store that could not be opened the next one is."""
ROOTS_S = 30.0
"""The longest that a start waits for the shared store and the data roots."""
_NOTHING = {"data_roots": (), "sources": (), "taps": ()}
SERVED_IN_PLAIN = "calls come from other machines without encryption (allow_plaintext)"


class CloudProcessor(Handler):
    """Processes a client's data where it lies, and sends each result exactly once.

    A subclass writes `process`; `process_and_upload` and `health_report` are inherited jobs.

    Attributes:
        stream: Names the results at the backend; the entry's handler name where it is None.
        output_version: Raise it when `process` gives other results for the same input, so that
            unchanged sources are processed and sent again.
        unit: `item`: one upload per file or query; `run`: all items of a run are one.
        batch_type: `dict`: a batch is a list of dicts; `arrow`: a pyarrow Table.
        batch_rows: Rows in a batch, at most.
        mode: Of an own `read`: `replace` what the source had, or `append` to it.
        schema: The columns of the results, a pyarrow schema or a pydantic model of one row: see
            `Stream`. Without it they are those that come first.
        streams: The same with names and keys: `Stream` objects, instead of `stream` and `schema`.
            Each gets an upload of every item, also where nothing was yielded for it.

    Raises:
        ConfigError: A setting is at fault, or there is nothing that may be read.
    """

    _sdk_base: ClassVar[bool] = True

    settings_model: ClassVar[type[HandlerSettings]] = CloudSettings
    settings: Any  # a `CloudSettings`

    stream: ClassVar[str | None] = None
    output_version: ClassVar[int] = 1
    unit: ClassVar[Literal["item", "run"]] = "item"
    batch_type: ClassVar[Literal["dict", "arrow"]] = "dict"
    batch_rows: ClassVar[int] = 10_000
    mode: ClassVar[Mode] = "replace"
    schema: ClassVar[Any] = None
    streams: ClassVar[tuple[Stream, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class whose attributes, streams or params are at fault."""
        super().__init_subclass__(**kwargs)
        refuse_attributes(cls)
        streams_of(cls)
        hashed: Any = cls  # mypy holds a class with a base of `Any` for not hashable
        taken, method = params_of(hashed), cls._callable["process_and_upload"]
        if taken.model is not None:
            types = {"params": taken.type_of_call}
            known = Method(method.name, method.function, method.options, types)
            cls._callable["process_and_upload"] = known

    def __init__(self, **config: Any) -> None:
        faults: list[JsonObject] = []
        try:
            super().__init__(**config)
        except ConfigError as error:
            faults += error.details
        # What is at fault may name some all the same: as it was given.
        given = merged_settings(self.settings_model, file=config, flags={}) if faults else {}
        named = getattr(self, "settings", None) or SimpleNamespace(**{**_NOTHING, **given})
        if not (self.reads_itself or named.data_roots or named.sources or named.taps):
            text = (
                "set the folders that data_source may point into, or sources or taps, the queries "
                "and Singer taps that it may name"
            )
            faults.append({"field": "data_roots", "message": text})
        if faults:
            raise faults_error(f"settings of {type(self).__name__}", faults)

    # `Any` where an author's annotation says which kind of batch and of params it is.
    def process(self, batches: Iterable[Any], params: Any) -> Iterator[ProcessOutput]:
        """The author's work: takes batches, yields batches; called once per source item.

        It is called again behind each checkpoint of an own `read`, and where the rows of another
        stream of a tap begin: what it holds back until it returns belongs to the rows before.

        With several `streams` it yields the name of one with each batch: `yield "users", rows`.

        Args:
            batches: Lists of dicts (or Arrow tables), read as they are asked for.
            params: What the call gave under `params`, without `format` and `full`: a mapping
                (`Params`), or the pydantic model that it is annotated with, validated.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `process` of its own")

    def read(
        self, data_source: str, params: Any, after: Any = None
    ) -> Iterator[Batch | Checkpoint]:
        """The author's own source, instead of files and queries: yields batches.

        Annotate one with a watermark as `Generator[Rows | Checkpoint, None, str]`, the type of what
        it returns last.

        Args:
            data_source: As called; it names the source.
            params: As for `process`.
            after: With `mode = "append"`, the watermark up to which rows were read before, None
                at first; such a `read` ends with `return` of the new one (any JSON value but
                null), and of the last one where there is nothing new. Between batches it may
                `yield Checkpoint(value)`: what came before is sealed by itself, and a run that is
                killed goes on from that value.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `read` of its own")

    @property
    def run(self) -> RunContext:
        """In `process` and `read`: what is read, in which attempt, from which watermark on.

        Raises:
            FailedError: No run is under way.
        """
        return active_run().context()

    @internal
    def progress(self, *, rows: int, of: int | None = None) -> None:
        """In `process` and `read`: report how far the item is, where only the author knows.

        Rows that were read and stored are reported every second without it.

        Args:
            rows: How many are done.
            of: How many there are, where that is known.

        Raises:
            RunCancelledError: The run is to stop.
            FailedError: No run is under way.
        """
        active_run().progress(rows, of)

    @internal
    def reject(self, row: Any, why: str) -> None:
        """In `process`: refuse a row, which is then not to be yielded.

        It is counted in `bad_records`, and `on_bad_record` decides: `fail` fails the item by this
        reason, `skip` goes on, `quarantine` keeps the row in the state folder.

        Args:
            row: The row; it stays on this machine.
            why: What is wrong with it; shown with the source and the row's number.

        Raises:
            FailedError: `on_bad_record` is `fail`, or no run is under way.
        """
        active_run().reject(row, why)

    @property
    def reads_itself(self) -> bool:
        """Whether the class has a `read` of its own."""
        return type(self).read is not CloudProcessor.read

    async def describe(self) -> JsonObject:
        """See `Handler.describe`; with the streams that the class declares, and why its runs cannot
        be partitioned, if so.
        """
        streams = [stream.describe() for stream in streams_of(type(self))]
        fault = self._partition_fault
        own = {"streams": streams} | ({"not_partitioned": fault} if fault else {})
        return {**await super().describe(), **own}

    @property
    def _partition_fault(self) -> str | None:
        """Why no run can read one item of a data_source as if it read all; None where it can."""
        if self.unit == "run":
            return 'its `unit = "run"` makes one upload of all items'
        if self.reads_itself:
            return "its own `read` says what there is, and names no items"
        if self.runtime.egress.strict:
            return "its setting egress.strict judges the columns of all items as one"
        return None

    def _refuse_partition(self) -> None:
        """Refuse to read items one by one where that would not be the same.

        Raises:
            BadParamsError: It would not.
        """
        if fault := self._partition_fault:
            message = f"the run cannot be partitioned: {fault}"
            raise BadParamsError(message, details=[{"field": "partition", "message": message}])

    @job(isolate=True, retry_safe=True)
    def process_and_upload(
        self,
        data_source: str,
        params: dict[str, Any] | None = None,
        format: str | None = None,
        full: bool | None = None,
        item: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Read a source, process it, and send what is new.

        Args:
            data_source: A file, a folder, a pattern, `sql:<name>`, `singer:<name>`, or what an
                own `read` takes.
            params: For `process`; `format` and `full` may also stand here.
            format: Of the chunks: ndjson (default), json (the same), parquet, csv.
            full: Send all again, also what is unchanged.
            item: Only this item of the source, as list_items names it: {"name": "exports/a.csv"}.

        Returns:
            status (uploaded, unchanged, superseded, queued, rejected), records, skipped,
            bad_records, files (what the first 20 were read as), files_read, left_out (files that
            the listing of a folder passes over), left_out_files (the first 20), bytes_sent,
            cloud_job_id, uploads (how many), upload_ids (the first 20), timestamp.
        """
        given = params or {}
        chunk_format = str(format or given.get("format") or "ndjson")
        whole = bool(given.get("full")) if full is None else full
        only = None if item is None else self._name_of(item)
        progress = self.report_progress
        return dict(
            self._engine().run(
                data_source, given, chunk_format, full=whole, progress=progress, only=only
            )
        )

    @job(isolate=True, retry_safe=True)
    def list_items(self, data_source: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Name the items of a source, for runs that read one each; a scheduler's partition does.

        Args:
            data_source: As process_and_upload takes it.
            params: Those of the runs.

        Returns:
            items (each with the name by which process_and_upload takes it, and with a shared store
            the token of its data root), left_out (files that are no items), left_out_files (the
            first 20).
        """
        self._refuse_partition()
        return dict(self._engine().list_items(data_source, params or {}, self.report_progress))

    def _name_of(self, item: Mapping[str, Any]) -> str:
        """The name of the one item that a run reads.

        Raises:
            BadParamsError: It has none, no run can read one item alone, or it lies on a disk that
                is not mounted here.
        """
        self._refuse_partition()
        name, root = item.get("name"), item.get("root")
        if not isinstance(name, str) or not item.keys() <= {"name", "root"}:
            message = 'item is {"name": …}, as list_items gives it'
            raise BadParamsError(message, details=[{"field": "item", "message": message}])
        if root is not None:
            from catalogzero.cloud.reading.root_tokens import root_with

            root_with(str(root), self.settings.data_roots, name)
        return name

    @job(quiet=True, retry_safe=True)
    async def health_report(self) -> dict[str, Any]:
        """Push a health report; `queued` when the backend cannot be reached."""
        return await self._report_health(None)

    async def send_now(self) -> SendingNow:
        """See `Handler.send_now`."""
        answer: SendingNow = await self.worker.call("_send_now")
        return answer

    async def _send_now(self) -> SendingNow:
        """In the worker: see `send_now`."""
        engine = await asyncio.to_thread(self._engine)
        return await engine.send_now()

    async def _on_start(self) -> None:
        """Fix the installation's id; begin reports at an interval, where one is set.

        Raises:
            ConfigError: A data root cannot be read, or is another disk than at other instances.
        """
        await super()._on_start()
        faults = await asyncio.to_thread(lambda: list(map(root_fault, self.settings.data_roots)))
        if any(faults):
            raise ConfigError("\n".join(": ".join(fault) for fault in faults if fault))
        await self._compare_roots()
        await asyncio.to_thread(self._installation_id)
        for text in (*self.runtime.deprecations, *self.settings.deprecations):
            self.log.warning("setting_deprecated", text=text)
        self._interval_s = self.runtime.health_interval_s
        if self._interval_s is not None:
            self._reports = asyncio.create_task(self._report_always(), name="health-reports")

    async def _compare_roots(self) -> None:
        """With a shared store: have the worker see that all instances read the same disks.

        Raises:
            ConfigError: They do not, or cannot know it.
        """
        if self.runtime.state is None:
            return
        try:
            async with asyncio.timeout(ROOTS_S):
                faults = await self.worker.call("_root_faults")
        except (CatalogZeroError, TimeoutError) as error:  # the store or a share is away
            self.log.warning("roots_not_compared", error=text_of(error))
            return
        if faults:
            raise ConfigError("\n".join(faults))

    def _root_faults(self) -> list[str]:
        """In the worker: what is wrong with the store, and with the data roots by their tokens."""
        from catalogzero.cloud.replicas import root_faults

        try:
            return root_faults(self._engine().outbox, self.settings.data_roots)
        except ConfigError as error:  # the store is another installation's, or a newer release's
            return [error.message]

    async def _on_stop(self) -> None:
        """End the reports with a last one."""
        if self._reports is not None:
            self._reports.cancel()
            await asyncio.wait([self._reports])
        if self.worker.status or self._reports is not None:
            with suppress(CatalogZeroError, TimeoutError):
                await asyncio.wait_for(self._report_health("stopping"), LAST_REPORT_S)
        await super()._on_stop()

    def _preflight(self) -> list[Check]:
        """Backend, key, clock, disk, outbox, data roots, queries."""
        from catalogzero.cloud.readiness import preflight

        own = preflight(
            self.settings,
            self.runtime,
            # Without the installation's id, which is not made for a look.
            user_agent=self._identity("").user_agent,
            state_dir=self.state_dir,
            clock=self.clock,
            streams=streams_of(type(self)),
            shared=SharedStore.of(self.runtime, self.handler_id),
        )
        old = [*self.runtime.deprecations, *self.settings.deprecations]
        if old:
            found = Finding("renamed settings", "warn", "; ".join(old), "write the present names")
            own.append(Check.of(found))
        return [*super()._preflight(), *own]

    def _worker_wanted(self) -> bool:
        """Whether an outbox is there, in which something may wait; a shared one is looked at.

        Raises:
            ConfigError: A newer release wrote it: the handler is not to start.
        """
        if self.runtime.state is not None:
            return True
        path = self.state_dir / "outbox.sqlite"
        refuse_newer(path, version_in(path), len(MIGRATIONS))
        return path.exists()

    def _keeps_its_own(self) -> bool:
        """See `Handler._keeps_its_own`."""
        return self.runtime.state is None

    def _state_faults(self) -> list[JsonObject]:
        """See `Handler._state_faults`."""
        if self.runtime.state is None:
            return []
        from catalogzero.cloud.replicas import state_faults

        return state_faults(self.runtime, self.state_dir)

    def _uploads_of(self, upload_ids: list[str]) -> list[UploadRecord]:
        """See `Handler._uploads_of`; by a look at the outbox that leaves it as it is."""
        from catalogzero.cloud.outbox.looking import uploads_of

        shared = SharedStore.of(self.runtime, self.handler_id)
        return uploads_of(self.state_dir, upload_ids, shared)

    async def _worker_main(self) -> None:
        """In the worker: send, for as long as it lives."""
        engine = await self._opened_engine()
        await engine.main()

    async def _opened_engine(self) -> Engine:
        """In the worker: see `_engine`; where a shared store is away, once it is there."""
        while True:
            try:
                return await asyncio.to_thread(self._engine)
            except (UnreachableError, ConfigError) as error:
                if self.runtime.state is None:
                    raise
                if times := self._seldom.is_due("store_not_opened"):
                    self.log.warning("store_not_opened", error=error.message, times=times)
                self.report_status({"busy": True, "reasons": [error.message]})
                await self.clock.sleep(STORE_LOOK_S)

    async def _report_always(self) -> None:
        """Report every `health_interval_s`, or as often as the backend asks for."""
        while True:
            try:
                await self._report_health(None)
            except CatalogZeroError as error:
                if times := self._seldom.is_due("health_report_failed"):
                    self.log.warning("health_report_failed", error=str(error), times=times)
            await self.clock.sleep(self._interval_s or 0.0)

    async def _report_health(self, state: str | None) -> JsonObject:
        try:
            metrics = await self.get_metrics()
        except Exception as error:  # noqa: BLE001 - the author's code: reports go on without it
            if times := self._seldom.is_due("get_metrics_failed"):
                self.log.warning("get_metrics_failed", error=text_of(error), times=times)
            metrics = await Handler.get_metrics(self)
        vitals, run = self._vitals(), current_run.get()
        # A report that is a run itself, or is made by another quiet one, is not the jobs' work.
        is_in_flight = run is not None and run.method.options.quiet
        about = {
            "state": state or vitals.get("status", "active"),
            "running": max(vitals.get("in_flight", 0) - is_in_flight, 0),
            "interval_s": self._interval_s,
            "notes": [SERVED_IN_PLAIN] if self.runtime.exposed else [],
            "failure": self._last_failure(),
            "labels": self.runtime.labels,
            "last_successful_run": vitals.get("last_successful_run"),
            "last_failed_run": vitals.get("last_failed_run"),
        }
        answer = await self.worker.call("_push_health", metrics=metrics, about=about)
        if self._interval_s is not None:
            self._interval_s = answer["next_interval_s"] or self._interval_s
        return {"status": "reported" if answer["sent"] else "queued", "metrics": metrics}

    async def _push_health(self, metrics: JsonObject, about: JsonObject) -> JsonObject:
        """In the worker: push a report."""
        engine = await asyncio.to_thread(self._engine)
        return await engine.report_health(metrics, about)

    def _engine(self) -> Engine:
        """In the worker: what does the work, made once."""
        # The first jobs may come at once, each in a thread: one outbox has one sender.
        with _ENGINE_TURN:
            if self._made_engine is None:
                from catalogzero.cloud.engine import Engine

                self._made_engine = Engine(self, self.report_status)
            return self._made_engine

    _made_engine: Engine | None = None
    _reports: asyncio.Task[None] | None = None
    _interval_s: float | None = None
    """Between reports: as the backend asks, else as set; none: only those that are called for."""

    @cached_property
    def _seldom(self) -> Seldom:
        return Seldom(self.clock)

    def identity(self) -> Identity:
        """Who sends, as the backend knows it."""
        return self._identity(self._installation_id())

    def _identity(self, installation_id: str) -> Identity:
        entry, version = entry_of(type(self))
        declared = next((stream.name for stream in self.streams), None)
        return Identity(
            installation_id=installation_id,
            handler_id=self.handler_id,
            entry=entry or type(self).__name__,
            version=version or "0",
            stream=declared or self.stream or handler_name(type(self)),
            sdk_version=__version__,
        )

    def _installation_id(self) -> str:
        """The id that the registry file sets, else one made at first start and kept."""
        return self.runtime.installation_id or kept_installation_id(self.state_dir)


_ENGINE_TURN = threading.Lock()


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "unit": ("item", "run"),
    "batch_type": ("dict", "arrow"),
    "mode": ("replace", "append"),
}
_ATTRIBUTES = (
    *(*_CHOICES, "batch_rows", "output_version", "stream", "streams", "schema", "settings_model"),
)
_GIVEN = ("run", "progress", "cancelled")


def refuse_attributes(cls: type[CloudProcessor]) -> None:
    """Refuse attributes of a class that are misspelled, or have unknown values.

    Raises:
        TypeError: One is; it says what was meant.
    """
    for name, words in _CHOICES.items():
        if (value := getattr(cls, name)) not in words:
            meant = get_close_matches(str(value), words, n=1)
            hint = f"; did you mean {meant[0]!r}?" if meant else ""
            raise TypeError(
                f"{cls.__qualname__}.{name} is {value!r}, not {' or '.join(words)}{hint}"
            )
    for name in ("batch_rows", "output_version"):
        if type(value := getattr(cls, name)) is not int or value < 1:
            raise TypeError(f"{cls.__qualname__}.{name} is {value!r}, not a whole number above 0")
    if cls.unit == "run" and cls.mode != "replace":
        raise TypeError(
            f'{cls.__qualname__}: unit = "run" sends all of a source as one, and mode = '
            f'"{cls.mode}" goes on from the last run: take one of them out'
        )
    for name, value in vars(cls).items():
        if name in _GIVEN:
            raise TypeError(f"{cls.__qualname__}.{name}: `self.{name}` is the run's; rename it")
        meant = get_close_matches(name, _ATTRIBUTES, n=1, cutoff=0.8)
        if meant and name not in _ATTRIBUTES and not name.startswith("_") and not callable(value):
            raise TypeError(
                f"{cls.__qualname__}.{name}: did you mean `{meant[0]}`? One of your own begins "
                f"with `_`: `_{name}`"
            )


def handler_name(cls: type) -> str:
    """The name under which an entry provides a class; the class's own where none does."""
    wanted = {f"{cls.__module__}:{cls.__qualname__}"}
    wanted.add(f"{cls.__module__.partition('.')[0]}:{cls.__qualname__}")
    for point in importlib.metadata.entry_points(group="catalogzero.handlers"):
        if point.value in wanted:
            return point.name
    return cls.__name__


def kept_installation_id(folder: Path) -> str:
    """The installation's id in a state folder; made at the first start."""
    path = folder / "installation_id"
    with suppress(FileNotFoundError):
        return path.read_text("ascii").strip()
    return make_installation_id(folder)


def make_installation_id(folder: Path) -> str:
    """Another id for the installation of a state folder; the file is there whole or not at all."""
    made = str(uuid.uuid4())
    part = folder / "installation_id.part"
    create_private(part)
    part.write_text(f"{made}\n", "ascii")
    part.rename(folder / "installation_id")
    return made
