"""What every processor must do: catalogzero's contract suite, run against this one."""

import sys
from typing import Any

from catalogzero.testing import Lab, ProcessorContract

from singer_processor.handler import SingerProcessor

TAP = """\
#!{python}
import csv, json, sys

SAMPLE = {sample!r}
NAMES = next(csv.reader(open(SAMPLE, encoding="utf-8", newline="")))
SCHEMA = {{"type": "object", "properties": {{name: {{"type": "string"}} for name in NAMES}}}}
if "--discover" in sys.argv:
    print(json.dumps({{"streams": [{{"tap_stream_id": "orders", "schema": SCHEMA}}]}}))
    sys.exit()
print(json.dumps({{"type": "SCHEMA", "stream": "orders", "schema": SCHEMA}}))
for row in csv.DictReader(open(SAMPLE, encoding="utf-8", newline="")):
    print(json.dumps({{"type": "RECORD", "stream": "orders", "record": row}}))
"""


class TestSingerProcessor(ProcessorContract):
    """Each check has a name: `exclude = {"name": "why it does not hold here"}` leaves one out."""

    handler_class = SingerProcessor

    def config(self, lab: Lab) -> dict[str, Any]:
        """A tap that sends the sample, as the client would configure it."""
        tap = lab.folder / "tap-orders"
        if not tap.exists():
            tap.write_text(TAP.format(python=sys.executable, sample=str(self.sample_path())))
            tap.chmod(0o755)
        return {**super().config(lab), "taps": {"orders": {"command": str(tap)}}}

    def data_source(self, lab: Lab) -> str:
        """The tap's name, as a call gives it."""
        return "singer:orders"
