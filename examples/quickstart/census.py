"""A handler of which several instances share the work: it counts parts of the client's flights.

Each run notes that it began and what it found in a file, from which the demo counts what really
ran, whatever any record says.
"""

import csv
import os
import time
from pathlib import Path

from catalogzero import Handler, HandlerSettings, job


class FlightCensusSettings(HandlerSettings):
    """Where the parts lie, where the runs are noted, and how long one waits, as for a service."""

    parts: Path
    notes: Path
    wait_s: float = 1.5


class FlightCensus(Handler):
    """Counts the rows of a part, and adds up their `distance`."""

    settings_model = FlightCensusSettings
    settings: FlightCensusSettings

    def count_once(self, part: str) -> dict[str, int]:
        """Count a part; this may not be repeated."""
        return self._count("once", part)

    @job(retry_safe=True)
    def count_again(self, part: str) -> dict[str, int]:
        """Count a part; this may be repeated."""
        return self._count("again", part)

    def _count(self, kind: str, part: str) -> dict[str, int]:
        self._note(f"began {kind} {part}")
        time.sleep(self.settings.wait_s)
        rows = distance = 0
        with (self.settings.parts / part).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows += 1
                distance += int(row["distance"])
        self._note(f"ended {kind} {part} {rows} {distance}")
        return {"rows": rows, "distance": distance}

    def _note(self, text: str) -> None:
        """One whole line, also under kill -9: when, which instance, and the text."""
        line = f"{time.time():.3f} {self.runtime.instance_id} {text}\n"
        descriptor = os.open(self.settings.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
