"""SQL Processor by the catalogzero authors: what it does with a client's rows."""

from collections.abc import Iterable, Iterator

from catalogzero import Batch, CloudProcessor, Params

from sql_processor.settings import SqlProcessorSettings


class SqlProcessor(CloudProcessor):
    """Sends the rows of a query to any backend, on a schedule, incrementally by a watermark
    column."""

    settings_model = SqlProcessorSettings
    settings: SqlProcessorSettings

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """Send the rows as they are; the client's egress policy drops, keeps or hashes columns."""
        yield from batches
