"""Skylark Processor by Skylark Analytics: cleans flights, and says how late each one was."""

from collections.abc import Iterable, Iterator
from typing import Any

from catalogzero import CloudProcessor, Params, Rows
from skylark_processor.settings import SkylarkProcessorSettings


class SkylarkProcessor(CloudProcessor):
    """Cleans rows and adds the `delay_class` of each flight; the order is kept."""

    settings_model = SkylarkProcessorSettings

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Rows]:
        for batch in batches:
            rows = [{key: cleaned(value) for key, value in row.items()} for row in batch]
            yield [row | delay(row) for row in rows if any(v is not None for v in row.values())]


def cleaned(value: Any) -> Any:
    text = value.strip() if isinstance(value, str) else value
    return None if text in ("", "NA") else text


def delay(row: dict[str, Any]) -> dict[str, str]:
    if "arr_delay" not in row:  # no flight
        return {}
    late = row["arr_delay"]
    return {"delay_class": "lost" if late is None else "late" if int(late) > 15 else "on time"}
