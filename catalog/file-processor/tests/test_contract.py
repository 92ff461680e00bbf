"""What every processor must do: catalogzero's contract suite, run against this one."""

from catalogzero.testing import ProcessorContract

from file_processor.handler import FileProcessor


class TestFileProcessor(ProcessorContract):
    """Each check has a name: `exclude = {"name": "why it does not hold here"}` leaves one out."""

    handler_class = FileProcessor
