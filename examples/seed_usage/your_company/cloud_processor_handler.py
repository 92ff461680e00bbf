"""The handler that the registry file names: rows go to the cloud as they are."""

from collections.abc import Iterable, Iterator

from catalogzero import Batch, CloudProcessor, Params


class CloudProcessorHandler(CloudProcessor):
    """Client-installed handler that processes data and sends it to the vendor's cloud."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """Pass every row on."""
        yield from batches
