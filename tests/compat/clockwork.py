"""A handler script as ScheduleZero's users write them; only the import line is ours.

`python clockwork.py FOLDER` with its addresses in the environment, as such scripts take them.
"""

import logging
import os
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Dict

from catalogzero.compat import ZMQHandlerBase, setup_handler_logging

HANDLER_ID = os.environ.get("CLOCKWORK_ID", "clockwork")
HANDLER_ADDRESS = f"tcp://127.0.0.1:{os.environ.get('CLOCKWORK_PORT', '4246')}"
SERVER_ADDRESS = f"tcp://127.0.0.1:{os.environ.get('CLOCKWORK_SERVER_PORT', '4242')}"

logger = logging.getLogger(HANDLER_ID)


class ClockworkHandler(ZMQHandlerBase):
    """Strikes the hours into a file."""

    def __init__(self, handler_id, handler_address, server_address, output_dir=None):
        super().__init__(
            handler_id=handler_id,
            handler_address=handler_address,
            server_address=server_address,
            registration_retry_interval=1,
            max_registration_retries=5,
        )
        self.output_dir = Path(output_dir or "output")
        self.output_dir.mkdir(exist_ok=True)
        self.strikes = 0
        self.log = self.output_dir / "strikes.txt"
        self.worker = threading.Lock()
        self.settings = {"bell": "e4"}
        self.clock = datetime.now()

    def _note(self, text, count=None):
        with open(self.log, "a") as file:
            file.write(f"{text} x{count}\n")
        logger.info(f"noted {text}")

    def strike_hour(self, params):
        """Strike as often as the hour says."""
        hour = params.get("hour")
        if hour is None:
            hour = datetime.now().hour
        self._note("hour", hour % 24 or 24)
        return {"status": "success", "strikes": hour % 24 or 24}

    def chime(self, message: str = "ding", times: int = 1) -> Dict[str, Any]:
        """Chime once or more."""
        self.strikes += times
        self.logger.info(f"Chime {self.strikes}", method="chime", message=message, times=times)
        return {"status": "success", "message": message, "count": self.strikes}

    def read_strikes(self, params=None):
        """What was struck so far."""
        if not self.log.exists():
            return {"entries": 0, "log": ""}
        text = self.log.read_text()
        return {"entries": text.count("\n"), "log": text}

    def get_supported_methods(self) -> list[str]:
        """A list, and no parameter."""
        return ["strike_hour", "chime"]

    def wind(self, params: dict):
        """Take as long as asked, and note each time that it was begun."""
        self._note("wind", 1)
        until = time.monotonic() + float(params["seconds"])
        while time.monotonic() < until and not self.shutdown_event.is_set():
            time.sleep(0.02)
        self._note("wound", 1)
        return {"wound": True}

    def jam(self, params):
        """Fail with a text of two lines in two alphabets."""
        self._note("jam", 1)
        raise RuntimeError("Getriebe blockiert: größer\nals erlaubt")


def main():
    """Run until a signal."""
    setup_handler_logging(HANDLER_ID, log_level="INFO")
    handler = ClockworkHandler(
        handler_id=HANDLER_ID,
        handler_address=HANDLER_ADDRESS,
        server_address=SERVER_ADDRESS,
        output_dir=sys.argv[1],
    )

    def handle_signal(signum, frame):
        handler.logger.info(f"Received signal {signum}. Shutting down...", method="main")
        handler.stop()

    signal.signal(signal.SIGINT, handle_signal)
    signal.signal(signal.SIGTERM, handle_signal)
    handler.run()
    handler.logger.info("Clockwork shut down", method="main")


if __name__ == "__main__":
    main()
