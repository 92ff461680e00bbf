"""`CloudProcessorHandler`: the first drawing's cloud processor, on top of the real one.

It owns the old constructor and its two async hooks; reading, the outbox and the upload are
`CloudProcessor`'s.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar

from catalogzero.cloud.processor import CloudProcessor
from catalogzero.cloud.settings import Batch, CloudSettings, Params
from catalogzero.compat.adapter import Adapter
from catalogzero.compat.base import ZMQHandlerBase
from catalogzero.errors import FailedError
from catalogzero.runtime.methods import awaited
from catalogzero.wire.messages import JsonObject

_beside: ContextVar[Mapping[str, Any]] = ContextVar("_beside")
"""Settings of a section's `config` that the author's constructor does not take."""


class CloudAdapter(Adapter, CloudProcessor):
    """Serves an author's `CloudProcessorHandler`."""

    _sdk_base: ClassVar[bool] = True
    author: CloudProcessorHandler
    _hooks_loop: asyncio.AbstractEventLoop | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Leave out what names items: the author's `process_and_upload` takes none."""
        super().__init_subclass__(**kwargs)
        inherited = CloudProcessor._callable["list_items"].function
        if cls._callable["list_items"].function is inherited:
            cls._callable = {n: one for n, one in cls._callable.items() if n != "list_items"}

    @classmethod
    def make_author(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """As `Adapter.make_author`; settings that the constructor does not take are kept too."""
        parameters = inspect.signature(cls._author_class.__init__).parameters.values()
        taken = {parameter.name for parameter in parameters}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            taken |= set(kwargs)
        beside = {k: v for k, v in kwargs.items() if k in CloudSettings.model_fields.keys() - taken}
        token = _beside.set(beside)
        try:
            return super().make_author(args, {k: kwargs[k] for k in kwargs if k not in beside})
        finally:
            _beside.reset(token)

    @property
    def reads_itself(self) -> bool:
        """Whether `_read_data` is the author's."""
        return type(self.author)._read_data is not CloudProcessorHandler._read_data

    def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        """What the author reads, processed: only they know what kind of thing it is between."""
        data = self._result_of(self.author._read_data(data_source))
        yield from self._processed(data, params)

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """The author's `_process` over all records of one file or query at once."""
        from catalogzero.cloud.rows.batches import rows_of  # only here, in the worker: it is heavy

        if self.reads_itself:
            yield from batches
        else:
            yield from self._processed([row for batch in batches for row in rows_of(batch)], params)

    def upload(self, data_source: str, params: JsonObject | None) -> JsonObject:
        """In the worker: the real `process_and_upload`."""
        return CloudProcessor.process_and_upload(self, data_source, params)

    async def _worker_main(self) -> None:
        self._hooks_loop = asyncio.get_running_loop()
        await super()._worker_main()

    def _processed(self, data: Any, params: Params) -> Iterator[Batch]:
        from catalogzero.cloud.rows.batches import is_frame

        result = self._result_of(self.author._process(data, dict(params)))
        if is_frame(result):
            yield result
            return
        records = records_of(result)
        for start in range(0, len(records), self.batch_rows):
            yield records[start : start + self.batch_rows]

    def _result_of(self, result: Any) -> Any:
        """What a hook returned: a coroutine runs on the worker's loop, as all hooks do."""
        if not inspect.isawaitable(result):
            return result
        work: Coroutine[Any, Any, Any] = awaited(result)
        # An author's session or pool belongs to the loop that it was opened on.
        if self._hooks_loop is None:
            return asyncio.run(work)
        return asyncio.run_coroutine_threadsafe(work, self._hooks_loop).result()


class CloudProcessorHandler(ZMQHandlerBase):
    """Reads a client's data, processes it there, and sends each result exactly once.

    A subclass writes `_process`, and `_read_data` where its data is not in files or queries;
    `process_and_upload` and `health_report` are its jobs. They run in the worker process, which
    makes an object of its own with the same constructor arguments.

    Args:
        api_key: The key of this client at the backend; or `api_key_file=`.
        endpoint: The backend's base URL.
        config: Any other setting of `catalogzero.CloudSettings` (`data_roots`), or of
            `ZMQHandlerBase` (`handler_id`, …).

    Raises:
        ConfigError: A setting at fault, by name; without a `_read_data` of one's own,
            `data_roots` or `sources` must be set.
    """

    _adapter_base: ClassVar[type[Adapter]] = CloudAdapter
    _forwarded: ClassVar[tuple[str, ...]] = (
        *("stream", "output_version", "unit", "batch_rows"),
        *("schema", "streams"),
    )
    _adapter: CloudAdapter

    def __init__(
        self, api_key: str | None = None, endpoint: str | None = None, **config: Any
    ) -> None:
        given = {"api_key": api_key, "endpoint": endpoint, **config}
        cloud = {k: v for k, v in given.items() if k in CloudSettings.model_fields}
        super().__init__(**{k: v for k, v in config.items() if k not in cloud})
        self.api_key = api_key
        self.endpoint = endpoint
        cloud = {k: v for k, v in cloud.items() if v is not None}
        CloudProcessor.__init__(self._adapter, **{**_beside.get({}), **cloud})

    async def _read_data(self, data_source: str) -> Any:
        """The author's own source; whatever it returns is given to `_process`."""
        raise NotImplementedError

    async def _process(self, data: Any, params: JsonObject) -> Any:
        """The author's work: from what was read (by default a list of dicts) to records.

        Args:
            data: What `_read_data` returned; else all records of one file or query.
            params: What the call gave under `params`, without `format` and `full`.

        Returns:
            The records, a list of dicts; one dict is one record.
        """
        return data

    async def process_and_upload(
        self, data_source: str, params: JsonObject | None = None
    ) -> JsonObject:
        """See `CloudProcessor.process_and_upload`; to call, and to extend through super()."""
        if self._adapter.in_worker:
            return await asyncio.to_thread(self._adapter.upload, data_source, params)
        worker = self._adapter.worker
        result: JsonObject = await worker.call("upload", data_source=data_source, params=params)
        return result

    async def health_report(self) -> JsonObject:
        """See `CloudProcessor.health_report`."""
        return await self._adapter._report_health(None)


def records_of(result: Any) -> list[Any]:
    """The records that `_process` returned."""
    if result is None:
        return []
    if isinstance(result, Mapping):
        return [result]
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        kind = type(result).__name__
        raise FailedError(f"_process returns records, a list of dicts, and this is a {kind}")
    return list(result)
