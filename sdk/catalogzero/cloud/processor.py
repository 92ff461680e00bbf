"""`CloudProcessor`: what a vendor subclasses to process a client's data and send the results.

The handler's own process holds only what is here: the work, with HTTP and data libraries, is the
worker's (see `engine`), and is imported there alone.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from catalogzero.cloud.outbox.schema import MIGRATIONS
from catalogzero.cloud.rows.streams import Stream, streams_of
from catalogzero.cloud.settings import Batch, CloudSettings, Params
from catalogzero.config.preflight import Check
from catalogzero.config.settings import HandlerSettings
from catalogzero.config.state_folder import create_private
from catalogzero.errors import CatalogZeroError, ConfigError, FailedError
from catalogzero.protocol.identities import Identity, Mode
from catalogzero.runtime.handler import Handler, entry_of
from catalogzero.runtime.methods import internal, job
from catalogzero.sql import refuse_newer, version_in
from catalogzero.version import __version__

if TYPE_CHECKING:
    from catalogzero.cloud.engine import Engine

LAST_REPORT_S = 5.0
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
        streams: The same with a name: one `Stream`, instead of `stream` and `schema`.

    Raises:
        ConfigError: A setting is at fault, or there is nothing that may be read.
    """

    _sdk_base: ClassVar[bool] = True

    settings_model: ClassVar[type[HandlerSettings]] = CloudSettings
    settings: CloudSettings

    stream: ClassVar[str | None] = None
    output_version: ClassVar[int] = 1
    unit: ClassVar[Literal["item", "run"]] = "item"
    batch_type: ClassVar[Literal["dict", "arrow"]] = "dict"
    batch_rows: ClassVar[int] = 10_000
    mode: ClassVar[Mode] = "replace"
    schema: ClassVar[Any] = None
    streams: ClassVar[tuple[Stream, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class whose streams are at fault."""
        super().__init_subclass__(**kwargs)
        streams_of(cls)

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        if not (self.reads_itself or self.settings.data_roots or self.settings.sources):
            text = (
                "set the folders that data_source may point into, or sources, the queries that it "
                "may name"
            )
            raise ConfigError(
                f"{type(self).__name__}: data_roots: {text}",
                details=[{"field": "data_roots", "message": text}],
            )

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """The author's work: takes batches, yields batches; called once per source item.

        Args:
            batches: Lists of dicts (or Arrow tables), read as they are asked for.
            params: What the call gave under `params`, without `format` and `full`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `process` of its own")

    def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        """The author's own source, instead of files and queries: yields batches.

        Args:
            data_source: As called; it names the source.
            params: As for `process`.
            after: With `mode = "append"`, the watermark up to which rows were read before, None
                at first; such a `read` ends with `return` of the new one (any JSON value but
                null), and of the last one where there is nothing new.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `read` of its own")

    @internal
    def reject(self, row: Any, why: str) -> None:
        """In `process`: set a row aside, which is then not to be yielded.

        It is counted in `bad_records`, and `on_bad_record` decides: `fail` fails the item by this
        reason, `skip` goes on, `set_aside` keeps the row in the state folder.

        Args:
            row: The row; it stays on this machine.
            why: What is wrong with it; shown with the source and the row's number.

        Raises:
            FailedError: `on_bad_record` is `fail`, or no run is under way.
        """
        if self._rejects is None:
            raise FailedError(f"a row was rejected outside of a run: {why}")
        self._rejects(row, why)

    @property
    def reads_itself(self) -> bool:
        """Whether the class has a `read` of its own."""
        return type(self).read is not CloudProcessor.read

    async def describe(self) -> dict[str, Any]:
        """See `Handler.describe`; with the streams that the class declares."""
        streams = [stream.describe() for stream in streams_of(type(self))]
        return {**await super().describe(), "streams": streams}

    @job(isolate=True, retry_safe=True)
    def process_and_upload(
        self,
        data_source: str,
        params: dict[str, Any] | None = None,
        format: str | None = None,
        full: bool | None = None,
    ) -> dict[str, Any]:
        """Read a source, process it, and send what is new.

        Args:
            data_source: A file, a folder, a pattern, `sql:<name>`, or what an own `read` takes.
            params: For `process`; `format` and `full` may also stand here.
            format: Of the chunks: ndjson (default), json (the same), parquet, csv.
            full: Send all again, also what is unchanged.

        Returns:
            status (uploaded, unchanged, superseded, queued, rejected), records, skipped,
            bad_records, files (what the first 20 were read as), files_read, left_out (files that
            the listing of a folder passes over), left_out_files (the first 20), bytes_sent,
            cloud_job_id, uploads (how many), upload_ids (the first 20), timestamp.
        """
        given = params or {}
        chunk_format = str(format or given.get("format") or "ndjson")
        whole = bool(given.get("full")) if full is None else full
        return self._engine().run(
            data_source, given, chunk_format, full=whole, progress=self.report_progress
        )

    @job(quiet=True, retry_safe=True)
    async def health_report(self) -> dict[str, Any]:
        """Push a health report; `queued` when the backend cannot be reached."""
        return await self._report_health(None)

    async def _on_start(self) -> None:
        """Fix the installation's id; begin reports at an interval, where one is set."""
        await super()._on_start()
        await asyncio.to_thread(self._installation_id)
        if self.runtime.health_interval_s is not None:
            self._reports = asyncio.create_task(self._report_always(), name="health-reports")

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
        from catalogzero.cloud.checks import preflight

        own = preflight(
            self.settings,
            self.runtime.egress,
            user_agent=self.identity().user_agent,
            state_dir=self.state_dir,
            clock=self.clock,
        )
        return [*super()._preflight(), *own]

    def _worker_wanted(self) -> bool:
        """Whether an outbox is there, in which something may wait.

        Raises:
            ConfigError: A newer release wrote it: the handler is not to start.
        """
        path = self.state_dir / "outbox.sqlite"
        refuse_newer(path, version_in(path), len(MIGRATIONS))
        return path.exists()

    async def _worker_main(self) -> None:
        """In the worker: send, for as long as it lives."""
        engine = await asyncio.to_thread(self._engine)
        await engine.main()

    async def _report_always(self) -> None:
        """Report every `health_interval_s`, or as often as the backend asks for."""
        interval_s = self.runtime.health_interval_s or 0.0
        while True:
            try:
                answer = await self._report_health(None)
                interval_s = answer.pop("next_interval_s", None) or interval_s
            except CatalogZeroError as error:
                self.log.warning("health_report_failed", error=str(error))
            await self.clock.sleep(interval_s)

    async def _report_health(self, state: str | None) -> dict[str, Any]:
        metrics = await self._metrics_to_report()
        about = {
            "state": state or self._vitals().get("status", "active"),
            "interval_s": self.runtime.health_interval_s,
            "notes": [SERVED_IN_PLAIN] if self.runtime.exposed else [],
            "failure": self._last_failure(),
        }
        answer = await self.worker.call("_push_health", metrics=metrics, about=about)
        return {"status": "reported" if answer["sent"] else "queued", "metrics": metrics}

    async def _metrics_to_report(self) -> dict[str, Any]:
        """The author's metrics; the SDK's alone where the author's own method raises."""
        try:
            return await self.get_metrics()
        except Exception as error:  # noqa: BLE001 - the author's code: reports go on without it
            self.log.warning("get_metrics_failed", error=f"{type(error).__name__}: {error}")
            return await Handler.get_metrics(self)

    async def _push_health(self, metrics: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """In the worker: push a report."""
        engine = await asyncio.to_thread(self._engine)
        return await engine.report_health(metrics, about)

    def _engine(self) -> Engine:
        """In the worker: what does the work, made once."""
        with _ENGINE_TURN:
            if self._made_engine is None:
                from catalogzero.cloud.engine import Engine

                self._made_engine = Engine(self, self.report_status)
            return self._made_engine

    _rejects: Callable[[Any, str], None] | None = None
    _made_engine: Engine | None = None
    _reports: asyncio.Task[None] | None = None

    def identity(self) -> Identity:
        """Who sends, as the backend is told."""
        entry, version = entry_of(type(self))
        declared = next((stream.name for stream in self.streams), None)
        return Identity(
            installation_id=self._installation_id(),
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


def handler_name(cls: type) -> str:
    """The name under which an entry provides a class; the class's own where none does."""
    wanted = {f"{cls.__module__}:{cls.__qualname__}"}
    wanted.add(f"{cls.__module__.partition('.')[0]}:{cls.__qualname__}")
    for point in importlib.metadata.entry_points(group="catalogzero.handlers"):
        if point.value in wanted:
            return point.name
    return cls.__name__


def kept_installation_id(folder: Path) -> str:
    """The installation's id in a state folder; made where there is none."""
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
