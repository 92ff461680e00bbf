"""Singer Processor by the catalogzero authors: what it does with a client's rows."""

from collections.abc import Iterable, Iterator

from catalogzero import Batch, CloudProcessor, Params

from singer_processor.settings import SingerProcessorSettings


class SingerProcessor(CloudProcessor):
    """Sends the streams of any Singer tap to any backend, on a schedule, without a line of code."""

    settings_model = SingerProcessorSettings
    settings: SingerProcessorSettings

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """Send the rows as they are; the client's egress policy drops, keeps or hashes columns."""
        yield from batches
